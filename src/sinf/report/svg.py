"""Drawings as text: elements of SVG with escaped attributes, scales and ticks. Colours are classes of the page's style
sheet, so that they follow dark mode and print."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 440.0  # of a drawing, in its own units: letters of 12 are readable on a phone


def element(name: str, *children: Markup | str, **attributes: object) -> Markup:
    """One element; texts and attributes are escaped. ``class_`` is class, and ``_`` in a name is ``-``."""
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(children)
    return Markup(f"<{name}{pairs}>{inner}</{name}>" if inner else f"<{name}{pairs}/>")


def text(x: float, y: float, content: str, anchor: str = "start", **attributes: object) -> Markup:
    return element("text", escape(content), x=x, y=y, text_anchor=anchor, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def drawing(
    height: float, label: str, children: Iterable[Markup], width: float = WIDTH, class_: str = "chart"
) -> Markup:
    """A whole drawing, which scales with the page; ``label`` says what it shows to those who do not see it."""
    size = f"0 0 {_short(width)} {_short(height)}"
    return element("svg", *children, viewBox=size, role="img", aria_label=label, class_=class_)


@dataclass(frozen=True)
class Scale:
    """From values ``low`` .. ``high`` to coordinates ``start`` .. ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        share = (value - self.low) / span if span else 0.5
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most ``most`` + 1 round numbers (1, 2 or 5 times a power of ten apart) within ``low`` .. ``high``."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def number(value: float) -> str:
    """A tick's label."""
    return f"{value:.10g}"


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
