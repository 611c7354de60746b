"""Criteria as importances of torch-pruning's pruners (https://github.com/VainF/Torch-Pruning). Its only importer here.

torch-pruning finds its own groups of layers; they are matched with sinf's by the layer and channel at their root. Its
version 1.6.1 has habits that an importance can guard against: it prunes nothing, without a word, when parameters are
frozen; and global pruning removes every channel whose score equals the threshold.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sinf.criteria.base import Criterion, group_statistics
from sinf.data.images import Preprocessing
from sinf.errors import ConfigError, CutError, DependencyError
from sinf.graph.coupling import CoupledGroup, couple
from sinf.graph.trace import trace
from sinf.statistics import collect


def as_importance(
    criterion: Criterion,
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    classes: int,
    answer: list[int] | None = None,
    seed: int = 0,
) -> Any:
    """A ``torch_pruning.importance.Importance`` that scores the channels of ``model`` by ``criterion``.

    ``batches`` of (images, labels) are gone through again whenever the model has become smaller since (iterative
    pruning), so they must be iterable more than once: a list or a data loader. ``answer`` are the classes of a cluster.

    Raises:
        DependencyError: torch-pruning is not installed.
        ConfigError: the model has frozen parameters, or batches can be gone through only once.
        CutError: the model cannot be traced, or (when it is asked for) a layer's channels must all stay.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise DependencyError("torch-pruning is not installed", remedy="pip install torch-pruning") from error
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if frozen:
        raise ConfigError(
            "torch-pruning leaves models with frozen parameters as they are, or breaks them",
            got=f"{frozen[0]} and {len(frozen) - 1} more" if frozen[1:] else frozen[0],
            remedy="call model.requires_grad_(True) before making the pruner",
        )
    if isinstance(batches, Iterator):
        raise ConfigError("batches must be iterable more than once", got="an iterator", remedy="give a list")
    kind = type("CriterionImportance", (_Importance, torch_pruning.importance.Importance), {})
    return kind(criterion, model, batches, {"classes": classes, "answer": answer, "seed": seed})


class _Importance:
    """Called with one of torch-pruning's groups, returns the importance of every channel of its root, (channels,)."""

    def __init__(
        self, criterion: Criterion, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], options: dict[str, Any]
    ) -> None:
        self.criterion, self.model, self.batches, self.options = criterion, model, batches, options
        self._widths: list[tuple[str, torch.Size]] = []

    def __call__(self, group: Any) -> Tensor:
        self._measure()
        dependency, channels = group[0]
        module = dependency.target.module
        name = next((name for name, each in self.model.named_modules() if each is module), None)
        table = self._coupling.reads if dependency.handler.__name__ == "prune_in_channels" else self._coupling.writes
        if name not in table:
            raise CutError("torch-pruning asks for a layer that is not followed", got=dependency.target.name)
        units = table[name].units[torch.tensor([int(c) for c in channels])]
        importance = torch.zeros(len(units), dtype=torch.float64)
        for group in self._coupling.groups.values():
            mine = torch.isin(units, group.units)
            if bool(mine.any()):
                place = (units[mine][:, None] == group.units).int().argmax(1)
                importance[mine] = self._scores(group)[place]
        return importance

    def _scores(self, group: CoupledGroup) -> Tensor:
        """``(size,)``: no two of the same value, or global pruning would remove both. Where they would be the same, the
        later units of every layer go first, so that no layer goes before the others."""
        if group.blocked is not None:
            raise CutError(
                f"the channels of {group.name} must all stay",
                got=group.blocked,
                remedy=f"name {', '.join(group.producers) or group.name} in the pruner's ignored_layers",
            )
        if group.name not in self._by_group:
            statistics = group_statistics(self._graph, self._coupling, group, self._sites)
            scores = self.criterion.score(statistics).double()
            later = (torch.arange(group.size) + group.units / self._coupling.units).double() / group.size
            self._by_group[group.name] = scores - 1e-9 * scores.max() * later
        return self._by_group[group.name]

    @torch.no_grad()
    def _measure(self) -> None:
        """Trace the model as it is now and collect its statistics, unless it is what it was."""
        widths = [(name, parameter.shape) for name, parameter in self.model.named_parameters()]
        if widths == self._widths:
            return
        whole = copy.deepcopy(self.model).cpu()  # tracing must not change the mode of the user's model
        (images, _) = next(iter(self.batches))
        channels, height, width = images.shape[1:]
        graph = trace(whole, Preprocessing((channels, height, width), (0.0,) * channels, (1.0,) * channels))
        needs, pool = self.criterion.needs, self.criterion.pool
        batches = ((x.cpu(), y.cpu()) for x, y in self.batches)
        self._graph, self._coupling = graph, couple(graph)
        self._sites = collect(graph, self._coupling, batches, needs=needs, pool=pool, **self.options)
        self._by_group: dict[str, Tensor] = {}
        self._widths = widths
