"""The smallest budget within a limit of the loss: the search, and what ``prune`` hands out or refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from program import Program
from sinf.data.images import LabelledImages
from sinf.errors import ConfigError, DataError, DoesNotPayError
from sinf.graph.trace import trace
from sinf.measure.delivery import Limits
from sinf.measure.timing import Latency, summary
from sinf.models import BaseModel, load_model
from sinf.pipelines import prune as pruning
from sinf.pipelines.comparison import Size
from sinf.pipelines.prune import Amount, PruneConfig, prune
from sinf.pipelines.prune_search import each, fastest, raised, smallest_budget
from tiny import coloured_images, randomise


@given(st.floats(0.0, 0.95), st.floats(0, 10))
def test_the_smallest_budget_within_the_limit(edge: float, limit: float) -> None:
    """Of a loss that falls with the budget, to the width of the last step."""
    found = smallest_budget(lambda budget: limit if budget >= edge else limit + 1, limit, low=0.0, trials=6)
    assert found is not None
    assert found.budget >= edge
    assert found.budget - edge <= 2**-6
    assert found.points <= limit


def test_no_budget_within_the_limit() -> None:
    assert smallest_budget(lambda budget: 5.0, 1.0) is None


def test_a_budget_out_of_reach_is_too_small() -> None:
    def loss(budget: float) -> float:
        if budget < 0.6:
            raise ConfigError("within reach")
        return 0.0

    found = smallest_budget(loss, 1.0)
    assert found is not None
    assert 0.6 <= found.budget < 0.63


@given(st.floats(0.1, 1.0), st.integers(0, 4))
def test_a_budget_is_raised_a_little(budget: float, needed: int) -> None:
    """At most twice, by four per cent, and never above the whole network."""
    found = raised(lambda macs: 0.0 if macs >= min(1.0, budget + 0.04 * needed) else 2.0, budget, 1.0)
    if needed < 3 or budget + 0.08 >= 1:
        assert found is not None
        assert found >= min(1.0, budget + 0.04 * needed)
        assert found <= min(1.0, budget + 0.08)
    else:
        assert found is None


def test_only_the_fastest_is_finished_where_it_stays_as_it_was() -> None:
    finished: list[int] = []

    def finish(one: int) -> int:
        finished.append(one)
        return one

    assert fastest([3, 1, 2], finish, lambda ones, done: sorted(ones)) == 1
    assert finished == [1]


def test_all_are_finished_where_the_fastest_becomes_slower() -> None:
    asked: list[bool] = []

    def order(ones: list[int], done: bool) -> list[int]:
        asked.append(done)
        return sorted(ones)

    assert fastest([3, 1, 2], lambda one: one + 10 if one == 1 else one, order) == 2
    assert asked == [False, True]


def test_what_loses_too_much_when_finished_is_passed_over() -> None:
    def finish(one: int) -> int:
        if one < 3:
            raise DoesNotPayError(f"{one} loses too much", got="much", remedy="take less", numbers={})
        return one

    assert fastest([3, 1, 2], finish, lambda ones, done: sorted(ones)) == 3
    with pytest.raises(DoesNotPayError, match="1 loses"):
        fastest([1, 2], finish, lambda ones, done: sorted(ones))


def test_what_can_be_found_for_none_says_why() -> None:
    def find(one: int) -> int:
        if one < 3:
            raise ConfigError(f"{one} is too small")
        return one

    assert each([1, 4, 2, 3], find) == [4, 3]
    with pytest.raises(ConfigError, match="1 is too small"):
        each([1, 2], find)


LIMITS = Limits(max_loss=0.2, pairs=2, batches=(1,))
CONFIG = PruneConfig(Amount(macs=0.7), "channels", LIMITS, images=90, round_to=1)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    torch.manual_seed(0)
    made = load_model("resnet20", classes=6, options={"width": 0.5})
    return BaseModel(randomise(made.module), made.spec)


@pytest.fixture(scope="module")
def validation(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    """Images of which the base model is right everywhere, so that a network can only lose; of some it answers another
    class than of most."""
    images = coloured_images(tmp_path_factory.mktemp("validation"), 360, seed=1)
    x = torch.cat([x for x, _ in images.batches(base.spec.preprocessing)])
    with torch.no_grad():
        images.labels = trace(base.module, base.spec.preprocessing)(x).argmax(1)
    usual = images.labels == images.labels.mode().values
    return images.select([*(~usual).nonzero().flatten().tolist(), *usual.nonzero().flatten().tolist()][:60])


def play_times(monkeypatch: pytest.MonkeyPatch, saved: dict[str, float]) -> None:
    """Time is played, so that no test depends on the machine: shares saved by name, "ours" for what is delivered."""

    def beside(base: object, networks: dict, *rest: object) -> dict[str, tuple[Latency, ...]]:
        return {
            name: (summary(torch.tensor([[10.0] * 9, [10 * (1 - saved[name])] * 9]).double(), 1, 1),)
            for name in networks
        }

    monkeypatch.setattr(pruning, "time_beside", beside)


def test_what_loses_too_much_is_not_handed_out(
    base: BaseModel, tiny_images: LabelledImages, validation: LabelledImages, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    play_times(monkeypatch, {"ours": 0.3})
    config = replace(CONFIG, amount=Amount(macs=0.15), limits=replace(LIMITS, max_loss=0.1))
    with pytest.raises(DoesNotPayError, match="no more than max_loss") as refused:
        prune(base, tiny_images, config, tmp_path, validation=validation)
    numbers = refused.value.numbers
    assert numbers["expected_loss"]["points"] > 10
    assert numbers["expected_loss"]["images"] == 40  # the others checked what was predicted
    assert "points are lost with" in str(refused.value)  # a budget that would do
    kept = prune(base, tiny_images, replace(config, limits=replace(config.limits, keep_anyway=True)), tmp_path,
                 validation=validation)  # fmt: skip
    assert kept.expected is not None
    assert kept.expected.to_json() == numbers["expected_loss"]


def test_a_budget_that_is_proposed_keeps_the_limit(
    base: BaseModel, tiny_images: LabelledImages, validation: LabelledImages, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    play_times(monkeypatch, {"ours": 0.3})
    config = replace(CONFIG, amount=Amount(ratio=0.8), limits=replace(LIMITS, max_loss=0.1))
    with pytest.raises(DoesNotPayError) as refused:
        prune(base, tiny_images, config, tmp_path, validation=validation)
    share = float(str(refused.value.remedy).split(" % of the channels")[0].split()[-1]) / 100
    assert 0 < share < 0.8
    made = prune(base, tiny_images, replace(config, amount=Amount(ratio=share)), tmp_path, validation=validation)
    assert made.expected is not None
    assert made.expected.points <= 10


@pytest.mark.parametrize("saved", [-0.1, 0.0])
def test_what_is_not_faster_is_not_handed_out(
    base: BaseModel, tiny_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: float
) -> None:
    play_times(monkeypatch, {"ours": saved})
    config = replace(CONFIG, amount=Amount(macs=0.9), limits=replace(LIMITS, max_loss=1.0))
    with pytest.raises(DoesNotPayError, match="must be faster") as refused:
        prune(base, tiny_images, config, tmp_path)
    assert refused.value.numbers["times"][0]["time_saved"] == pytest.approx(saved)
    assert prune(base, tiny_images, replace(config, limits=replace(config.limits, keep_anyway=True)), tmp_path).times


def test_auto_takes_the_method_that_loses_less(
    base: BaseModel, tiny_images: LabelledImages, validation: LabelledImages, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    play_times(monkeypatch, {"ours": 0.3})
    free = replace(CONFIG, amount=Amount(macs=0.4), limits=replace(LIMITS, keep_anyway=True))
    made = {
        method: prune(base, tiny_images, replace(free, method=method), tmp_path, validation=validation)
        for method in ("channels", "ranks", "auto")
    }
    losses = {method: (one.expected.points, one.expected.disagreement) for method, one in made.items() if one.expected}
    assert losses["channels"] != losses["ranks"]
    assert made["auto"].method == min(("channels", "ranks"), key=losses.__getitem__)
    assert losses["auto"] == losses[made["auto"].method]


def test_without_a_budget_as_much_goes_as_the_limit_allows(
    base: BaseModel, tiny_images: LabelledImages, validation: LabelledImages, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    play_times(monkeypatch, {"ours": 0.3, "channels": 0.2, "ranks": 0.4})
    sizes = []
    for limit in (0.1, 0.6):
        config = replace(CONFIG, amount=Amount(weight_cost=0), method="auto", limits=replace(LIMITS, max_loss=limit))
        made = prune(base, tiny_images, config, tmp_path, validation=validation)
        assert made.expected is not None
        assert made.expected.points <= 100 * limit
        assert made.method == "ranks"  # the faster of the two
        sizes.append(Size.of(made).macs / Size.of(base).macs)
    assert sizes[1] < sizes[0] < 1


def test_nothing_within_the_limit_is_said(
    base: BaseModel, tiny_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "smallest_budget", lambda *a, **k: None)
    with pytest.raises(DoesNotPayError, match="within the limit of the loss"):
        prune(base, tiny_images, replace(CONFIG, amount=Amount(), method="auto"), tmp_path)


def test_without_limits_there_is_nothing_to_choose_by() -> None:
    for wrong in ({"amount": Amount()}, {"method": "auto"}):
        with pytest.raises(ConfigError, match="held out"):
            replace(CONFIG, limits=None, **wrong)
    with pytest.raises(ConfigError, match="no such method"):
        replace(CONFIG, method="magic")
    assert replace(CONFIG, method="auto", criterion="l1").methods == ("channels",)
    assert replace(CONFIG, method="auto", amount=Amount(ratio=0.1)).methods == ("channels",)


def test_validation_images_are_no_scoring_images(base: BaseModel, tiny_images: LabelledImages, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"validation images must not be among the scoring images.*disjoint splits"):
        prune(base, tiny_images, CONFIG, tmp_path, validation=tiny_images.select(list(range(30))))


def test_the_command_says_what_its_images_chose_and_what_was_seen(
    sinf: Program, data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where method and budget are left open, the held-out images chose them; test images that decided are told."""
    play_times(monkeypatch, {"ours": 0.3, "channels": 0.2, "ranks": 0.4})
    words = [
        "prune", "vgg11", "--weights", weights, "--data", data, "--score", "train", "--threads", 1, "--pairs", 2
    ]  # fmt: skip
    open_words = [*words, "--max-loss", "90", "--out", tmp_path / "open", "--test", "test"]
    assert "held-out images, which chose method and budget" in " ".join(sinf(*open_words).split())
    fixed = [*words, "--keep-anyway", "--macs", "0.9", "--method", "channels", "--out", tmp_path / "fixed"]
    code, out, err = sinf.call(*fixed, "--test", "train[:50%]")
    assert code == 0, err
    assert "which chose" not in out
    told = " ".join(err.split())
    assert "60 of 60 test images" in told
    assert "are among the scoring images" in told


def test_images_that_estimate_the_loss_fit_nothing(
    base: BaseModel, tiny_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without images of their own some of those that decide are held out, also of fine-tuning."""
    held: list[set[bytes]] = []
    fitted: list[set[bytes]] = []
    original = pruning._Pruning.__init__

    def spy(self: pruning._Pruning, *args: object) -> None:
        original(self, *args)
        held.append(set(self.held_out.digests()))
        fitted.append(set(self.source.images.digests()) | set(self._without_held_out(tiny_images).digests()))

    monkeypatch.setattr(pruning._Pruning, "__init__", spy)
    play_times(monkeypatch, {"ours": 0.3})
    prune(base, tiny_images, replace(CONFIG, limits=replace(LIMITS, keep_anyway=True)), tmp_path)
    assert len(held[0]) == 12  # 6 more check what is predicted
    assert not held[0] & fitted[0]
