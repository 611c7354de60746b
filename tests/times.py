"""Times that are made up: of layers, where budgets of time are tested, and of models, where choices are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import fx

from sinf.compress.prices import Prices
from sinf.compress.select import Budget
from sinf.graph.cost import MacCount
from sinf.graph.coupling import couple
from sinf.graph.price import LayerTimes, Line, Price, Widths
from sinf.measure.timing import Latency


def latency(ms: float, base: float = 10.0, off: float = 0.0) -> Latency:
    """Of a model beside a base model, every time; ``off`` is half of the interval of the time saved."""
    saved = 1 - ms / base
    return Latency(1, 1, 10, base, base, base, base, base, ms, ms, ms, ms, ms, saved, saved - off, saved + off)


def taking(ms: Callable[[str], float]) -> Callable[..., dict[str, Latency]]:
    """An interleaved() by which candidates take so many milliseconds, by their names, and the base model ten."""

    def timed(base: Any, candidates: Mapping[str, Any], images: Any, *, pairs: int, **options: Any) -> Any:
        return {name: replace(latency(ms(name)), pairs=pairs) for name in candidates}

    return timed


def like_macs(graph: fx.GraphModule) -> LayerTimes:
    """Times that are what MACs are."""
    return times_of(MacCount(graph, couple(graph)))


def times_of(count: MacCount, each: dict[str, float] | None = None, rest: float = 0.0) -> LayerTimes:
    """Times that are what MACs are, times ``each`` by target, and a ``rest`` beside them."""
    layers: dict[str, Price] = {}
    total = 0.0
    for target in Prices(Budget(1.0), count).targets():
        calls = [positions for name, _, positions in count.nodes if name == target]
        module, scale = next(m for name, m, _ in count.nodes if name == target), (each or {}).get(target, 1.0)
        (out, into), kernel = module.weight.shape[:2], module.weight[0, 0].numel()
        positions = calls[0] // kernel
        rows, columns = (module.weight.shape[2:]) if module.weight.ndim == 4 else (1, 1)
        layers[target] = Price(
            Widths(pair=scale * positions * kernel),
            Line(0.0, scale * positions * (into * kernel + out)),
            Line(0.0, scale * positions * (into * columns + out * rows)),
        )
        total += len(calls) * scale * positions * kernel * out * into
    return LayerTimes("here", "f32", total + rest, total, tuple(layers.items()))
