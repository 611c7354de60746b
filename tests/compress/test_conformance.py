"""Laws that every compressor passes, on every tiny network, and so does one that was written outside the package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import sparsity
from outsider import outsider
from scopes import IMAGES, WHOLE, limited, run_in, scope_of
from sinf.bundle.semantic import Bundle
from sinf.compress.channels import ChannelRemoval
from sinf.compress.compressor import Compression, Compressor, Rule, Run, Scope, compress
from sinf.compress.low_rank import compressor as low_rank
from sinf.compress.methods import COMPRESSORS, make_compressor, register
from sinf.compress.select import Budget, Schedule
from sinf.criteria import DCS, make_criterion
from sinf.data.images import LabelledImages
from sinf.errors import ConfigError, VerificationError
from sinf.graph.apply import apply
from sinf.graph.cost import MacCount
from sinf.graph.delta import Weights
from sinf.graph.network import Part
from sinf.models import load_model
from sinf.pipelines.prune import Amount, PruneConfig, prune
from sinf.routing.router import part_name
from tiny import COUPLED, NETWORKS, Chain, Mixed

OPTIONS = SimpleNamespace(criterion_name="residual", round_to=1)
OUTSIDE = sparsity.TwoOfFour.name
NAMES = (*COMPRESSORS, OUTSIDE)
both = pytest.mark.parametrize("name", NAMES)
#: Sums with gradients cannot be taken where a sum writes over what a ReLU made, nor could such a network be trained.
TRAINABLE = {name: made for name, made in {**NETWORKS, **COUPLED}.items() if name != "Residual"}
TRAINABLE["branches"] = lambda: Mixed(["residual", "residual", "plain"])
branches = TRAINABLE["branches"]
BRANCHED = ("residual", "branches")
#: Depth takes residual branches, and nothing else; 2:4 sparsity layers that read a multiple of four channels, and in
#: these networks enough of them for every budget here.
ONLY = {"depth": BRANCHED, OUTSIDE: BRANCHED}
CASES = [(name, network) for name in NAMES for network in ONLY.get(name, TRAINABLE)]
cases = pytest.mark.parametrize(("name", "network"), CASES)
every = pytest.mark.parametrize("network", [*TRAINABLE])


@pytest.fixture(autouse=True)
def sparse() -> Iterator[str]:
    """2:4 sparsity, as examples/sparsity.py has it, known by its name for one test."""
    with outsider() as name:
        yield name


def network_of(scope: Scope, part: Part) -> torch.fx.GraphModule:
    return apply(scope.graph, scope.coupling, part.keep, part.layers)


def cost(scope: Scope, part: Part, name: str = "") -> float:
    """MACs, as the compressor of that name counts them: to 2:4 sparsity a sparse layer is half of one."""
    network = network_of(scope, part)
    count = MacCount(network, scope.coupling)
    halves = [
        macs for target, macs in count.by_layer().items()
        if name == OUTSIDE and sparsity.is_sparse(network.get_submodule(target))
    ]  # fmt: skip
    return count.total() - sum(halves) / 2


@cases
@torch.no_grad()
def test_a_full_budget_is_the_identity(name: str, network: str, tmp_path: Path) -> None:
    scope, x = scope_of(TRAINABLE[network]())
    part = compress(make_compressor(name, OPTIONS), [scope], [(Budget(1.0), WHOLE)], run_in(tmp_path))[0]
    assert not part.changes
    torch.testing.assert_close(network_of(scope, part)(x), scope.graph(x))


@cases
@torch.no_grad()
def test_what_is_stored_is_what_was_made(name: str, network: str, tmp_path: Path) -> None:
    scope, x = scope_of(TRAINABLE[network]())
    part = compress(make_compressor(name, OPTIONS), [scope], [(Budget(0.8), WHOLE)], run_in(tmp_path))[0]
    stored = Part.from_tensors(part.to_tensors(scope.coupling, "", torch.float32), scope.coupling, "")
    assert part.changes
    assert torch.equal(network_of(scope, stored)(x), network_of(scope, part)(x))


@cases
def test_cost_falls_with_the_budget(name: str, network: str, tmp_path: Path) -> None:
    scope, _ = scope_of(TRAINABLE[network]())
    compressor, run = make_compressor(name, OPTIONS), run_in(tmp_path, fit=False)
    whole = scope.regions[WHOLE].macs.total()
    costs = []
    for budget in (0.9, 0.8, 0.75):
        part = compress(compressor, [scope], [(Budget(budget), WHOLE)], run)[0]
        costs.append(cost(scope, part, name))
        assert costs[-1] <= budget * whole
    assert costs == sorted(costs, reverse=True)


@both
def test_two_scopes_share_a_budget(name: str, tmp_path: Path) -> None:
    """The mean cost is within it, where a scope counts by its share of the inputs."""
    scopes = [
        replace(scope_of(branches(), seed)[0], name=f"network {seed}", share=share)
        for seed, share in ((0, 0.8), (1, 0.2))
    ]
    work = Compression(make_compressor(name, OPTIONS), scopes, [(Budget(0.7), WHOLE)], run_in(tmp_path, fit=False))
    spent = sum(scope.share * cost(scope, work.part(index), name) for index, scope in enumerate(scopes))
    assert spent <= 0.7 * sum(scope.share * scope.regions[WHOLE].macs.total() for scope in scopes)


@pytest.mark.parametrize("name", [*COMPRESSORS])  # 2:4 sparsity fits no weights
@torch.no_grad()
def test_weights_make_up_for_what_went(name: str, tmp_path: Path) -> None:
    """Fitted, it answers more like the network than it does unfitted."""
    scope, x = scope_of(branches())
    compressor, rules = make_compressor(name, OPTIONS), [(Budget(0.6), WHOLE)]

    def difference(fit: bool) -> float:
        part = compress(compressor, [scope], list(rules), run_in(tmp_path, fit))[0]
        return float((network_of(scope, part)(x) - scope.graph(x)).square().mean())

    assert difference(True) < difference(False)


def counted(scope: Scope, x: Tensor) -> tuple[Scope, list[int]]:
    """The same scope, and the number of images of every pass that is made of it."""
    passes: list[int] = []

    def batches() -> list[tuple[Tensor, Tensor]]:
        passes.append(len(x))
        return [(x, torch.zeros(len(x), dtype=torch.int64))]

    return replace(scope, batches=batches), passes


@both
def test_what_was_observed_serves_every_budget(name: str, tmp_path: Path) -> None:
    scope, x = scope_of(branches())
    looked, passes = counted(scope, x)
    for budget in (0.9, 0.7):
        compress(make_compressor(name, OPTIONS), [looked], [(Budget(budget), WHOLE)], run_in(tmp_path, fit=False))
    assert len(passes) == 1


def of_many(tmp_path: Path, **given: object) -> tuple[list[Scope], list[list[int]], Run]:
    """Three scopes, of which there are many, the passes of each, and a run that a test may change."""
    torch.manual_seed(0)
    scopes, passes = list[Scope](), list[list[int]]()
    for number in range(3):
        scope, x = scope_of(branches(), number)
        looked, mine = counted(replace(scope, name=f"cluster-{number}", seed=number, lasting=False, share=1 / 3), x)
        scopes.append(looked)
        passes.append(mine)
    return scopes, passes, replace(run_in(tmp_path, fit=False), **given)  # type: ignore[arg-type]


def parts_of(name: str, scopes: list[Scope], run: Run, together: bool) -> list[Part]:
    """Of two budgets, each scope's own or one of all, every time by a new compressor."""
    parts = []
    for budget in (0.9, 0.7):
        rules: list[Rule] = [(Budget(budget), WHOLE)]
        for some in [scopes] if together else [[scope] for scope in scopes]:
            parts += compress(make_compressor(name, OPTIONS), some, rules, run)
    return parts


