"""From the findings about an artefact to what the sections of a report show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from sinf.data.preprocessing import Preprocessing
from sinf.pipelines.findings import Findings
from sinf.pipelines.kept import PartKept
from sinf.report import charts
from sinf.report.pictures import Picture, pictures, readable, spread

_EXAMPLES = 10  # a row of a wide screen
_FIRST = 15  # classes that are shown at once
_NAMED = 4  # layers whose names fit beside each other
_TABLES = 3  # subgraphs with a table of their own; more of them are a matrix


@dataclass(frozen=True)
class ClassRow:
    """One class on its ``images``: shares of right answers before and after, ``change`` in points, None without a
    base model."""

    name: str
    images: int
    before: float | None
    after: float
    change: float | None
    dots: Markup


def classes(findings: Findings) -> list[ClassRow]:
    """Classes that have images; those that lose most come first, or without a base model those with most errors."""
    labels, before = findings.images.labels, findings.base_right
    rows = []
    for number in findings.images.used_classes():
        mine = labels == number
        after = _mean(findings.right[mine])
        was = None if before is None else _mean(before[mine])
        change = None if was is None else 100 * (after - was)
        name = readable(findings.class_names[number])
        rows.append(ClassRow(name, int(mine.sum()), was, after, change, charts.dots(was, after)))
    return sorted(rows, key=lambda row: (row.after if row.change is None else row.change, row.after))


@dataclass(frozen=True)
class Changes:
    """How many images are right in both, neither, the base model alone (lost) or the artefact alone (won), and some of
    those that were lost."""

    both: int
    neither: int
    lost: int
    won: int
    examples: tuple[Picture, ...]


def changes(findings: Findings, feed: Preprocessing) -> Changes | None:
    """None without a base model."""
    before, after = findings.base_right, findings.right
    if before is None:
        return None
    lost = torch.nonzero(before & ~after).flatten()
    rows = spread(lost, _EXAMPLES, findings.images.labels)
    return Changes(
        int((before & after).sum()), int((~before & ~after).sum()), len(lost), int((~before & after).sum()),
        _pictures(findings, feed, rows, None),
    )  # fmt: skip


@dataclass(frozen=True)
class Stop:
    """A place where inputs end: their ``share`` of the images, why they end there, and accuracies of base model and
    artefact on them; ``typical`` is their mean confidence or cost in words. ``class_`` is that of its colour."""

    name: str
    why: str
    class_: str
    images: int
    share: float
    before: float | None
    after: float | None
    typical: str
    examples: tuple[Picture, ...]


@dataclass(frozen=True)
class Stops:
    """Where inputs end, and how what decided it is spread."""

    stops: tuple[Stop, ...]
    shares: Markup | None
    histogram: Markup | None
    caption: str


def stops(findings: Findings, feed: Preprocessing) -> Stops | None:
    """Of a bundle; None of a plain model."""
    if findings.routing is not None:
        return _stops_of_routes(findings, feed)
    if findings.image_macs is not None:
        return _stops_by_macs(findings, feed)
    return None


def _stops_of_routes(findings: Findings, feed: Preprocessing) -> Stops:
    went = findings.routing
    if went is None:
        raise ValueError("a plain model has no routes")
    where = "the small tail" if went.cascade else "their subgraph"
    floor = went.threshold if went.threshold > 1 else min(went.early, went.threshold)
    limit = f"{went.threshold:.3g}"
    none = went.threshold > 1
    groups = (
        (
            f"stop at {where}",
            "The threshold is 0: every answer stands." if went.threshold == 0
            else f"Its answer has a confidence of {limit} or more.",
            "delivered", ~went.fell_back,
        ),
        (
            f"fall back after {where}", f"Its answer has less confidence than {limit}, so the full tail answers.",
            "refused", went.fell_back & went.subgraph_ran,
        ),
        (
            "go to the full tail at once",
            "The threshold lets no other answer stand." if none
            else f"The route has a probability below {floor:.3g}, so no subgraph is run.",
            "early", ~went.subgraph_ran,
        ),
    )  # fmt: skip
    made = tuple(
        _stop(findings, feed, name, why, class_, mine, went.confidence, "confidence")
        for name, why, class_, mine in groups
        if bool(mine.any())
    )
    ran = went.subgraph_ran
    drawn = None
    if bool(ran.any()):
        values = [
            ("delivered", went.confidence[ran & ~went.fell_back].tolist()),
            ("refused", went.confidence[ran & went.fell_back].tolist()),
        ]
        least = min([*went.confidence[ran].tolist(), *([went.threshold] if went.threshold > 0 else [])])
        low = math.floor(10 * min(least, 0.9)) / 10
        mark = (went.threshold, f"threshold {limit}") if low <= went.threshold <= 1 else None
        label = f"Histogram of the confidence of {int(ran.sum())} images whose answer was looked at; threshold {limit}."
        drawn = charts.histogram(values, low, 1.0, label, "confidence: how likely the answer loses nothing", mark)
    small = "the small tail" if went.cascade else "a subgraph"
    caption = f"Confidence of the {int(ran.sum()):,} images for which {small} ran, in number of images."
    return Stops(made, charts.shares([(each.name, each.share, each.class_) for each in made]), drawn, caption)


def _stops_by_macs(findings: Findings, feed: Preprocessing) -> Stops | None:
    macs = findings.image_macs
    if macs is None or findings.base_macs is None:
        return None
    shares = macs.double() / findings.base_macs
    order = shares.argsort(stable=True)
    quarter = max(1, len(order) // 4)
    made = []
    for name, why, class_, rows in (
        ("of the images: those that cost least", "Gates leave the fewest channels.", "delivered", order[:quarter]),
        ("of the images: those that cost most", "Gates leave the most channels.", "refused", order[-quarter:]),
    ):
        mine = torch.zeros(len(order), dtype=torch.bool)
        mine[rows] = True
        made.append(_stop(findings, feed, name, why, class_, mine, shares, "share of the base model's MACs"))
    low, high = float(shares.min()), float(shares.max())
    label = (
        f"Histogram of the MACs of {len(shares)} images, from {100 * low:.0f} to {100 * high:.0f} % of the base model."
    )
    pad = max(0.01, 0.05 * (high - low))
    drawn = charts.histogram(
        [("delivered", shares.tolist())], low - pad, high + pad, label, "share of the base model's MACs",
        (float(shares.mean()), "mean"),
    )  # fmt: skip
    return Stops(tuple(made), None, drawn, "MACs of an image as a share of the base model's, in number of images.")


def _stop(
    findings: Findings, feed: Preprocessing, name: str, why: str, class_: str, mine: Tensor, values: Tensor, of: str
) -> Stop:
    rows = torch.nonzero(mine).flatten()
    rows = rows[values[rows].argsort(stable=True, descending=True)]
    before = findings.base_right
    return Stop(
        name, why, class_, len(rows), len(rows) / len(mine),
        None if before is None else _mean(before[mine]), _mean(findings.right[mine]),
        f"mean {of} {_mean(values[mine]):.2f}",
        _pictures(findings, feed, spread(rows, _EXAMPLES, findings.images.labels), values, of.split()[0]),
    )  # fmt: skip


def _pictures(
    findings: Findings, feed: Preprocessing, rows: list[int], values: Tensor | None, of: str = ""
) -> tuple[Picture, ...]:
    answers = [findings.class_names[int(findings.answers[row])] for row in rows]
    notes = ["" if values is None else f"{of} {float(values[row]):.2f}" for row in rows]
    return pictures(findings.images, feed, rows, answers, notes)


@dataclass(frozen=True)
class LayerRow:
    """A layer of a part: shares of 1 as numbers and bars; ``channels`` and ``rank`` in words."""

    name: str
    cost: float | None
    cost_bar: Markup | None
    channels: str
    width_bar: Markup | None
    rank: str
    rank_bar: Markup | None


@dataclass(frozen=True)
class PartTable:
    """``cost`` is the share of the base part's MACs; ``whole`` says that nothing of it was changed."""

    name: str
    cost: float | None
    whole: bool
    layers: tuple[LayerRow, ...]


