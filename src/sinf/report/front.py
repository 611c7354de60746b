"""The front of loss and time: every candidate with its 95 % intervals, the limit, and the one that was chosen."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from sinf.report import svg
from sinf.report.results import Candidate

_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 42.0, 12.0, 14.0, 38.0, 300.0
_BASE = 100.0  # per cent: the base model's time, beside which each was timed
_ROOM = 4.0  # times the limit: what loses more is not drawn, or the others would be one point
_SQUARES = {"cascade": 0, "semantic": 45}  # by kind, how they are turned: bundles of clusters are diamonds


def front(candidates: Sequence[Candidate], max_loss: float | None) -> tuple[Markup, int]:
    """A drawing of loss (points) over time (% of the base model's beside it), with numbers as in the table (from 1, the
    fastest first), and how many candidates lose too much to be in it. ``max_loss`` is in points."""
    most = _most(candidates, max_loss)
    shown = [(number, row) for number, row in enumerate(candidates, 1) if row.points <= most]
    high = max([_BASE, *(_BASE * row.share for _, row in shown)]) * 1.04
    top = min(most, max([row.high for _, row in shown] + [max_loss or 0.0])) * 1.05
    bottom = min([0.0, *(row.low for _, row in shown)])
    bottom = max(bottom, -max(top, 0.5)) - 0.03 * (top - bottom)
    x = svg.Scale(0.0, high, _LEFT, svg.WIDTH - _RIGHT)
    y = svg.Scale(bottom, max(top, bottom + 0.1), _HEIGHT - _BOTTOM, _TOP)
    parts = _axes(x, y)
    if max_loss is not None and bottom <= max_loss <= y.high:
        parts += [
            svg.line(x.start, y(max_loss), x.end, y(max_loss), "limit"),
            svg.text(x.start + 4, y(max_loss) - 4, f"limit: {max_loss:g} points", class_="note"),
        ]
    parts += [
        svg.element("circle", cx=x(_BASE), cy=y(0), r=4.5, class_="base"),
        svg.line(x(_BASE), y.start, x(_BASE), y.end, "before"),
        svg.text(x(_BASE) - 5, y.end + 8, "base model", "end", class_="note"),
    ]
    for number, row in sorted(shown, key=lambda pair: pair[1].chosen):  # the chosen one lies on top
        parts.append(_point(number, row, x, y))
    label = f"Loss in points over time of {len(shown)} candidates; the table below has the same numbers."
    return svg.drawing(_HEIGHT, label, parts), len(candidates) - len(shown)


def _most(candidates: Sequence[Candidate], max_loss: float | None) -> float:
    """The largest loss that is drawn; at least half of the candidates are."""
    losses = sorted(row.points for row in candidates)
    middle = losses[len(losses) // 2]
    return max(_ROOM * max_loss if max_loss else losses[-1], middle, 0.5)


def _axes(x: svg.Scale, y: svg.Scale) -> list[Markup]:
    parts = []
    for value in svg.ticks(x.low, x.high):
        parts.append(svg.text(x(value), y.start + 16, svg.number(value), "middle"))
        parts.append(svg.line(x(value), y.start, x(value), y.start + 4, "axis"))
    for value in svg.ticks(y.low, y.high):
        parts.append(svg.line(x.start, y(value), x.end, y(value), "zero" if value == 0 else "grid"))
        parts.append(svg.text(x.start - 6, y(value) + 4, svg.number(value), "end"))
    parts.append(svg.text((x.start + x.end) / 2, y.start + 33, "time, in % of the base model's beside it", "middle"))
    middle = (y.start + y.end) / 2
    parts.append(svg.text(11, middle, "points lost", "middle", transform=f"rotate(-90 11 {middle:g})"))
    return parts


def _point(number: int, row: Candidate, x: svg.Scale, y: svg.Scale) -> Markup:
    across, down = x(_BASE * row.share), y(row.points)
    class_ = row.verdict.replace(" ", "-")
    low, high = max(row.low, y.low), min(row.high, y.high)
    fast, slow = (_BASE * (1 - saved) for saved in (row.saved_high, row.saved_low))
    size = 6.5 if row.chosen else 4.5
    if row.kind in _SQUARES:
        turned = f"rotate({_SQUARES[row.kind]} {across:.2f} {down:.2f})" if _SQUARES[row.kind] else None
        shape = svg.element("rect", x=across - size, y=down - size, width=2 * size, height=2 * size, transform=turned)
    else:
        shape = svg.element("circle", cx=across, cy=down, r=size)
    said = f"{number}: {row.name}, {row.precision}: {row.points:.2f} points ({row.low:.2f} .. {row.high:.2f}), "
    return svg.element(
        "g",
        svg.element("title", escape(f"{said}{_BASE * row.share:.1f} % of the time, {row.verdict}")),
        svg.line(across, y(low), across, y(high), "interval"),
        svg.line(x(max(fast, 0.0)), down, x(min(slow, x.high)), down, "interval"),
        shape,
        svg.text(across + size + 2, down - size, str(number), class_="chosen" if row.chosen else None),
        class_=f"point {class_}",
    )
