"""The feature router over an engine of a few lines: who runs what, in which order answers come, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinf.errors import ConfigError, DataError
from sinf.routing.grouping import TailTimes
from sinf.routing.router import BASE, FIRST, FRONT, FULL_TAIL, FeatureRouter, early_floor, part_name

SIZE = (1, 2, 2)
CLUSTERS = 3
Image = tuple[int, float, float]  # cluster of the route, confidence before its subgraph runs and after


class Table:
    """An engine that reads in an image what its parts say of it; logits are (part, number of the image).

    ``runs`` lists the parts that ran, each with the numbers of its images.
    """

    def __init__(self) -> None:
        self.runs: list[tuple[str, list[int]]] = []
        self.closed = 0

    def run(self, part: str, *inputs: Any) -> tuple[Any, ...]:
        first = inputs[0].reshape(len(inputs[0]), -1)
        self.runs.append((part, first[:, 3].astype(int).tolist()))
        if part == FRONT:
            return first, first[:, :1] * 10, first[:, 0].astype(int), first[:, 1].copy()
        if part == FIRST:
            return first, np.stack([first[:, 0], first[:, 3]], 1), first[:, 2].copy()
        if part == BASE:
            return (np.stack([np.full(len(first), -2.0), first[:, 3]], 1),)
        if part == FULL_TAIL:
            return (np.stack([np.full(len(first), -1.0), first[:, 3]], 1),)
        features, log_clusters = inputs
        assert (log_clusters[:, 0] == 10 * features[:, 0]).all()  # rows of one image
        assert {part} == {part_name(int(cluster)) for cluster in features[:, 0]}
        return np.stack([features[:, 0], features[:, 3]], 1), features[:, 2].copy()

    def array(self, values: list[float] | list[bool] | list[int]) -> Any:
        return np.array(values)

    def close(self) -> None:
        self.closed += 1


def batch_of(images: list[Image]) -> Any:
    rows = [[*image, number] for number, image in enumerate(images)]
    return np.array(rows, dtype=np.float32).reshape(-1, *SIZE)


def router_of(threshold: float = 0.5, early: float = 0.0, times: TailTimes | None = None) -> FeatureRouter:
    return FeatureRouter(Table(), SIZE, threshold, early, times)


def runs(router: FeatureRouter) -> list[tuple[str, list[int]]]:
    assert isinstance(router.engine, Table)
    return router.engine.runs


LEVELS = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])  # often equal to a threshold, and exact in float32
IMAGES = st.lists(st.tuples(st.integers(0, CLUSTERS - 1), LEVELS, LEVELS), min_size=1, max_size=8)


@given(images=IMAGES, threshold=st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]), early=LEVELS)
def test_every_image_goes_where_its_confidence_sends_it(images: list[Image], threshold: float, early: float) -> None:
    """Image by image from the rule, together and alone."""
    together = router_of(threshold, early).route(batch_of(images))
    for number, (cluster, before, after) in enumerate(images):
        runs_subgraph = threshold <= 1 and before >= min(early, threshold)
        accepted = runs_subgraph and after >= threshold
        expected = (float(cluster if accepted else -1), cluster, after if runs_subgraph else before, not accepted)
        alone = router_of(threshold, early)
        for routed, row in ((together, number), (alone.route(batch_of(images)[number : number + 1]), 0)):
            assert routed.logits[row].tolist() == [expected[0], number]
            assert (routed.route[row], routed.confidence[row], routed.fell_back[row]) == expected[1:]
            assert routed.subgraph_ran[row] == runs_subgraph
        parts = [FRONT, *[part_name(cluster)] * runs_subgraph, *[FULL_TAIL] * (not accepted)]
        assert runs(alone) == [(part, [number]) for part in parts]


@given(images=IMAGES, threshold=LEVELS, early=LEVELS)
def test_a_part_runs_once_for_a_batch_and_for_its_images_alone(
    images: list[Image], threshold: float, early: float
) -> None:
    router = router_of(threshold, early)
    routed = router.route(batch_of(images))
    (front, *others) = runs(router)
    assert front == (FRONT, list(range(len(images))))
    expected = {
        part_name(c): [i for i, image in enumerate(images) if routed.subgraph_ran[i] and image[0] == c]
        for c in range(CLUSTERS)
    }
    expected[FULL_TAIL] = [i for i in range(len(images)) if routed.fell_back[i]]
    assert sorted(others) == sorted((part, rows) for part, rows in expected.items() if rows)
    if len(images) > 1 and expected[FULL_TAIL]:
        assert others[-1][0] == FULL_TAIL  # with those whose subgraph was not sure


@given(images=IMAGES, threshold=st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]))
def test_a_cascade_runs_its_first_part_for_all_and_the_full_tail_for_the_unsure(
    images: list[Image], threshold: float
) -> None:
    router = FeatureRouter(Table(), SIZE, threshold, 1.0, cascade=True)
    routed = router.one_by_one().route(batch_of(images))
    unsure = [number for number, (*_, after) in enumerate(images) if after < threshold]
    assert runs(router) == [(FIRST, list(range(len(images)))), *[(FULL_TAIL, unsure)] * bool(unsure)]
    assert routed.logits[:, 0].tolist() == [-1 if i in unsure else images[i][0] for i in range(len(images))]
    assert routed.logits[:, 1].tolist() == list(range(len(images)))
    assert routed.confidence.tolist() == [after for *_, after in images]
    assert routed.fell_back.tolist() == [number in unsure for number in range(len(images))]
    assert routed.subgraph_ran.tolist() == [True] * len(images)
    assert routed.route.tolist() == [0] * len(images)
    assert routed.route.dtype.kind == "i"


def test_calling_a_router_gives_the_logits_that_routing_gives() -> None:
    images = batch_of([(0, 0.9, 0.9), (1, 0.9, 0.1), (2, 0.1, 0.9)])
    for some in (images, images[:1]):
        assert router_of(0.5, 0.5)(some).tolist() == router_of(0.5, 0.5).route(some).logits.tolist()


def test_the_base_model_is_run_alone() -> None:
    router = router_of()
    assert router.base(batch_of([(0, 0.9, 0.9), (1, 0.9, 0.9)])).tolist() == [[-2, 0], [-2, 1]]
    assert runs(router) == [(BASE, [0, 1])]


@pytest.mark.parametrize(
    ("early", "threshold", "floor"),
    [(0.4, 0.6, 0.4), (0.6, 0.4, 0.4), (0.6, 0.6, 0.6), (0.6, 1.0, 0.6), (0.6, 2.0, 2.0), (0.6, 1.5, 1.5)],
)
def test_a_subgraph_needs_no_more_than_its_answer_will(early: float, threshold: float, floor: float) -> None:
    assert early_floor(early, threshold) == floor


@pytest.mark.parametrize(("cluster", "name"), [(0, "cluster000"), (7, "cluster007"), (1234, "cluster1234")])
def test_names_of_parts_are_sorted_as_their_numbers(cluster: int, name: str) -> None:
    assert part_name(cluster) == name


# ---- what was timed

# Two images of a subgraph cost what one does; the full tail costs as many as there are, and a little to begin.
TIMES = TailTimes("torch", "f32", 1, "", (1, 2, 4), (2.0, 2.0, 2.0), (1.5, 2.5, 4.5), 0.0)


def test_groups_that_are_not_worth_their_subgraph_go_to_the_full_tail() -> None:
    """The largest first: four images save more than their subgraph costs, one does not."""
    router = router_of(0.5, 0.0, TIMES)
    images = [(1, 0.9, 0.9), (0, 0.9, 0.9), (0, 0.9, 0.9), (0, 0.9, 0.9), (0, 0.9, 0.2)]
    routed = router.route(batch_of(images))
    assert routed.subgraph_ran.tolist() == [False, True, True, True, True]
    assert routed.fell_back.tolist() == [True, False, False, False, True]
    assert routed.logits[:, 0].tolist() == [-1, 0, 0, 0, -1]
    assert routed.confidence.tolist() == pytest.approx([0.9, 0.9, 0.9, 0.9, 0.2])
    assert runs(router)[1:] == [(part_name(0), [1, 2, 3, 4]), (FULL_TAIL, [0, 4])]


def test_the_rest_of_a_batch_counts() -> None:
    """An image that goes to the full tail anyway makes one more there cheaper."""
    times = TailTimes("torch", "f32", 1, "", (1, 2, 4), (2.0, 3.0, 5.0), (2.5, 3.5, 5.5), 0.0)
    pair = [(0, 0.9, 0.9), (1, 0.1, 0.9)]
    assert router_of(0.5, 0.5, times).route(batch_of(pair)).subgraph_ran.tolist() == [False, False]
    assert router_of(0.5, 0.5, times).route(batch_of([pair[0]])).subgraph_ran.tolist() == [True]
    assert router_of(0.5, 0.5).route(batch_of(pair)).subgraph_ran.tolist() == [True, False]


@pytest.mark.parametrize(("subgraph", "runs_subgraph"), [(1.0, True), (3.0, False)])
def test_one_image_runs_its_subgraph_where_that_is_cheaper(subgraph: float, runs_subgraph: bool) -> None:
    router = router_of(0.5, 0.0, TailTimes("torch", "f32", 1, "", (1, 2), (subgraph, 4.0), (2.0, 3.0), 0.0))
    assert router.route(batch_of([(0, 0.9, 0.9)])).subgraph_ran.tolist() == [runs_subgraph]
    assert router.one_by_one().route(batch_of([(0, 0.9, 0.9)])).subgraph_ran.tolist() == [True]


def test_one_by_one_is_the_same_routing_without_times() -> None:
    router = router_of(0.5, 0.25, TIMES)
    router.threshold = 0.75
    plain = router.one_by_one()
    assert (plain.engine, plain.size) == (router.engine, router.size)
    assert (plain.threshold, plain.early_threshold, plain.times) == (0.75, 0.25, None)
    assert router.times is TIMES


# ---- what is refused


@pytest.mark.parametrize("threshold", [-0.01, 2.01, float("nan"), float("inf")])
def test_a_threshold_out_of_range_is_refused_and_the_old_one_stays(threshold: float) -> None:
    router = router_of(0.5)
    with pytest.raises(ConfigError, match=r"0\.\.1 \(or 2: always fall back\)"):
        router.threshold = threshold
    assert router.threshold == 0.5


@pytest.mark.parametrize("shape", [(2, 2), (1, 2, 2), (0, 1, 2, 2), (1, 1, 2, 3), (1, 2, 2, 1), (1, 1, 1, 2, 2)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    router = router_of()
    with pytest.raises(DataError, match=r"shape \(B, 1, 2, 2\)"):
        router(np.zeros(shape, dtype=np.float32))
    assert runs(router) == []


@pytest.mark.parametrize("kind", ["uint8", "int64", "bool"])
def test_images_that_are_no_floats_are_refused_every_time(kind: str) -> None:
    router = router_of()
    router(batch_of([(0, 0.9, 0.9)]))
    for _ in range(2):
        with pytest.raises(DataError, match="normalised floats"):
            router(np.zeros((1, *SIZE), dtype=kind))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("count", [1, 3])
def test_images_that_are_not_finite_are_refused(value: float, count: int) -> None:
    images = batch_of([(0, 0.9, 0.9)] * count)
    images[-1, 0, 1, 0] = value
    router = router_of()
    with pytest.raises(DataError, match="finite"):
        router(images)
    assert runs(router) == []


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_floats_of_every_width_are_taken(kind: str) -> None:
    assert router_of()(batch_of([(0, 0.5, 0.5)]).astype(kind)).tolist() == [[0, 0]]


def test_closing_a_router_closes_its_engine() -> None:
    router = router_of()
    router.close()
    assert isinstance(router.engine, Table)
    assert router.engine.closed == 1
