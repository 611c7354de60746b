"""Which groups of a batch run their subgraphs: never dearer than all or none of them, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sinf import edge
from sinf.bundle.semantic import Bundle
from sinf.bundle.times import read_times, replace_times
from sinf.engine.engines import open_engine
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import BundleError, ConfigError
from sinf.export.split import export_split
from sinf.measure.tune import measure_tails
from sinf.routing.grouping import TailTimes
from tiny import ENGINES


def times(subgraph: tuple[float, ...], full_tail: tuple[float, ...], returning: float = 0.0) -> TailTimes:
    return TailTimes("torch", "f32", 1, "a processor", (1, 2, 4)[: len(subgraph)], subgraph, full_tail, returning)


CHEAP = times((1.0, 1.5, 2.5), (4.0, 6.0, 10.0))
DEAR = times((5.0, 7.5, 12.5), (4.0, 6.0, 10.0))


def test_cheap_subgraphs_run_and_dear_ones_do_not() -> None:
    assert CHEAP.worth([3, 1], rest=0) == 2
    assert DEAR.worth([3, 1], rest=0) == 0


def test_one_more_input_of_a_full_tail_that_runs_anyway_can_be_cheaper_than_a_subgraph() -> None:
    """Alone, a subgraph for one input saves 2 of 4; beside a tail that runs for others, that input costs only 1.5."""
    tails = times((2.0, 2.5), (4.0, 5.5))
    assert tails.worth([1], rest=0) == 1
    assert tails.worth([1], rest=4) == 0
    assert tails.worth([8, 1], rest=4) == 1


def test_inputs_that_return_cost_both() -> None:
    tails = times((2.0, 3.0), (4.0, 8.0))
    assert tails.worth([1], rest=0) == 1
    assert replace(tails, returning=0.6).worth([1], rest=0) == 0


@given(
    st.lists(st.integers(1, 20), max_size=6),
    st.integers(0, 30),
    st.lists(st.floats(0.1, 5), min_size=6, max_size=6),
    st.floats(0, 1),
)
def test_the_choice_is_never_dearer_than_all_or_none(
    sizes: list[int], rest: int, steps: list[float], returning: float
) -> None:
    grown = torch.tensor(steps).view(2, 3).cumsum(1).tolist()
    tails = times(tuple(grown[0]), tuple(grown[1]), returning)
    sizes = sorted(sizes, reverse=True)
    zero = tails.worth(sizes, rest)
    assert 0 <= zero <= len(sizes)

    def cost(count: int) -> float:
        """The same sum by numpy, which goes on flat beyond the ends: stay between them."""
        going = rest + sum(sizes[count:]) + sum(sizes[:count]) * returning
        return sum(_time(tails.subgraph, s) for s in sizes[:count]) + _time(tails.full_tail, going)

    assert cost(zero) <= min(cost(0), cost(len(sizes))) + 1e-4


def _time(measured: tuple[float, ...], size: float) -> float:
    if size > 4:
        return measured[2] + (measured[2] - measured[1]) / 2 * (size - 4)
    return float(np.interp(size, (0, 1, 2, 4), (0.0, *measured)))


@pytest.mark.parametrize(
    "change",
    [
        {"batches": (1,), "subgraph": (1.0,), "full_tail": (1.0,)},
        {"batches": (2, 1, 4)},
        {"batches": (0, 1, 4)},
        {"subgraph": (1.0, 2.0)},
        {"full_tail": (0.0, 1.0, 2.0)},
        {"full_tail": (float("nan"), 1.0, 2.0)},
        {"returning": 1.5},
    ],
)
def test_times_that_cannot_be_are_refused(change: dict) -> None:
    with pytest.raises(ConfigError, match="times of tails"):
        replace(CHEAP, **change)


@pytest.fixture
def bundle(built: Path) -> Bundle:
    return Bundle.load(built)


@pytest.fixture
def images(bundle: Bundle) -> torch.Tensor:
    return torch.randn(24, *bundle.spec.preprocessing.size, generator=torch.Generator().manual_seed(0))


def test_a_group_that_is_not_worth_it_gets_the_answer_of_the_full_tail(bundle: Bundle, images: torch.Tensor) -> None:
    model = SemanticModel(bundle)
    model.threshold = 0.0
    alone = model.route(images)
    whole = model.run_full_tail(model.extractor(images))
    assert alone.subgraph_ran.all()
    # Groups of three and more are worth it.
    model.feature_router.times = times((3.0, 3.0, 3.0), (1.0, 2.0, 4.0))
    routed = model.route(images)
    counts = torch.bincount(alone.route, minlength=len(bundle.clusters))
    worth = counts[alone.route] > 3
    assert worth.any()
    assert torch.equal(routed.subgraph_ran, worth)
    assert torch.equal(routed.fell_back, ~worth)
    torch.testing.assert_close(routed.logits[worth], alone.logits[worth])
    torch.testing.assert_close(routed.logits[~worth], whole[~worth])


def test_one_image_runs_its_subgraph_if_that_is_worth_it(bundle: Bundle, images: torch.Tensor) -> None:
    model = SemanticModel(bundle)
    model.threshold = 0.0
    for tails, worth in ((CHEAP, True), (DEAR, False)):
        model.feature_router.times = tails
        routed = model.route(images[:1])
        assert bool(routed.subgraph_ran[0]) is worth
        assert bool(routed.fell_back[0]) is not worth


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_measured_is_stored_and_used(engine: str, bundle: Bundle, images: torch.Tensor, tmp_path: Path) -> None:
    bundle.save(tmp_path / "bundle")
    model = SemanticModel.from_pretrained(tmp_path / "bundle")
    router = open_engine(model, engine)
    found = measure_tails(model, router, engine, "f32", 1, batches=(1, 4), turns=1)
    assert len(found.subgraph) == len(found.full_tail) == 2
    replace_times(tmp_path / "bundle", found)
    replace_times(tmp_path / "bundle", replace(found, threads=2))
    replace_times(tmp_path / "bundle", found)
    assert set(read_times(tmp_path / "bundle")) == {found, replace(found, threads=2)}
    again = SemanticModel.from_pretrained(tmp_path / "bundle")
    assert open_engine(again, engine).times == found
    assert open_engine(again, engine, threads=2).times == replace(found, threads=2)
    assert open_engine(again, engine, threads=3).times is None
    assert again.bundle.times_of("another", "f32", 1) is None


def test_an_export_takes_the_times_of_its_engine_along(bundle: Bundle, tmp_path: Path) -> None:
    here = replace(DEAR, engine="onnxruntime")
    model = SemanticModel(replace(bundle, times=(CHEAP, here, replace(here, engine="openvino"))))
    export_split(model, tmp_path / "split")
    assert edge.load(tmp_path / "split").times == here
    assert edge.load(tmp_path / "split", threads=2).times is None


def test_damaged_times_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "bundle")
    (tmp_path / "bundle" / "times.json").write_text('{"tails": [{"engine": "torch"}]}')
    with pytest.raises(BundleError, match=r"times\.json"):
        SemanticModel.from_pretrained(tmp_path / "bundle")


def test_a_bundle_that_is_saved_again_keeps_its_times(bundle: Bundle, tmp_path: Path) -> None:
    replace(bundle, times=(CHEAP,)).save(tmp_path / "bundle")
    assert Bundle.load(tmp_path / "bundle").times == (CHEAP,)


def test_a_cascade_has_no_groups_to_tune(built_cascade: Path) -> None:
    model = SemanticModel.from_pretrained(built_cascade)
    with pytest.raises(ConfigError, match=r"groups to tune \(got a cascade\)"):
        measure_tails(model, model.feature_router, "torch", "f32", 1)


def test_tuning_needs_turns(bundle: Bundle) -> None:
    model = SemanticModel(bundle)
    with pytest.raises(ConfigError, match="turns"):
        measure_tails(model, model.feature_router, "torch", "f32", 1, turns=0)
