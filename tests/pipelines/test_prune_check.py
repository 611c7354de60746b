"""What channels that go are predicted to lose is checked group by group on held-out images, and corrected."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sinf.compress.channels import ChannelRemoval, Importances
from sinf.compress.compressor import Compressor, Predictions, Run, Scope
from sinf.compress.methods import COMPRESSORS
from sinf.criteria import make_criterion
from sinf.data.images import LabelledImages
from sinf.graph.network import Network, Part
from sinf.graph.trace import trace
from sinf.measure.delivery import Limits
from sinf.measure.timing import summary
from sinf.models import BaseModel, ModelSpec, load_model
from sinf.pipelines import prune as pruning
from sinf.pipelines import prune_check
from sinf.pipelines.prune import Amount, PruneConfig, Pruned, prune
from sinf.pipelines.prune_check import Check, far
from sinf.pipelines.whole import Method, Source
from sinf.statistics import Statistics
from sinf.storage.steps import StepStore
from tiny import COLOUR, NETWORKS, coloured_images, randomise

CONFIG = PruneConfig(
    Amount(macs=0.6), "channels", Limits(1.0, pairs=2, batches=(1,), keep_anyway=True), images=90, round_to=1
)
WRONG = 0.01  # of what a group is worth


@pytest.fixture(scope="module")
def base() -> BaseModel:
    torch.manual_seed(0)
    made = load_model("vgg11", classes=6, options={"width": 0.125})
    return BaseModel(randomise(made.module), made.spec)


@pytest.fixture(autouse=True)
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    latency = summary(torch.tensor([[10.0] * 9, [5.0] * 9]).double(), 1, 1)
    monkeypatch.setattr(pruning, "time_beside", lambda base, networks, *rest: dict.fromkeys(networks, (latency,)))


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch, base: BaseModel) -> str:
    """The name of a group of which a hundredth is predicted of what its channels are worth."""
    groups = Network(trace(base.module, base.spec.preprocessing)).groups_free()
    name, original = groups[2].name, ChannelRemoval.observe

    def observe(self: ChannelRemoval, scope: Any, statistics: Any) -> dict[str, Tensor]:
        found = original(self, scope, statistics)
        return found | {name: WRONG * found[name]}

    monkeypatch.setattr(ChannelRemoval, "observe", observe)
    return name


def divergence(base: BaseModel, pruned: Pruned, images: LabelledImages) -> float:
    with torch.no_grad():
        x = images.inputs(base.spec.preprocessing)[:]
        before, after = (model.module(x).log_softmax(1) for model in (base, pruned))
    return float((before.exp() * (before - after)).sum(1).mean())


def test_a_group_that_loses_more_than_predicted_keeps_more(
    base: BaseModel, wrong: str, tiny_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the same budget, on images that neither fitted nor checked anything; and it is said."""
    new = tiny_images.select(list(range(90, 120)))
    scoring, said = tiny_images.select(list(range(90))), list[str]()  # 18 are held out, 6 of which check
    checked = prune(base, scoring, CONFIG, tmp_path / "checked", notice=said.append)
    monkeypatch.setattr(prune_check, "far", lambda lost, predicted: {})
    plain = prune(base, scoring, CONFIG, tmp_path / "plain")
    assert divergence(base, checked, new) < 0.8 * divergence(base, plain, new)
    (line,) = [each for each in said if each.startswith("checked on 6 held-out images")]
    times = re.search(rf"{re.escape(wrong)} loses (\S+) times", line)
    assert times is not None
    assert float(times[1]) > 2