@dataclass(frozen=True)
class Kept:
    """``relative`` says that costs are shares of the base model's layers, not of the network's own MACs; ``ranks``,
    ``widths`` and ``costs`` whether there are any to show: channels of which none went say nothing. ``columns`` are the
    layers of the ``matrix`` of ``subgraphs``."""

    tables: tuple[PartTable, ...]
    matrix: Markup | None
    subgraphs: int
    mean: float | None
    relative: bool
    ranks: bool
    widths: bool
    costs: bool
    columns: tuple[str, ...]


def kept(findings: Findings) -> Kept:
    """What is left of every layer, by part."""
    relative = any(layer.base_macs for part in findings.parts for layer in part.layers)
    subgraphs = [part for part in findings.parts if part.subgraph]
    many = len(subgraphs) > _TABLES
    shown = [part for part in findings.parts if not (many and part.subgraph)]
    names = [layer.name for layer in subgraphs[0].layers] if many else []
    drawn = None
    if many:
        label = f"MACs of every layer in {len(subgraphs)} subgraphs, as shares of the base model's layers."
        values = [[layer.cost for layer in part.layers] for part in subgraphs]
        few = len(names) <= _NAMED
        columns = names if few else [str(number) for number in range(1, len(names) + 1)]
        drawn = charts.matrix([readable(part.name) for part in subgraphs], columns, values, label, upright=few)
        names = [] if few else names
    costs = [part.cost for part in subgraphs if part.cost is not None]
    return Kept(
        tuple(_table(part, relative, small=len(subgraphs) == 1) for part in shown),
        drawn,
        len(subgraphs),
        sum(costs) / len(costs) if costs else None,
        relative,
        any(layer.rank is not None for part in shown for layer in part.layers),
        any(layer.width not in (None, 1) for part in shown for layer in part.layers),
        any(layer.macs is not None for part in shown for layer in part.layers),
        tuple(names),
    )


def _table(part: PartKept, relative: bool, small: bool) -> PartTable:
    total = sum(layer.macs or 0 for layer in part.layers)
    rows = []
    for layer in part.layers:
        own = None if layer.macs is None or not total else layer.macs / total
        cost = layer.cost if relative else own
        count = f"{layer.channels:.1f}".removesuffix(".0")
        rows.append(
            LayerRow(
                layer.name, cost, None if cost is None else charts.bar(cost),
                count if layer.base_channels is None else f"{count} of {layer.base_channels}",
                None if layer.width is None else charts.bar(layer.width),
                "" if layer.rank is None else f"{layer.rank} of {layer.full_rank}",
                charts.bar(layer.rank / layer.full_rank) if layer.rank and layer.full_rank else None,
            )
        )  # fmt: skip
    whole = all(layer.cost == 1 and layer.width == 1 and layer.rank is None for layer in part.layers)
    return PartTable("small tail" if part.subgraph and small else readable(part.name), part.cost, whole, tuple(rows))


def first_and_rest(rows: list[Any]) -> tuple[list[Any], list[Any]]:
    """Rows that are shown at once, and those that are shown on demand."""
    return (rows, []) if len(rows) <= _FIRST + 5 else (rows[:_FIRST], rows[_FIRST:])


def _mean(values: Tensor) -> float:
    return float(values.double().mean())
