"""Times that are made up: of layers, where budgets of time are tested, and of models, where choices are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from torch import fx

from sinf.compress.prices import Prices
from sinf.compress.select import Budget
from sinf.graph.cost import MacCount
from sinf.graph.coupling import couple
from sinf.graph.delta import groups_of
from sinf.graph.price import LayerTimes, Line, Price, Widths
from sinf.measure import layer_times
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


def of_layer(kernel: tuple[int, ...], out: int, into: int, read: int | None = None) -> float:
    """0.5 + 0.01 o + 0.02 r + 0.003 o i by kernel, for o outputs that read i channels each, of r in all."""
    return 0.5 + 0.01 * out + 0.02 * (read or into) + 0.003 * math.prod(kernel) * out * into


def made_up_clock(
    monkeypatch: pytest.MonkeyPatch, taking: Callable[[Any], float] | None = None, total: float = 77.0
) -> list[Any]:
    """Layers take what :func:`of_layer` says, or ``taking`` says of a probe, what is around them 1 ms, and the whole
    network the ``total``. Gives what is opened."""
    opened: list[Any] = []

    def of_probe(probe: Any) -> float:
        return of_layer(probe.kind.kernel, probe.out, probe.into, probe.read)

    def in_turns(running: dict[Any, Any], threads: int) -> dict[Any, float]:
        opened.extend(probe for probe in running if probe is not None)
        layers = {p: 0.0 if p is None or p.bare else (taking or of_probe)(p) for p in running}
        return {probe: total if probe is None else 1.0 + ms for probe, ms in layers.items()}

    monkeypatch.setattr(layer_times, "_in_turns", in_turns)
    return opened


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
        positions, groups = calls[0] // kernel, groups_of(module)
        rows, columns = (module.weight.shape[2:]) if module.weight.ndim == 4 else (1, 1)
        layers[target] = Price(
            Widths(pair=scale * positions * kernel),
            Line(0.0, scale * positions * (into * kernel + out // groups)),
            Line(0.0, scale * positions * (into * columns + out * rows)) if groups == 1 else None,
        )
        total += len(calls) * scale * positions * kernel * out * into
    return LayerTimes("here", "f32", total + rest, total, tuple(layers.items()))
