"""Drawings show the numbers that they are given, and escape the names."""

from __future__ import annotations

import itertools
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from sinf.report import charts, dendrogram, svg
from sinf.report.front import front
from sinf.report.results import Candidate

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


def rects(drawing: Markup, class_: str) -> list[dict[str, float]]:
    found = ElementTree.fromstring(drawing).iter("rect")
    sides = ("x", "y", "width", "height")
    return [{side: float(each.attrib[side]) for side in sides} for each in found if each.get("class") == class_]


def test_texts_and_attributes_are_escaped() -> None:
    drawn = svg.drawing(10, 'a "label" <b>', [svg.text(0, 0, "<script>&"), svg.element("rect", title='"')])
    root = ElementTree.fromstring(drawn)
    assert root.get("aria-label") == 'a "label" <b>'
    assert root[0].text == "<script>&"
    assert root[1].get("title") == '"'


@given(NUMBERS, st.floats(1e-3, 1e6))
def test_ticks_are_round_and_within(low: float, span: float) -> None:
    high = low + span
    values = svg.ticks(low, high)
    assert 1 <= len(values) <= 7 or span < 1e-9 * abs(low)
    slack = 1e-6 * max(1.0, abs(low), span)
    assert all(low - slack <= value <= high + slack for value in values)
    steps = {f"{b - a:.6g}" for a, b in itertools.pairwise(values)}
    assert len(steps) <= 2  # rounding


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.lists(st.floats(0, 1), max_size=60))
def test_a_histogram_counts_every_value_once(first: list[float], second: list[float]) -> None:
    groups = [("delivered", first), ("refused", second)]
    drawn = charts.histogram(groups, 0.0, 1.0, "label", "across", bins=10)
    unit = None
    for class_, values in groups:
        total = sum(each["height"] for each in rects(drawn, class_))
        if values:
            unit = unit or total / len(values)
            assert total == pytest.approx(unit * len(values), rel=0.02, abs=0.1)
    assert len(rects(drawn, "delivered")) == len({min(9, int(value / 0.1)) for value in first})


def test_a_threshold_lies_where_its_value_is() -> None:
    drawn = charts.histogram([("delivered", [0.05, 0.95])], 0.0, 1.0, "l", "a", (0.5, "threshold <0.5>"), bins=10)
    lines = [each for each in ElementTree.fromstring(drawn).iter("line") if each.get("class") == "limit"]
    low, high = sorted(each["x"] for each in rects(drawn, "delivered"))
    assert low < float(lines[0].attrib["x1"]) < high
    assert "threshold &lt;0.5&gt;" in drawn


def test_shares_fill_the_whole() -> None:
    drawn = charts.shares([("a", 0.25, "delivered"), ("b", 0.75, "refused")])
    widths = [rects(drawn, class_)[0]["width"] for class_ in ("delivered", "refused")]
    assert widths == pytest.approx([0.25 * svg.WIDTH, 0.75 * svg.WIDTH])


def test_bars_and_dots_are_as_long_as_their_shares() -> None:
    assert rects(charts.bar(0.4), "delivered")[0]["width"] == pytest.approx(40)
    assert rects(charts.bar(1.7), "delivered")[0]["width"] == pytest.approx(100)
    points = ElementTree.fromstring(charts.dots(0.75, 0.25)).findall("circle")
    assert [each.get("class") for each in points] == ["base", "delivered"]
    assert float(points[0].attrib["cx"]) > float(points[1].attrib["cx"])
    assert 'class="lost"' in charts.dots(0.75, 0.25)
    assert 'class="won"' in charts.dots(0.25, 0.75)


def test_a_matrix_is_darker_where_there_is_more() -> None:
    drawn = charts.matrix(["<a>", "b"], ["1", "2"], [[1.0, 0.0], [None, 0.5]], "label")
    cells = list(ElementTree.fromstring(drawn).iter("rect"))
    assert len(cells) == 3
    dark = [float(each.attrib["fill-opacity"]) for each in cells]
    assert dark[0] > dark[2] > dark[1]
    assert [each[0].text for each in cells] == ["<a>, 1: 100.0 %", "<a>, 2: 0.0 %", "b, 2: 50.0 %"]