@pytest.mark.parametrize("together", [False, True], ids=["own", "together"])
@both
def test_one_pass_of_each_of_many_scopes_serves_every_budget(name: str, together: bool, tmp_path: Path) -> None:
    scopes, passes, run = of_many(tmp_path)
    first = parts_of(name, scopes, run, together)
    assert passes == [[IMAGES]] * 3
    for path in tmp_path.rglob("*.safetensors"):  # damaged, they are collected again
        path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    again = parts_of(name, scopes, run, together)
    assert passes == [[IMAGES] * 2] * 3
    for one, other in zip(first, again, strict=True):
        mine, theirs = (each.to_tensors(scopes[0].coupling, "", torch.float32) for each in (one, other))
        assert all(torch.equal(value, theirs[key]) for key, value in mine.items())


@pytest.mark.parametrize("together", [False, True], ids=["own", "together"])
def test_what_many_scopes_keep_on_disk_is_bounded(together: bool, tmp_path: Path) -> None:
    """What finds no room is collected again, which makes the same, and is said once."""
    scopes, passes, run = of_many(tmp_path / "all")
    kept = parts_of("ranks", scopes, run, together)
    one = max(path.stat().st_size for path in (tmp_path / "all").rglob("*.safetensors"))
    told: list[str] = []
    scopes, passes, run = of_many(tmp_path / "some", kept_bytes=3 * one - 1, notice=told.append)
    collected = parts_of("ranks", scopes, run, together)
    assert passes[:2] == [[IMAGES]] * 2
    assert len(passes[2]) > 1
    assert sum(path.stat().st_size for path in (tmp_path / "some").rglob("*.safetensors")) < 3 * one
    assert len([text for text in told if "collected again" in text]) == 1
    for first, other in zip(kept, collected, strict=True):
        mine, theirs = (each.to_tensors(scopes[0].coupling, "", torch.float32) for each in (first, other))
        assert all(torch.equal(value, theirs[key]) for key, value in mine.items())


