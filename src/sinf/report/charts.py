"""Small charts: a histogram, bars and dots in cells of tables, shares of a whole, and a matrix of shares."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from sinf.report import svg

_CELL = 36.0  # of a matrix, in which its number fits
_HEIGHT, _LEFT, _BOTTOM, _TOP = 200.0, 42.0, 36.0, 22.0


def histogram(
    groups: Sequence[tuple[str, Sequence[float]]], low: float, high: float, label: str, across: str,
    mark: tuple[float, str] | None = None, bins: int = 25,
) -> Markup:  # fmt: skip
    """How many values lie in each of ``bins`` equal parts of ``low`` .. ``high``; ``groups`` are stacked, each with the
    class of its colour. ``across`` names the values, ``mark`` is a value with a word beside its line."""
    counts = [[0] * bins for _ in groups]
    width = (high - low) / bins or 1.0
    for row, (_, values) in zip(counts, groups, strict=True):
        for value in values:
            row[min(bins - 1, max(0, int((value - low) / width)))] += 1
    most = max(1, *(sum(column) for column in zip(*counts, strict=True)))
    x = svg.Scale(low, high, _LEFT, svg.WIDTH - 12)
    y = svg.Scale(0, most, _HEIGHT - _BOTTOM, _TOP)
    parts = [svg.line(x.start, y.start, x.end, y.start, "axis")]
    for value in svg.ticks(0, most, 4):
        parts.append(svg.line(x.start, y(value), x.end, y(value), "grid"))
        parts.append(svg.text(x.start - 6, y(value) + 4, svg.number(value), "end"))
    for value in svg.ticks(low, high, 5):
        parts.append(svg.text(x(value), y.start + 16, svg.number(value), "middle"))
    for column in range(bins):
        start, done = x(low + column * width), 0
        for (class_, _), row in zip(groups, counts, strict=True):
            if row[column]:
                top = y(done + row[column])
                parts.append(
                    svg.element("rect", x=start + 0.5, y=top, width=max(1.0, x(low + width) - x(low) - 1),
                                height=y(done) - top, class_=class_)
                )  # fmt: skip
                done += row[column]
    if mark is not None:
        value, word = mark
        late = x(value) > svg.WIDTH / 2
        parts.append(svg.line(x(value), _TOP - 8, x(value), y.start, "limit"))
        parts.append(
            svg.text(x(value) + (-5 if late else 5), _TOP - 6, word, "end" if late else "start", class_="note")
        )
    parts.append(svg.text((x.start + x.end) / 2, y.start + 32, across, "middle"))
    return svg.drawing(_HEIGHT, label, parts)


def bar(share: float, class_: str = "delivered") -> Markup:
    """A share of 1 as a bar of a table's cell, which says it in numbers beside."""
    inner = svg.element("rect", x=0, y=0, width=100.0 * min(1.0, max(0.0, share)), height=8, class_=class_)
    whole = svg.element("rect", x=0, y=0, width=100, height=8, class_="rest")
    return svg.element(
        "svg", whole, inner, viewBox="0 0 100 8", preserveAspectRatio="none", class_="bar", aria_hidden="true"
    )


def dots(before: float | None, after: float) -> Markup:
    """Two shares of 1 on one line, before and after, in a table's cell."""
    parts = [svg.line(3, 6, 117, 6, "grid")]
    scale = svg.Scale(0, 1, 3, 117)
    if before is not None:
        parts.append(svg.line(scale(before), 6, scale(after), 6, "lost" if after < before else "won"))
        parts.append(svg.element("circle", cx=scale(before), cy=6, r=3, class_="base"))
    parts.append(svg.element("circle", cx=scale(after), cy=6, r=3, class_="delivered"))
    return svg.element("svg", *parts, viewBox="0 0 120 12", class_="dots", aria_hidden="true")


def shares(parts: Sequence[tuple[str, float, str]]) -> Markup:
    """Shares of a whole beside each other: (name, share of 1, class of its colour)."""
    drawn, start = [], 0.0
    for name, share, class_ in parts:
        width = svg.WIDTH * share
        drawn.append(
            svg.element(
                "rect", svg.element("title", escape(f"{name}: {100 * share:.1f} %")),
                x=start, y=0, width=width, height=26, class_=class_,
            )
        )  # fmt: skip
        if width > 44:
            drawn.append(svg.text(start + width / 2, 17.5, f"{100 * share:.0f} %", "middle", class_="inside"))
        start += width
    label = "; ".join(f"{name}: {100 * share:.1f} %" for name, share, _ in parts)
    return svg.drawing(26, label, drawn)


def matrix(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]], label: str,
    letters: int = 22, upright: bool = False,
) -> Markup:  # fmt: skip
    """Shares of 1, a square each, the darker the more; None stays empty. Columns have short names, such as numbers;
    ``upright`` are longer ones, of few columns."""
    left = 8.0 + 6.2 * min(letters, max(map(len, rows), default=0))
    head = 20.0 if upright else 8.0 + 6.0 * max(map(len, columns), default=0)
    width = max(svg.WIDTH, left + 12.0 * len(columns))
    cell = (width - left) / len(columns)
    tall = min(18.0, max(13.0, cell))
    parts = []
    for number, name in enumerate(columns):
        x = left + (number + 0.5) * cell
        if upright:
            parts.append(svg.text(x, head - 6, name, "middle", class_="small"))
        else:
            turn = f"rotate(-90 {x + 3.5:g} {head - 4:g})"
            parts.append(svg.text(x + 3.5, head - 4, name, class_="small", transform=turn))
    for down, (name, row) in enumerate(zip(rows, values, strict=True)):
        y = head + down * tall
        short = name if len(name) <= letters else name[: letters - 1] + "…"
        parts.append(svg.text(left - 5, y + tall / 2 + 4, short, "end", class_="small"))
        for across, value in enumerate(row):
            if value is None:
                continue
            x, shade = left + across * cell, min(1.0, max(0.0, value))
            title = svg.element("title", escape(f"{name}, {columns[across]}: {100 * value:.1f} %"))
            parts.append(
                svg.element("rect", title, x=x + 0.5, y=y + 0.5, width=cell - 1, height=tall - 1, class_="heat",
                            fill_opacity=round(0.06 + 0.94 * shade, 3))
            )  # fmt: skip
            if cell >= _CELL:
                on = "small inside" if shade > 0.55 else "small"
                parts.append(svg.text(x + cell / 2, y + tall / 2 + 4, f"{100 * value:.0f} %", "middle", class_=on))
    return svg.drawing(head + tall * len(rows) + 2, label, parts, width=width, class_="chart matrix")
