"""How long the layers of a network take where it will run, at any width and rank: what budgets in time are made of.

Layers of one kind (kernel, stride, place) are timed in small networks of their own, at two widths each way; between and
beyond these time is taken to be bilinear, which is a few per cent off for layers of usual widths. A layer that becomes
two is the sum of both. So a dozen kinds tell of every network that could be made of a network. Their times are kept for
other networks (:mod:`sinf.measure.layer_table`); that of the whole network is measured each time.

The few layers of no kind that is timed (in one dimension or three, on windows, padded otherwise than by zeros) are
priced by their MACs.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, astuple
from statistics import median
from typing import Any

import torch
from torch import Tensor, fx, nn

from sinf.engine.engines import native, runtime_of
from sinf.engine.network_engine import open_network
from sinf.errors import DataWarning
from sinf.graph.cost import calls_of_layers
from sinf.graph.delta import can_factor, groups_of
from sinf.graph.price import LayerTimes, Line, Price, Widths, blocks
from sinf.graph.trace import layer
from sinf.measure.accuracy import machine
from sinf.measure.layer_kinds import Kind, Probe
from sinf.measure.layer_table import LayerTable, Times, is_idle
from sinf.measure.timing import OtherProcesses, Progress, pinned_threads
from sinf.version import __version__

FORMAT = 3  # of what is kept and stored: another one when layers are timed, or written, in another way
RUNS, LEAST_RUNS, SECONDS = 100, 10, 60  # of every probe; fewer where all together would take longer
LEAST_SECONDS = 0.5  # of all together: the system counts the time of other processes in hundredths
_BYTES = {"int8": 1, "bf16": 2}  # of a number; four in f32
_TOUCHED = (2, 8, 32, 128)  # MB: networks between two of these fill about as much of the caches
_LEAST = 8  # channels
_SMALL = 1 / 4  # of the most channels of a kind: the smaller of the two widths that are timed
_RANGES = 4  # images

#: A network, and what it reads.
_Running = tuple[Callable[[Any], Any], Any]
#: Of a layer: target, module, its kind (None: not timed), and MACs for one output and one input (of a group).
_Call = tuple[str, nn.Module, Kind | None, int]


def layer_times(
    graph: fx.GraphModule,
    run: Callable[[Tensor], Any],
    size: tuple[int, int, int],
    engine: str,
    *,
    precision: str = "f32",
    batch: int = 1,
    threads: int = 1,
    table: LayerTable | None = None,
    progress: Progress | None = None,
) -> LayerTimes:
    """Time the kinds of layers of ``graph``, whose nodes know their shapes, and the whole network ``run`` on images of
    ``size``, all in turns. Kinds that are in the ``table`` are not timed again, and those that are not come into it.

    While other processes take time, the table is neither used nor written, since times of a loaded machine fit together
    only with each other; a warning says so.

    Raises:
        ConfigError: there is no such engine, or it has no such precision.
        DependencyError: its package is missing.
    """
    table = table or LayerTable(None)
    calls = list(_calls(graph))
    where = _where(graph, engine, precision, batch, threads)
    together = runtime_of(engine).together(precision)
    widest = _widest(calls, together)
    kept = _kept(widest, where, table)
    images = torch.randn(batch, *size, generator=torch.Generator().manual_seed(0))
    stand = _Stand(
        run, images, lambda probe: _opened(probe, engine, precision, batch, threads), threads, together, progress
    )
    total, timed, load = stand.measure({kind: widths for kind, widths in widest.items() if kind not in kept})
    if kept and not is_idle(load):
        kept = {}
        total, timed, load = stand.measure(widest)
    if is_idle(load):
        for kind, times in timed.items():
            table.keep(where | asdict(kind), times, load)
    elif table.folder is not None:
        warnings.warn(
            f"other processes took {load:.2f} cores while layers were timed: these times are not kept for other "
            "networks, and are surer on an idle machine",
            DataWarning,
            stacklevel=2,
        )
    kinds = {kind: _bilinear(kind, times) for kind, times in (kept | timed).items()}
    layers = {target: _price(module, kind, kinds, together) for target, module, kind, _ in calls if kind is not None}
    layers |= _by_macs(calls, layers, total)
    in_layers = sum(layers[target].widths.at(*module.weight.shape[:2]) for target, module, *_ in calls)
    there = f"{engine} {precision}, batch {batch}, {threads} thread{'s' if threads > 1 else ''}"
    return LayerTimes(there, precision, total, in_layers, tuple(layers.items()), together)


class _Stand:
    """Times small networks beside the whole one, ``run`` on ``images``; what was ``opened`` stays open."""

    def __init__(
        self,
        run: Callable[[Tensor], Any],
        images: Tensor,
        opened: Callable[[Probe], _Running],
        threads: int,
        together: int,
        progress: Progress | None,
    ) -> None:
        self._running: dict[Probe | None, _Running] = {None: (run, images)}
        self._opened, self._threads, self._together = opened, threads, together
        self._progress = progress or (lambda done, total: None)

    def measure(self, widest: dict[Kind, tuple[int, int]]) -> tuple[float, dict[Kind, Times], float | None]:
        """Milliseconds of the whole network, and of kinds up to these widths, and what other processes took meanwhile,
        in cores."""
        probes = _all_probes(widest, self._together)
        for number, probe in enumerate(probes):
            if probe not in self._running:
                self._running[probe] = opened, x = self._opened(probe)
                opened(x)  # what an engine does at first, it does here
            self._progress(number + 1, len(probes))
        if not probes:
            self._progress(1, 1)
        others = OtherProcesses()
        timed = _in_turns({probe: self._running[probe] for probe in (None, *probes)}, self._threads)
        load = others.load()
        times: dict[Kind, Times] = {}
        for probe in probes:
            if not probe.bare:
                alone = max(0.0, timed[probe] - timed[probe.stem])
                times.setdefault(probe.kind, {})[probe.out, probe.into] = alone
        return timed[None], times, load


def probes_of(graph: fx.GraphModule, table: LayerTable | None = None, engine: str = "torch", **options: Any) -> int:
    """How many small networks :func:`layer_times` opens in an ``engine``, with its ``options``; all that there are
    without a ``table``."""
    together = runtime_of(engine).together(options.get("precision", "f32"))
    widest = _widest(_calls(graph), together)
    if table is not None:
        kept = _kept(widest, _where(graph, engine, **options), table)
        widest = {kind: widths for kind, widths in widest.items() if kind not in kept}
    return len(_all_probes(widest, together))


def _where(
    graph: fx.GraphModule, engine: str, precision: str = "f32", batch: int = 1, threads: int = 1
) -> dict[str, Any]:
    """All that the times of a kind of layer depend on, beside the kind."""
    return {
        "format": FORMAT, "sinf": __version__, **machine(), "instructions": torch.backends.cpu.get_cpu_capability(),
        "engine": engine, "engine_version": runtime_of(engine).version, "precision": precision, "batch": batch,
        "threads": threads, "touched_mb": _touched(graph, batch, precision),
    }  # fmt: skip


def _touched(graph: fx.GraphModule, batch: int, precision: str = "f32") -> int | None:
    """How much of the caches a run of the network takes, by weights and by what layers write: MB at most, None for more
    than all steps. It runs before each run of a layer, so times of layers depend on it."""
    weights: dict[Any, int] = {}
    written = 0
    for node in graph.graph.nodes:
        if node.op == "call_module" and node.meta.get("shape") is not None:
            weights[node.target] = sum(weight.numel() for weight in layer(graph, node).parameters())
            written += batch * math.prod(node.meta["shape"]) * bool(weights[node.target])
    touched = _BYTES.get(precision, 4) * (sum(weights.values()) + written)
    return next((step for step in _TOUCHED if touched <= step << 20), None)


def _kept(widest: dict[Kind, tuple[int, int]], where: dict[str, Any], table: LayerTable) -> dict[Kind, Times]:
    kept = {kind: table.find(where | asdict(kind), *widths) for kind, widths in widest.items()}
    return {kind: times for kind, times in kept.items() if times is not None}


def _all_probes(widest: dict[Kind, tuple[int, int]], together: int) -> list[Probe]:
    """Those of the kinds, and then of what stands around them."""
    probes = [probe for kind, widths in widest.items() for probe in _probes(kind, *widths, together)]
    return probes + list(dict.fromkeys(probe.stem for probe in probes))


def _calls(graph: fx.GraphModule) -> Iterator[_Call]:
    for node, module, macs in calls_of_layers(graph):
        read = node.all_input_nodes[0].meta.get("shape")
        yield str(node.target), module, None if read is None else Kind.of(module, read), macs


def _widest(calls: Iterable[_Call], together: int = 1) -> dict[Kind, tuple[int, int]]:
    """The most outputs and inputs of every kind that is there or could come; where the most are computed ``together``,
    more channels could be between separable layers, and two widths are needed to tell what they cost."""
    widest: dict[Kind, tuple[int, int]] = {}

    def note(kind: Kind, out: int, into: int) -> None:
        before = widest.get(kind, (0, 0))
        widest[kind] = max(before[0], out), max(before[1], into)

    for _, module, kind, _ in calls:
        if kind is None:
            continue
        out, into = module.weight.shape[:2]
        note(kind, out, into)
        if can_factor(module):
            reduce, expand = _through_channels(module, kind, together)
            note(reduce, out, into)
            note(expand, out, out // groups_of(module))
            if kind.separable:
                first, second = kind.separated()
                rows, columns = kind.kernel
                between = max(out, min(into * columns, out * rows, 2 * max(together, _LEAST)))
                note(first, between, into)
                note(second, out, between)
    return widest


def _through_channels(module: nn.Module, kind: Kind, together: int) -> tuple[Kind, Kind]:
    """The kinds of the two layers through channels that a layer may become."""
    groups = groups_of(module)
    return kind.halves(groups, blocks(together, groups, *module.weight.shape[:2]) if groups > 1 else 1)


def _probes(kind: Kind, out: int, into: int, together: int = 1) -> Iterator[Probe]:
    """At a small and at the largest width each way that differs; ``into`` is of a group."""
    if kind.groups is None:
        yield from (Probe(kind, o, into) for o in _ends(out, together, kind.outputs or 1))
        return
    groups, step = kind.groups, kind.groups * kind.block
    outs = _ends(out, together, step) if kind.outputs is None else (out,)
    reads = _ends(groups * into, together, step) if kind.inputs is None else (groups * into,)
    yield from (Probe(kind, o, read // groups) for o in outs for read in reads)


def _ends(most: int, together: int = 1, step: int = 1) -> tuple[int, ...]:
    """A small width, of as many channels as are computed ``together`` and a multiple of ``step``, and the largest; one
    alone where these would be the same."""
    least = max(_LEAST, together)
    small = max(least, int(_SMALL * most) // least * least)
    small = math.ceil(small / step) * step
    return (small, most) if small < most else (most,)


def _opened(probe: Probe, engine: str, precision: str, batch: int, threads: int) -> _Running:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(max(batch, _RANGES), *probe.input_size, generator=draw)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = probe.network()
    opened = open_network(
        network, probe.input_size, engine, threads=threads, precision=precision, calibration=x[:_RANGES]
    )
    return opened, native(engine, x[:batch])


@torch.no_grad()
def _in_turns(running: dict[Probe | None, _Running], threads: int) -> dict[Probe | None, float]:
    """The median of all runs, in milliseconds, one of each in a round, so that what slows the machine slows each.

    Between two runs of a layer the whole network runs. A layer that runs again and again has its weights in the
    innermost cache; in a network each has to bring them in, and small layers would seem faster than they are there.
    """
    times: dict[Probe | None, list[float]] = {probe: [] for probe in running}
    whole, images = running[None]
    with pinned_threads(threads):
        start = time.perf_counter()
        for run, x in running.values():
            run(x)
            whole(images)
        once = time.perf_counter() - start
        for _ in range(max(LEAST_RUNS, min(max(RUNS, round(LEAST_SECONDS / once)), round(SECONDS / once)))):
            for probe, (run, x) in running.items():
                run(x)
                whole(images)
                start = time.perf_counter()
                run(x)
                times[probe].append(1000 * (time.perf_counter() - start))
    return {probe: median(runs) for probe, runs in times.items()}


def _bilinear(kind: Kind, times: Times) -> Widths:
    """Through what was timed of a kind, at one, two or four pairs of widths."""
    outs, intos = (sorted({pair[side] for pair in times}) for side in (0, 1))
    (o, most_o), (i, most_i) = (outs[0], outs[-1]), (intos[0], intos[-1])
    at_small, at_most = (
        _rising(o, most_o, times[o, into], times[most_o, into], kind.factored) for into in (i, most_i)
    )  # lines over outputs, at the few and at the most inputs
    if most_i == i:
        return at_most
    into = (at_most.fixed - at_small.fixed) / (most_i - i)
    pair = (at_most.out - at_small.out) / (most_i - i)
    return Widths(at_most.fixed - into * most_i, at_most.out - pair * most_i, into, pair)


def _rising(first: float, last: float, at_first: float, at_last: float, higher: bool = False) -> Widths:
    """The line over outputs through two points. What is timed falling does not depend on the outputs: it takes what the
    most take, or the ``higher`` of both, where there are always fewer and engines have a faster way for the most."""
    each = max(0.0, (at_last - at_first) / (last - first)) if last > first else 0.0
    level = max(at_first, at_last) if higher else at_last
    return Widths(level - each * last, each)


def _price(module: nn.Module, kind: Kind, kinds: dict[Kind, Widths], together: int) -> Price:
    own, (out, into) = kinds[kind], module.weight.shape[:2]
    if not can_factor(module):
        return Price(own)
    reduce, expand = _through_channels(module, kind, together)
    channels, separable = _pair(kinds[reduce], kinds[expand], out, into, groups_of(module)), None
    if kind.separable:
        first, second = kind.separated()
        separable = _pair(kinds[first], kinds[second], out, into)
    return Price(own, channels, separable)


def _pair(first: Widths, second: Widths, out: int, into: int, groups: int = 1) -> Line:
    """Of two layers, by the channels between them, of all groups."""
    fixed = first.fixed + first.into * into + second.fixed + second.out * out
    return Line(fixed, first.out + first.pair * into + (second.into + second.pair * out) / groups)


def _by_macs(calls: list[_Call], timed: dict[str, Price], total: float) -> dict[str, Price]:
    """Prices of the layers that are not ``timed``: as much a MAC as the others take, and all together at most the time
    that the network has beside these."""
    taken, macs, left = 0.0, 0, 0
    for target, module, _, each in calls:
        out, into = module.weight.shape[:2]
        if target in timed:
            taken, macs = taken + timed[target].widths.at(out, into), macs + each * out * into
        else:
            left += each * out * into
    if not left:
        return {}
    rest = max(0.0, total - taken) / left
    a_mac = min(rest, taken / macs) if macs else rest
    return {target: Price(Widths(pair=a_mac * each)) for target, _, _, each in calls if target not in timed}


def to_tensors(times: LayerTimes) -> dict[str, Tensor]:
    """Times as steps are stored, which depend on :data:`FORMAT`; text is its bytes."""
    nothing = (math.nan, math.nan)
    tensors = {
        name: torch.tensor(list(text.encode()), dtype=torch.uint8)
        for name, text in (("where", times.where), ("precision", times.precision))
    }
    tensors |= {
        "total": torch.tensor([times.total, times.in_layers, times.together], dtype=torch.float64),
    }
    for target, price in times.layers:
        lines = [nothing if line is None else (line.fixed, line.each) for line in (price.channels, price.separable)]
        tensors[f"layer.{target}"] = torch.tensor([*astuple(price.widths), *lines[0], *lines[1]], dtype=torch.float64)
    return tensors


def from_tensors(stored: dict[str, Tensor]) -> LayerTimes:
    """What :func:`to_tensors` stored, the same to the bit."""
    total, in_layers, together = stored["total"].tolist()
    layers = []
    for name in sorted(stored):
        if name.startswith("layer."):
            *widths, first, each, down, across = stored[name].tolist()
            channels, separable = (
                None if math.isnan(line[0]) else Line(*line) for line in ((first, each), (down, across))
            )
            layers.append((name.removeprefix("layer."), Price(Widths(*widths), channels, separable)))
    where, precision = (bytes(stored[name].tolist()).decode() for name in ("where", "precision"))
    return LayerTimes(where, precision, total, in_layers, tuple(layers), int(together))