def test_a_plan_of_many_scopes_holds_few_numbers_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a rank loses, a number a channel: no matrices, which only the scope that is solved for needs."""
    scopes, _, run = of_many(tmp_path)
    held: list[Tensor] = []
    choose = low_rank.choose_ranks_together

    def chosen(budget: Budget, parts: list, *rest: object) -> list:
        held.extend(
            value for _, losses in parts for each in losses.values() for value in vars(each).values()
            if isinstance(value, Tensor)
        )  # fmt: skip
        return choose(budget, parts, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(low_rank, "choose_ranks_together", chosen)
    Compression(make_compressor("ranks", OPTIONS), scopes, [(Budget(0.7), WHOLE)], run).plans  # noqa: B018
    assert len(held) >= 9
    assert all(value.ndim == 1 and value.untyped_storage().nbytes() == value.nbytes for value in held)


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1]], ids=["forwards", "backwards"])
@pytest.mark.parametrize("network", BRANCHED)
def test_one_pass_serves_those_that_look_at_the_same_network(
    order: tuple[str, ...], network: str, tmp_path: Path
) -> None:
    """And each finds what it finds alone."""
    scope, x = scope_of(TRAINABLE[network]())
    looked, passes = counted(scope, x)
    rules = [(Budget(0.8), WHOLE)]
    compressors = [make_compressor(name, OPTIONS) for name in order]
    together = replace(run_in(tmp_path / "together"), beside=tuple(compressors))
    parts = [compress(each, [looked], list(rules), together)[0] for each in compressors]
    assert len(passes) == 1
    for name, part in zip(order, parts, strict=True):
        alone = compress(make_compressor(name, OPTIONS), [looked], list(rules), run_in(tmp_path / name))[0]
        one, other = (each.to_tensors(scope.coupling, "", torch.float32) for each in (alone, part))
        assert one.keys() == other.keys()
        for key in one:
            torch.testing.assert_close(one[key], other[key])
    assert len(passes) == 1 + len(order)


def test_channels_that_are_pooled_need_a_pass_of_their_own(tmp_path: Path) -> None:
    scope, x = scope_of(branches())
    looked, passes = counted(scope, x)
    compressors = [ChannelRemoval(DCS(pool=2)), make_compressor("ranks", OPTIONS)]
    run = replace(run_in(tmp_path), beside=tuple(compressors))
    for each in compressors:
        Compression(each, [looked], [], run).observed(looked)
    assert len(passes) == 2


def test_criteria_with_other_options_observe_anew(tmp_path: Path) -> None:
    scope, _ = scope_of(branches())
    run = run_in(tmp_path)

    def importance(criterion: DCS) -> dict[str, Tensor]:
        return Compression(ChannelRemoval(criterion), [scope], [], run).observed(scope)

    plain, pooled, again = importance(DCS()), importance(DCS(pool=2)), importance(DCS())
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert all(torch.equal(again[name], scores) for name, scores in plain.items())
    assert any(not torch.allclose(pooled[name], scores, rtol=0.01) for name, scores in plain.items())


@both
@pytest.mark.parametrize("members", [[1, 4], [5]])
@torch.no_grad()
def test_a_cluster_has_answers_for_its_classes_alone(name: str, members: list[int], tmp_path: Path) -> None:
    """Those that the network has for them, where all may stay; and a budget is a share of the limited network."""
    whole, x = scope_of(branches())
    scope = limited(whole, members)
    compressor, run = make_compressor(name, OPTIONS), run_in(tmp_path)
    for budget in (1.0, 0.8):
        part = compress(compressor, [scope], [(Budget(budget), WHOLE)], run)[0]
        assert cost(scope, part, name) <= budget * cost(scope, scope.start)
        answers = network_of(scope, part)(x)
        assert answers.shape == (len(x), len(members))
        if budget == 1:
            torch.testing.assert_close(answers, scope.graph(x)[:, members])
        else:
            assert not torch.equal(answers, scope.graph(x)[:, members])


@both
@torch.no_grad()
def test_clusters_share_a_budget(name: str, tmp_path: Path) -> None:
    scopes = [
        replace(limited(scope_of(branches())[0], members), share=share)
        for members, share in (([0, 2, 3], 0.7), ([1, 4, 5], 0.3))
    ]
    work = Compression(make_compressor(name, OPTIONS), scopes, [(Budget(0.8), WHOLE)], run_in(tmp_path))
    spent = sum(scope.share * cost(scope, work.part(index), name) for index, scope in enumerate(scopes))
    assert spent <= 0.8 * sum(scope.share * cost(scope, scope.start) for scope in scopes)


#: What may not come after what, and what is said then: the masked network of channel removal is the base model's, and
#: of two layers in the place of one each would become two again.
REFUSED = {(first, "channels"): "as in the base model .* remove channels first" for first in NAMES}
REFUSED["ranks", "ranks"] = "becomes two once .* give one budget"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("first", "second"), [*product(NAMES, NAMES)], ids="-".join)
@torch.no_grad()
def test_a_compressor_starts_from_what_another_left(first: str, second: str, seed: int, tmp_path: Path) -> None:
    """Both are in one part, and the second's budget is a share of what it was given."""
    torch.manual_seed(seed)
    scope, x = scope_of(Mixed(["residual", "residual", "plain"], 8), seed)
    options, run = SimpleNamespace(criterion_name="residual", round_to=4), run_in(tmp_path)
    given = compress(make_compressor(first, options), [scope], [(Budget(0.85), WHOLE)], run)[0]
    started = replace(scope, name="started", start=given)
    compressor, rules = make_compressor(second, options), [(Budget(0.85), WHOLE)]
    if (first, second) in REFUSED:
        with pytest.raises(ConfigError, match=REFUSED[first, second]):
            compress(compressor, [started], rules, run)
        return
    part = compress(compressor, [started], rules, run)[0]
    assert torch.equal(part.keep, given.keep)
    assert part.layers.keys() >= given.layers.keys()
    assert cost(scope, part, second) <= 0.85 * cost(scope, given, second)
    assert cost(scope, part) <= cost(scope, given)
    stored = Part.from_tensors(part.to_tensors(scope.coupling, "", torch.float32), scope.coupling, "")
    assert torch.equal(network_of(scope, stored)(x), network_of(scope, part)(x))


