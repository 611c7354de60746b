"""Residual branches that became constants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn

from scopes import WHOLE, run_in, scope_of
from sinf.compress.compressor import Scope, compress
from sinf.compress.depth import BlockRemoval, branches
from sinf.compress.select import Budget
from sinf.data.images import LabelledImages
from sinf.engine.onnx_parts import graph_to_onnx
from sinf.errors import ConfigError
from sinf.graph.apply import apply
from sinf.graph.branches import alone_for, to_sum
from sinf.graph.cost import MacCount
from sinf.graph.delta import Constant, ConstantMap
from sinf.models import load_model
from sinf.pipelines.prune import Amount, PruneConfig, prune
from sinf.statistics import Statistics
from tiny import CLASSES, Chain, Mixed, Residual, conv, traced


def test_a_branch_is_all_that_only_its_sum_needs() -> None:
    scope, _ = scope_of(Mixed(["residual", "plain"]))
    (branch,) = branches(scope)
    node = next(node for node in scope.graph.graph.nodes if str(node.target) == branch.end)
    assert to_sum(scope.graph, node) is not None
    assert branch.end in branch.layers
    stem = next(node for node in scope.graph.graph.nodes if str(node.target).startswith("stem"))
    assert stem not in alone_for(node)


@torch.no_grad()
def test_a_sum_that_writes_over_what_it_reads() -> None:
    """``x.add_(branch)``: whoever reads x then reads the sum, with and without the branch."""
    scope, x = scope_of(Residual())
    layer = scope.graph.get_submodule("inner.1")
    value = torch.arange(len(layer.weight)).float()
    network = apply(scope.graph, scope.coupling, scope.start.keep, {"inner.1": Constant(value)})
    layer.register_forward_hook(lambda module, x, y: value[:, None, None].expand_as(y).clone())
    torch.testing.assert_close(network(x.clone()), scope.graph(x.clone()))


@torch.no_grad()
def test_without_a_branch_the_mean_of_it_is_added(tmp_path: Path) -> None:
    scope, x = scope_of(Mixed(["residual", "plain"]))
    (branch,) = branches(scope)
    part = compress(BlockRemoval(), [scope], [(Budget(0.99), WHOLE)], run_in(tmp_path, fit=False))[0]
    assert set(part.layers) == {branch.end}
    network = apply(scope.graph, scope.coupling, part.keep, part.layers)
    called = {str(node.target) for node in network.graph.nodes if node.op == "call_module"}
    assert called.isdisjoint(branch.layers)
    assert not any(isinstance(module, ConstantMap) for module in network.modules())
    seen: list[torch.Tensor] = []
    scope.graph.get_submodule(branch.end).register_forward_hook(lambda layer, x, y: seen.append(y))
    scope.graph(x)
    torch.testing.assert_close(part.layers[branch.end].value, seen[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)

    def mean(layer: nn.Module, x: object, y: torch.Tensor) -> torch.Tensor:
        return y.mean((0, 2, 3), keepdim=True).expand_as(y)

    scope.graph.get_submodule(branch.end).register_forward_hook(mean)
    torch.testing.assert_close(network(x), scope.graph(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_constant_that_is_no_branch_stays_a_layer() -> None:
    graph = traced(Chain())
    scope, x = scope_of(Chain())
    target = next(iter(scope.coupling.mixers.values()))
    layer = scope.graph.get_submodule(target)
    value = torch.arange(len(layer.weight)).float()
    network = apply(scope.graph, scope.coupling, scope.start.keep, {target: Constant(value)})
    layer.register_forward_hook(lambda module, x, y: value[:, None, None].expand_as(y).clone())
    torch.testing.assert_close(network(x), scope.graph(x))
    assert len(graph.graph.nodes) == len(network.graph.nodes)


def test_a_network_without_branches_is_refused_before_an_image_is_seen(tmp_path: Path) -> None:
    scope, _ = scope_of(Chain())
    with pytest.raises(ConfigError, match="takes residual branches"):
        compress(BlockRemoval(), [scope], [(Budget(0.9), WHOLE)], run_in(tmp_path))
    assert not list(tmp_path.glob("observed-*"))


def test_a_budget_below_all_branches_is_refused(tmp_path: Path) -> None:
    scope, _ = scope_of(Mixed(["residual", "plain"]))
    with pytest.raises(ConfigError, match="within reach of whole branches"):
        compress(BlockRemoval(), [scope], [(Budget(0.05), WHOLE)], run_in(tmp_path))


class Nested(nn.Module):
    """A branch, with a branch within it, beside a map that is a branch, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.outer, self.inner = conv(3, 4), conv(4, 4), conv(4, 4)
        self.end, self.last, self.beside = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.outer(x)
        y = self.last(y + self.end(self.inner(y)))
        return self.head((y + self.beside(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("first", ["end", "last", "beside"])
@torch.no_grad()
def test_branches_within_branches_are_counted_once(first: str, tmp_path: Path) -> None:
    """And of two branches that make one sum, one stays: nothing of the input would be left."""
    scope, _ = scope_of(Nested())
    assert {branch.end: set(branch.layers) for branch in branches(scope)} == {
        "end": {"inner.0", "end"}, "last": {"outer.0", "inner.0", "end", "last"}, "beside": {"beside"},
    }  # fmt: skip

    class Chosen(BlockRemoval):
        """The branch that loses least is named."""

        def observe(self, scope: Scope, statistics: Statistics) -> dict[str, torch.Tensor]:
            observed = super().observe(scope, statistics)
            return observed | {f"loss.{end}": torch.tensor(float(end != first)) for end in ("end", "last", "beside")}

    whole = scope.regions[WHOLE].macs.total()
    least = MacCount(scope.graph, scope.coupling).of({"stem.0", "beside", "head"}).total() / whole
    costs = []
    for budget in (0.99, 0.6, least):
        if first == "beside" and budget == least:
            with pytest.raises(ConfigError, match="within reach of whole branches"):
                compress(Chosen(), [scope], [(Budget(budget), WHOLE)], run_in(tmp_path))
            continue
        part = compress(Chosen(), [scope], [(Budget(budget), WHOLE)], run_in(tmp_path))[0]
        network = apply(scope.graph, scope.coupling, part.keep, part.layers)
        costs.append(MacCount(network, scope.coupling).total() / whole)
        assert costs[-1] <= budget
        assert not any(isinstance(module, ConstantMap) for module in network.modules())
    assert costs == sorted(costs, reverse=True)
    if first != "beside":
        assert costs[-1] == least


def test_a_second_budget_counts_what_went_for_the_first(tmp_path: Path) -> None:
    scope, _ = scope_of(Mixed(["residual", "residual", "plain"]))
    scope = replace(scope, regions=scope.regions | {"again": scope.regions[WHOLE]})
    run, rule = run_in(tmp_path, fit=False), Budget(0.9)
    (once,) = compress(BlockRemoval(), [scope], [(rule, WHOLE)], run)
    (twice,) = compress(BlockRemoval(), [scope], [(rule, WHOLE), (rule, "again")], run)
    assert once.layers.keys() == twice.layers.keys()
    assert len(once.layers) == 1


def test_a_shorter_network_is_pruned_saved_and_exported(tiny_images: LabelledImages, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = load_model("resnet20", classes=6)
    config = PruneConfig(Amount(macs=0.8), "depth", limits=None, images=24)
    pruned = prune(base, tiny_images, config, tmp_path / "work")
    convolutions = [sum(isinstance(m, nn.Conv2d) for m in each.module.modules()) for each in (base, pruned)]
    assert convolutions[1] <= convolutions[0] - 2
    path = tmp_path / "network.onnx"
    path.write_bytes(graph_to_onnx(pruned.module, base.spec.preprocessing.size, 5).SerializeToString())
    x = torch.randn(5, *base.spec.preprocessing.size)
    session = onnxruntime.InferenceSession(str(path))
    (answers,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(answers), pruned.module(x).detach(), rtol=1e-3, atol=1e-3)