def test_what_is_no_better_on_held_out_images_is_not_taken(
    base: BaseModel, tiny_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Corrections that are nonsense change nothing."""
    images = coloured_images(tmp_path, 12, seed=1)
    groups = [group.name for group in Network(trace(base.module, base.spec.preprocessing)).groups_free()]
    plain = prune(base, tiny_images, replace(CONFIG, limits=None), tmp_path / "none")
    with monkeypatch.context() as patched:
        patched.setattr(prune_check, "far", lambda lost, predicted: dict(zip(groups, [0.01, 100.0] * 9, strict=False)))
        patched.setattr(Check, "divergence", lambda self, part: 1.0)
        same = prune(base, tiny_images, CONFIG, tmp_path / "checked", validation=images)
    for name, value in plain.module.state_dict().items():
        assert torch.equal(value, same.module.state_dict()[name])


@pytest.mark.parametrize("given", [False, True])
def test_images_that_check_fit_and_report_nothing(
    base: BaseModel, tiny_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    """Whether images are held out or given: three sets that share none, and the expected loss is of the third."""
    checking, reporting, fitting = set[bytes](), set[bytes](), set[bytes]()
    batches, answers = Check._answers, pruning.answers_of

    def checked(self: Check, part: Any) -> Tensor:
        checking.update(self.images.digests())
        return batches(self, part)

    def reported(network: Any, images: LabelledImages, *rest: Any) -> Tensor:
        reporting.update(images.digests())
        return answers(network, images, *rest)

    def fitted(*words: Any, **more: Any) -> Source:
        made = Source(*words, **more)
        fitting.update(made.images.digests())
        return made

    monkeypatch.setattr(Check, "_answers", checked)
    monkeypatch.setattr(pruning, "answers_of", reported)
    monkeypatch.setattr(pruning, "Source", fitted)
    validation = coloured_images(tmp_path / "validation", 60, seed=1) if given else None
    made = prune(base, tiny_images, CONFIG, tmp_path, validation=validation)
    assert made.expected is not None
    assert made.expected.images == len(reporting) == (40 if given else 12)
    assert len(checking) == (20 if given else 6)
    assert len(fitting) == 90
    assert not checking & reporting
    assert not fitting & (checking | reporting)


def test_too_few_held_out_images_check_nothing(
    base: BaseModel, tiny_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them report."""
    monkeypatch.setattr(Check, "divergence", lambda self, part: pytest.fail("it was checked"))
    made = prune(base, tiny_images, CONFIG, tmp_path / "work", validation=coloured_images(tmp_path, 2, seed=1))
    assert made.expected is not None
    assert made.expected.images == 2


def test_it_is_checked_once_a_folder(
    base: BaseModel, wrong: str, tiny_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scoring, said = tiny_images.select(list(range(90))), list[str]()
    first = prune(base, scoring, CONFIG, tmp_path)
    monkeypatch.setattr(Check, "divergence", lambda self, part: pytest.fail("it was checked again"))
    again = prune(base, scoring, CONFIG, tmp_path, notice=said.append)
    assert all(torch.equal(value, again.module.state_dict()[name]) for name, value in first.module.state_dict().items())
    assert [line.startswith("checked on") for line in said].count(True) == 1


class Stranger(Compressor):
    """Removes channels as ``inner`` does, by another name."""

    name = "stranger"

    def __init__(self, inner: ChannelRemoval) -> None:
        self.inner, self.needs = inner, inner.needs

    def identity(self) -> dict[str, Any]:
        return self.inner.identity()

    @property
    def predictions(self) -> Predictions:
        return Strangers(self.inner)

    def observe(self, scope: Scope, statistics: Statistics) -> dict[str, Tensor]:
        return self.inner.observe(scope, statistics)

    def plan(self, rules: Any, scopes: Any, observed: Any) -> list[Tensor]:
        return self.inner.plan(rules, scopes, observed)

    def make(self, scope: Scope, plan: Tensor, observed: Any, run: Run) -> Part:
        return self.inner.make(scope, plan, observed, run)


class Strangers(Importances):
    def corrected(self, factors: Mapping[str, float]) -> Stranger:  # type: ignore[override]
        return Stranger(super().corrected(factors))


def test_whatever_predicts_is_checked(
    base: BaseModel, wrong: str, tiny_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compressor is asked for its predictions, and never for its name or kind."""
    entry = (Stranger, lambda options: Stranger(ChannelRemoval(make_criterion(options.criterion_name), 1)))
    monkeypatch.setitem(COMPRESSORS, Stranger.name, entry)
    scoring, said = tiny_images.select(list(range(90))), list[str]()
    made = [
        prune(base, scoring, replace(CONFIG, method=name), tmp_path / name, notice=said.append).module.state_dict()
        for name in ("channels", "stranger")
    ]
    assert [line.startswith("checked on 6 held-out images") for line in said].count(True) == 2
    assert all(torch.equal(value, made[1][name]) for name, value in made[0].items())


@pytest.mark.parametrize("change", [
    {"method": "ranks", "amount": Amount(macs=0.8)}, {"amount": Amount(ratio=0.2)}, {"limits": None},
])  # fmt: skip
def test_what_is_not_checked(
    base: BaseModel,
    tiny_images: LabelledImages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
) -> None:
    """Ranks, which are predicted well; ratios, which no prediction spends; and what has no held-out images."""
    monkeypatch.setattr(Check, "divergence", lambda self, part: pytest.fail("it was checked"))
    prune(base, tiny_images, replace(CONFIG, **change), tmp_path)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_group_of_every_network_can_go_alone(name: str, tiny_images: LabelledImages, tmp_path: Path) -> None:
    """What it loses is a number, little where little goes, and nothing where nothing does."""
    module = randomise(NETWORKS[name]())
    base = BaseModel(module, ModelSpec("own:network", 6, COLOUR))
    network, images = Network(trace(module, COLOUR)), tiny_images.select(list(range(40)))
    check = Check(network, images, COLOUR, lambda done, total: None)
    source = Source(base, network, images, 0, 1 << 30, StepStore(tmp_path), lambda step, done, total: None)
    method = Method(source, ChannelRemoval(make_criterion("l1"), 1))
    predictions = method.compressor.predictions
    assert predictions is not None
    sums = check._sums(method, predictions, images)
    assert predictions.components(method.scope) == [group.name for group in network.groups_free()]
    for group in network.groups_free():
        keep = network.coupling.keep_all()
        assert check.divergence(predictions.alone(method.scope, keep, group.name, sums)) == pytest.approx(0, abs=1e-5)
        if group.size > 1:
            keep[group.units[0]] = False
            lost = check.divergence(predictions.alone(method.scope, keep, group.name, sums))
            assert 0 <= lost + 1e-5 < 10


@given(st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=12), st.floats(0.01, 100))
def test_what_is_predicted_in_proportion_is_not_far(predicted: list[float], scale: float) -> None:
    """The unit of a criterion is its own."""
    named = {str(number): value for number, value in enumerate(predicted)}
    assert far({name: scale * value for name, value in named.items()}, named) == {}


@given(st.integers(4, 16), st.floats(6.0, 50.0))
def test_what_is_far_is_corrected_by_as_much_up_to_four_times(count: int, times: float) -> None:
    predicted = {str(number): 1.0 for number in range(count)}
    found = far(predicted | {"0": times}, predicted)
    assert 2 < found["0"] <= 4
    assert all(0.25 <= found[name] < 1 for name in predicted if name != "0")
    assert far(predicted | {"0": -1.0}, predicted)["0"] == pytest.approx(0.25)