@given(st.integers(2, 12), st.integers(0, 1000))
def test_a_tree_has_every_leaf_once_and_no_crossings(leaves: int, seed: int) -> None:
    half = np.random.default_rng(seed).uniform(0.1, 5, (leaves, leaves))
    apart = half + half.T
    np.fill_diagonal(apart, 0)
    made = dendrogram.tree(apart)
    assert sorted(made.order) == list(range(leaves))
    below = {leaf: {leaf} for leaf in range(leaves)}
    for number, (a, b) in enumerate(made.merges):
        below[leaves + number] = below[a] | below[b]
        positions = sorted(made.order.index(leaf) for leaf in below[leaves + number])
        assert positions == list(range(positions[0], positions[-1] + 1)), "what was joined lies together"
    assert list(made.heights) == sorted(made.heights)
    drawn = ElementTree.fromstring(dendrogram.dendrogram(apart, [f"<{n}>" for n in range(leaves)], [0] * leaves, "l"))
    assert len(drawn.findall("path")) == leaves - 1
    assert {each.text for each in drawn.iter("text")} == {f"<{n}>" for n in range(leaves)}


def test_the_nearest_meet_first() -> None:
    apart = np.array([[0.0, 1, 9, 9], [1, 0, 9, 9], [9, 9, 0, 2], [9, 9, 2, 0]])
    made = dendrogram.tree(apart)
    assert {frozenset(made.merges[0]), frozenset(made.merges[1])} == {frozenset({0, 1}), frozenset({2, 3})}
    assert made.heights == (1.0, 2.0, 9.0)
    groups = dendrogram.of_groups(apart, [(0, 1), (2, 3)])
    assert groups.tolist() == [[0, 9], [9, 0]]


def candidate(points: float, ms: float, chosen: bool = False, kind: str = "static") -> Candidate:
    saved = 1 - ms / 10
    return Candidate(
        f"at {ms:g}", kind, "f32", points, points - 0.2, points + 0.2, 100, ms, 100, saved, saved - 0.01, saved + 0.01,
        None, chosen,
    )  # fmt: skip


def test_the_front_puts_more_time_right_and_more_loss_up() -> None:
    drawn, beyond = front([candidate(2.0, 2.0), candidate(0.5, 5.0, True, "cascade"), candidate(90.0, 1.0)], 1.0)
    root = ElementTree.fromstring(drawn)
    assert beyond == 1
    fast, slow = root.findall("g")
    assert slow.get("class") == "point chosen"
    circle, square = fast.find("circle"), slow.find("rect")
    assert circle is not None
    assert square is not None
    assert float(circle.attrib["cx"]) < float(square.attrib["x"])
    assert float(circle.attrib["cy"]) < float(square.attrib["y"])
    assert [each[-1].text for each in (fast, slow)] == ["1", "2"], "numbers are those of the table"


def test_the_front_puts_a_share_of_the_base_models_time_where_it_is() -> None:
    """Whatever milliseconds the machine took in its run."""
    quick, slow = candidate(0.5, 2.5), candidate(0.5, 20.0)
    root = ElementTree.fromstring(front([quick, replace(quick, milliseconds=50.0), slow], 1.0)[0])
    first, second, third = (float(each.attrib["cx"]) for each in root.findall("g/circle"))
    base = float(next(each for each in root.findall("circle") if each.get("class") == "base").attrib["cx"])
    assert first == second
    assert (base - 42) / (first - 42) == pytest.approx(4, abs=0.01)  # 42: where the axis begins
    assert (third - 42) / (base - 42) == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize("limit", [None, 0.0, 1.0])
def test_a_front_of_one_candidate_or_without_a_limit(limit: float | None) -> None:
    drawn, beyond = front([candidate(0.0, 5.0, True)], limit)
    assert beyond == 0
    assert "nan" not in drawn
    assert len(ElementTree.fromstring(drawn).findall("g")) == 1


def test_bundles_of_clusters_are_diamonds() -> None:
    drawn, _ = front([candidate(0.5, 5.0, True, "cascade"), candidate(0.4, 6.0, False, "semantic")], 1.0)
    diamond, square = (each.find("rect") for each in ElementTree.fromstring(drawn).findall("g"))
    assert square is not None
    assert diamond is not None
    assert square.get("transform") is None
    assert str(diamond.get("transform")).startswith("rotate(45 ")