# ---- one from outside


def is_sparse(weight: Tensor) -> bool:
    """Whether of every four neighbouring inputs at least two are zero."""
    return bool((weight.transpose(1, -1).unflatten(-1, (-1, 4)) == 0).sum(-1).ge(2).all())


@every
@torch.no_grad()
def test_an_outsider_makes_sparse_what_can_be(sparse: str, network: str, tmp_path: Path) -> None:
    scope, _ = scope_of(TRAINABLE[network]())
    compressor, run = make_compressor(sparse, OPTIONS), run_in(tmp_path)
    able = [
        target for target in scope.coupling.mixers.values() if sparsity.can_be_sparse(scope.graph.get_submodule(target))
    ]
    if not able:
        with pytest.raises(ConfigError, match="within reach"):
            compress(compressor, [scope], [(Budget(0.9999), WHOLE)], run)
        return
    part = compress(compressor, [scope], [(Budget(0.9999), WHOLE)], run)[0]
    assert part.layers
    assert all(is_sparse(layer.weight) for layer in part.layers.values() if isinstance(layer, Weights))


def test_an_outsider_prunes(sparse: str, tiny_images: LabelledImages, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = load_model("vgg11", classes=6, options={"width": 0.125})
    pruned = prune(base, tiny_images, PruneConfig(Amount(macs=0.6), sparse, limits=None), tmp_path)
    weights = [layer.weight for layer in pruned.module.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert any(is_sparse(weight) for weight in weights if weight.shape[1] % 4 == 0)


def test_an_outsider_is_in_every_part_of_a_bundle(built_sparse: Path) -> None:
    """Built, stored, loaded and run in every engine: tests/engine/test_conformance.py."""
    bundle = Bundle.load(built_sparse)
    assert all(bundle.parts[part_name(cluster)].layers for cluster in range(len(bundle.clusters)))
    for part in bundle.parts.values():
        assert all(is_sparse(layer.weight) for layer in part.layers.values() if isinstance(layer, Weights))


@pytest.mark.parametrize("wrong", [Schedule(0.1, 0.5)])
def test_ratios_are_for_channels(sparse: str, wrong: Schedule, tmp_path: Path) -> None:
    scope, _ = scope_of(Chain())
    for name in ("ranks", sparse):
        with pytest.raises(ConfigError, match="takes a budget"):
            compress(make_compressor(name, OPTIONS), [scope], [(wrong, WHOLE)], run_in(tmp_path))


def test_names_are_taken_once(sparse: str) -> None:
    class Other(ChannelRemoval):
        name = "ranks"

    with pytest.raises(ConfigError, match="a name of its own"):
        register(Other, lambda options: Other(make_criterion(options.criterion_name)))
    with pytest.raises(ConfigError, match="no such method"):
        make_compressor("magic", OPTIONS)


def test_what_answers_no_numbers_is_refused(tmp_path: Path) -> None:
    class Broken(Compressor):
        name = "broken"

        def observe(self, scope: Scope, statistics: object) -> dict[str, Tensor]:
            return {}

        def plan(self, rules: list[Rule], scopes: list[Scope], observed: object) -> list[None]:  # type: ignore[override]
            return [None for _ in scopes]

        def make(self, scope: Scope, plan: None, observed: object, run: Run) -> Part:
            target = next(iter(scope.coupling.mixers.values()))
            weight = scope.graph.get_submodule(target).weight
            return Part(scope.start.keep, {target: Weights(torch.full_like(weight, torch.nan))})

    scope, _ = scope_of(Chain())
    with pytest.raises(VerificationError, match="finite"):
        compress(Broken(), [scope], [(Budget(0.9), WHOLE)], run_in(tmp_path))
