"""A dynamically pruned bundle as a plain classifier, and what it does with labelled images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sinf.bundle.classifier import Classifier
from sinf.bundle.folder import folder_of
from sinf.data.images import LabelledImages, Preprocessing
from sinf.dynamic.bundle import DynamicBundle
from sinf.dynamic.cost import Spread
from sinf.dynamic.network import GatedNetwork
from sinf.dynamic.sparse import SparseNetwork
from sinf.engine.constant import ConstantModule
from sinf.graph.prepare import prepare
from sinf.graph.trace import RUNNING, trace
from sinf.machine.threads import Lock, Once
from sinf.models import BaseModel


class Chosen(NamedTuple):
    """What the model says of a batch: logits (B, classes), the MACs that each input costs (B,) gates included, and the
    share of channels of gated convolutions that stays for each (B, sites)."""

    logits: Tensor
    macs: Tensor
    remaining: Tensor


class DynamicModel(Classifier, ConstantModule):
    """``(B, C, H, W)`` normalised images -> ``(B, classes)`` logits; every input runs the channels that it needs.

    Many threads may call one model; :meth:`choose` has one of them wait for the other. A copy, by ``copy.deepcopy`` or
    in another process, opens the bundle anew.
    """

    def __init__(self, bundle: DynamicBundle, *, batches: str = "auto") -> None:
        super().__init__()
        self.bundle = bundle
        self.network: GatedNetwork = bundle.network()
        self.sparse = SparseNetwork(self.network, batches=batches)
        self.training = False
        self._observing = Lock()  # gates note what they did to the one batch that is running
        self._base: Once[None, fx.GraphModule] = Once(self._make_base)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, batches: str = "auto", allow_factory: bool = False, key: bytes | None = None
    ) -> DynamicModel:
        """Load a bundle from a folder, or from the hub when there is no such folder; see :meth:`DynamicBundle.load`."""
        return cls(DynamicBundle.load(folder_of(source), allow_factory=allow_factory, key=key), batches=batches)

    def save_pretrained(self, folder: str | Path, *, key: bytes | None = None) -> None:
        """Write the bundle to a folder, signed where there is a key."""
        self.bundle.save(folder, key=key)

    def held(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    @property
    def details_of_a_prediction(self) -> dict[str, type]:
        return {"macs": float, "macs_share": float}

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.bundle.class_names

    @property
    def preprocessing(self) -> Preprocessing:
        return self.bundle.spec.preprocessing

    def base_model(self) -> BaseModel:
        return self.bundle.base()

    def _answer(self, images: Tensor) -> tuple[Tensor, None]:
        return self(images), None

    def _details(self, images: Tensor, answer: None) -> list[dict[str, Any]]:
        whole = self.network.base_macs
        return [{"macs": macs, "macs_share": macs / whole} for macs in self.choose(images).macs.tolist()]

    def forward(self, images: Tensor) -> Tensor:
        with RUNNING:
            return self.sparse(images)

    @torch.no_grad()
    def choose(self, images: Tensor) -> Chosen:
        """Logits, and what every input costs."""
        with self._observing, RUNNING:
            logits, observed = self.network.observe(images)
        keep = self.network.keep(observed)
        remaining = torch.stack([keep[:, site.units].double().mean(1) for site in self.network.sites], 1)
        return Chosen(logits, self.network.macs_of(keep), remaining)

    @property
    def base(self) -> fx.GraphModule:
        """The base model, prepared as it is measured."""
        return self._base[None]

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (type(self), self.bundle, self.sparse.batches)

    def __deepcopy__(self, memo: dict[int, Any]) -> DynamicModel:
        return _reopened(type(self), self.bundle, self.sparse.batches)  # the bundle itself never changes

    def _make_base(self, key: None) -> fx.GraphModule:
        base = self.bundle.base()
        return prepare(trace(base.module, base.spec.preprocessing))


def _reopened(kind: type[DynamicModel], bundle: DynamicBundle, batches: str) -> DynamicModel:
    """A copy of a model."""
    return kind(bundle, batches=batches)


@dataclass(frozen=True)
class DynamicEvaluation:
    """The base model beside the bundle on labelled images. ``loss`` is in percentage points, shares are fractions of 1.

    ``macs`` is how the MACs of an input are spread; ``macs_by_difficulty`` their mean over the quarters of the images
    from the easiest to the hardest for the base model (by its cross entropy); ``remaining`` the mean share of channels
    that stays, by site; ``empty_classes`` the classes of which there was no image.
    """

    images: int
    base_top1: float
    top1: float
    loss: float
    base_top5: float
    top5: float
    base_macs: int
    gate_macs: int
    macs: Spread
    macs_saved: float
    macs_by_difficulty: list[float]
    remaining: dict[str, float]
    empty_classes: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def evaluate(
    model: DynamicModel,
    images: LabelledImages,
    *,
    batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DynamicEvaluation:
    """Run base and bundle over labelled images, ``batch`` at once or as many as these are given in."""
    empty = images.warn_of_empty_classes("the evaluation")
    rows: dict[str, list[Tensor]] = {}
    done = 0
    for x, y in images.batches(model.bundle.spec.preprocessing, batch):
        base, chosen = model.base(x), model.choose(x)
        new = {
            "base": base.argmax(1) == y,
            "dynamic": chosen.logits.argmax(1) == y,
            "base5": _in_top5(base, y),
            "dynamic5": _in_top5(chosen.logits, y),
            "hard": F.cross_entropy(base, y, reduction="none"),
            "macs": chosen.macs,
            "remaining": chosen.remaining,
        }
        for name, value in new.items():
            rows.setdefault(name, []).append(value)
        done += len(y)
        if progress is not None:
            progress(done, len(images))
    columns = {name: torch.cat(parts) for name, parts in rows.items()}
    mean = {name: float(value.double().mean()) for name, value in columns.items()}
    quarters = columns["macs"][columns["hard"].argsort(stable=True)].chunk(4)
    network = model.network
    return DynamicEvaluation(
        images=done,
        base_top1=mean["base"],
        top1=mean["dynamic"],
        loss=100 * (mean["base"] - mean["dynamic"]),
        base_top5=mean["base5"],
        top5=mean["dynamic5"],
        base_macs=network.base_macs,
        gate_macs=network.gate_macs(),
        macs=Spread.of(columns["macs"]),
        macs_saved=1 - mean["macs"] / network.base_macs,
        macs_by_difficulty=[float(part.mean()) for part in quarters],
        remaining={s.name: float(columns["remaining"][:, i].mean()) for i, s in enumerate(network.sites)},
        empty_classes=empty,
    )


def _in_top5(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.topk(min(5, logits.shape[1]), 1).indices == y[:, None]).any(1)
