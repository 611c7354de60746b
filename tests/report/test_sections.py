"""What sections show of answers that are made up: who lost, where inputs stop, and which images are shown."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sinf.data.clusters import Clusters, one_cluster
from sinf.data.images import LabelledImages
from sinf.pipelines.findings import Findings, Routing
from sinf.pipelines.kept import LayerKept, PartKept
from sinf.report import sections
from sinf.report.pictures import encoded, one_of_each, spread
from sinf.report.routes import routes
from tiny import CLASSES, COLOUR, tiny_data

COUNT = 24  # images of six classes, 0 .. 5 in turn


@pytest.fixture
def images(tmp_path: Path) -> LabelledImages:
    return tiny_data(tmp_path / "data", COUNT)


def routing(clusters: Clusters, route: torch.Tensor) -> Routing:
    """Confidence falls from 1; the last twelve images fall back, and the subgraph of the last six never ran."""
    rows = torch.arange(COUNT)
    return Routing(clusters, route, 1 - rows / COUNT, rows >= 12, rows < 18, 0.5, 0.25)


@pytest.fixture
def found(images: LabelledImages) -> Findings:
    """The base model is right but for class 5; ours is also wrong on half of class 0, and right on one of class 5."""
    labels = images.labels
    base = torch.where(labels == 5, torch.zeros_like(labels), labels)
    ours = base.clone()
    ours[[0, 12]] = 3
    ours[23] = 5
    parts = (PartKept("extractor", (LayerKept("a", 30, 60, 4, 8), LayerKept("b", 40, 40, 8, 8, 2, 8))),)
    route = torch.zeros(COUNT, dtype=torch.int64)
    return Findings(
        "cascade", "net", tuple(images.class_names), images, base, ours, 100, 70.0, 10, 7.0, parts, "No promise.",
        routing=routing(one_cluster(CLASSES), route),
    )  # fmt: skip


def test_classes_that_lose_most_come_first(found: Findings) -> None:
    rows = sections.classes(found)
    assert (rows[0].name, rows[0].change, rows[0].images) == ("class0", -50.0, 4)
    assert (rows[-1].name, rows[-1].change) == ("class5", 25.0)
    assert sum(row.after * row.images for row in rows) / COUNT == pytest.approx(found.top1)
    alone = sections.classes(replace(found, base=None))
    assert (alone[0].name, alone[0].before, alone[0].change) == ("class5", None, None)


def test_what_changed_is_counted_and_shown(found: Findings) -> None:
    made = sections.changes(found, COLOUR)
    assert made is not None
    assert (made.both, made.neither, made.lost, made.won) == (18, 3, 2, 1)
    assert [each.lines for each in made.examples] == [("class0", "answered: class3")] * 2
    assert found.loss is not None
    assert found.loss.points == pytest.approx(100 * (made.lost - made.won) / COUNT)
    assert sections.changes(replace(found, base=None), COLOUR) is None


def test_every_input_stops_somewhere(found: Findings) -> None:
    made = sections.stops(found, COLOUR)
    assert made is not None
    assert [each.images for each in made.stops] == [12, 6, 6]
    assert sum(each.share for each in made.stops) == 1
    assert [each.class_ for each in made.stops] == ["delivered", "refused", "early"]
    assert "0.5 or more" in made.stops[0].why
    assert "below 0.25" in made.stops[2].why
    shown = [float(each.lines[-1].split()[-1]) for each in made.stops[0].examples]
    assert shown == sorted(shown, reverse=True)
    assert (shown[0], shown[-1]) == (1.0, pytest.approx(1 - 11 / COUNT, abs=0.01))
    assert sections.stops(replace(found, routing=None), COLOUR) is None


def test_mistaken_routes_are_counted(found: Findings) -> None:
    """Two clusters of three classes; images of class 0 go astray, and those of them that fell back are caught."""
    clusters = Clusters(("low", "high"), ((0, 1, 2), (3, 4, 5)))
    true = clusters.of_class()[found.images.labels]
    route = torch.where(found.images.labels == 0, torch.ones_like(true), true)
    made = routes(replace(found, kind="semantic", routing=routing(clusters, route)), COLOUR)
    assert made is not None
    assert made.accuracy == pytest.approx(20 / COUNT)
    (mistake,) = made.mistakes
    assert (mistake.true, mistake.routed, mistake.images) == ("low", "high", 4)
    assert mistake.share == pytest.approx(1 / 3)
    assert mistake.caught == 0.5
    low, high = made.clusters
    assert (low.images, low.routed, high.routed) == (12, pytest.approx(2 / 3), 1.0)
    assert {each.alt for each in low.examples} == {"class0", "class1", "class2"}
    assert routes(found, COLOUR) is None, "a cascade has no routes"


def test_bars_are_shares_of_the_base_layer(found: Findings) -> None:
    kept = sections.kept(found)
    (table,) = kept.tables
    assert (kept.relative, kept.ranks, kept.widths, table.whole) == (True, True, True, False)
    assert table.cost == pytest.approx(0.7)
    first, second = table.layers
    assert (first.cost, first.channels, first.rank) == (0.5, "4 of 8", "")
    assert (second.cost, second.channels, second.rank) == (1.0, "8 of 8", "2 of 8")
    untouched = PartKept("full tail", (LayerKept("a", 60, 60, 8, 8),))
    assert sections.kept(replace(found, parts=(untouched,))).tables[0].whole
    many = tuple(PartKept(f"c{n}", found.parts[0].layers, subgraph=True) for n in range(5))
    drawn = sections.kept(replace(found, parts=(untouched, *many)))
    assert [each.name for each in drawn.tables] == ["full tail"]
    assert drawn.matrix is not None
    assert drawn.mean == pytest.approx(0.7)


def test_a_picture_is_the_image_or_a_small_one() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint8)
    kind, _, data = encoded(pixels).partition(";base64,")
    assert kind == "data:image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), pixels)
    grey = encoded(pixels[:, :, :1]).partition(";base64,")[2]
    assert Image.open(io.BytesIO(base64.b64decode(grey))).mode == "L"
    kind, _, data = encoded(np.zeros((300, 150, 3), np.uint8)).partition(";base64,")
    assert kind == "data:image/jpeg"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (36, 72)


def test_rows_that_are_shown() -> None:
    assert spread(torch.arange(100), 5, torch.arange(100)) == [0, 20, 40, 60, 80]
    assert spread(torch.arange(100), 5, torch.arange(100) // 30) == [0, 30, 40, 60, 90]
    assert spread(torch.tensor([4, 2]), 5, torch.zeros(9)) == [4, 2]
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    assert one_of_each(labels, [0, 1], 3) == [0, 3, 1]
    assert one_of_each(labels, [2, 3], 9) == [4, 5]
