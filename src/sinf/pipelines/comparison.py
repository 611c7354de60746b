"""A pruned model beside its base: measured, and saved as it was measured (:mod:`sinf.bundle.plain`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sinf.bundle.folder import require_place
from sinf.bundle.plain import PlainModel, card_of, deployed
from sinf.data.images import BATCH, LabelledImages
from sinf.graph.prepare import prepare
from sinf.graph.trace import trace
from sinf.machine.memory import DEFAULT, Memory, activations, weight_bytes
from sinf.measure.accuracy import machine
from sinf.measure.limits import Limits
from sinf.measure.plain import Size
from sinf.measure.shares import relative
from sinf.measure.timing import Latency, interleaved
from sinf.models import BaseModel

Progress = Callable[[str, int, int], None]
_TIMED = 500  # images that batches are made of

PREPARED = (
    "The base is timed twice: as it was loaded, and prepared, which makes it faster for nothing: batch norms in the "
    "convolutions before them, weights in the order of channels_last. The pruned model is saved as it was timed."
)


@dataclass(frozen=True)
class Comparison:
    """Base beside pruned: accuracies are fractions of 1 over ``images``, ``loss`` is in percentage points.

    ``times`` are those of the pruned network as it is saved, beside the base model prepared so too; ``own_times`` are
    those of the base model as it was loaded, beside the same, in the same run."""

    images: int
    base_top1: float
    top1: float
    loss: float
    base: Size
    pruned: Size
    times: tuple[Latency, ...]
    own_times: tuple[Latency, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def compare(
    base: BaseModel,
    pruned: BaseModel,
    images: LabelledImages,
    *,
    batches: tuple[int, ...] = (1, 32),
    pairs: int = 200,
    threads: int = 1,
    keep_batch_norm: bool = False,
    progress: Progress | None = None,
    memory: int = DEFAULT,
) -> Comparison:
    """Accuracy, MACs, parameters, and the time of each batch size: of the pruned network as :func:`save` writes it, of
    the base model prepared so too, and of the base model as it is, in turns in one run, in as many bytes as ``memory``
    says."""
    progress = progress or (lambda step, done, total: None)
    before = prepare(trace(base.module, base.spec.preprocessing))
    after = deployed(pruned, keep_batch_norm=keep_batch_norm).module
    budget = Memory(memory)
    each, fixed = activations(before).forward, 4 * weight_bytes(before) + budget.cache
    images.limit(budget.cache, budget.batch("comparison", each, BATCH, fixed=fixed))
    batches = Limits(batches=batches).within(budget, each, fixed).batches
    right, done = [0, 0], 0
    for x, y in images.batches(base.spec.preprocessing):
        for which, model in enumerate((before, after)):
            right[which] += int((model(x).argmax(1) == y).sum())
        done += len(y)
        progress("evaluating", done, len(images))
    x = images.inputs(base.spec.preprocessing)[:_TIMED]
    times = [
        interleaved(
            before, {"own": base.module, "pruned": after}, x, batch=batch, threads=threads,
            pairs=pairs if batch == 1 else max(10, pairs // 10),
            progress=lambda done, total, batch=batch: progress(f"batch {batch}", done, total),  # type: ignore[misc]
        )
        for batch in batches
    ]  # fmt: skip
    return Comparison(
        images=len(images),
        base_top1=right[0] / len(images),
        top1=right[1] / len(images),
        loss=100 * (right[0] - right[1]) / len(images),
        base=Size.of(base),
        pruned=Size.of(pruned),
        times=tuple(each["pruned"] for each in times),
        own_times=tuple(each["own"] for each in times),
    )


def save(
    pruned: BaseModel,
    folder: str | Path,
    class_names: list[str],
    *,
    provenance: Mapping[str, object] | None = None,
    comparison: Comparison | None = None,
    keep_batch_norm: bool = False,
    key: bytes | None = None,
) -> PlainModel:
    """Write a pruned network as it is run (:func:`sinf.bundle.plain.deployed`); a bundle that is there is
    replaced, anything else is refused. What was written is returned.

    Raises:
        BundleError: the folder holds something else, or cannot be written; what was there stays.
    """
    require_place(Path(folder))
    ready = deployed(pruned, keep_batch_norm=keep_batch_norm)
    facts = {name: str(value) for name, value in (provenance or {}).items()}
    facts["batch norms"] = "kept" if keep_batch_norm else "in the convolutions, where they follow one"
    table = [] if comparison is None else _table(comparison)
    measured = None if comparison is None else comparison.to_json() | machine()
    model = PlainModel(ready, class_names, provenance=facts, measured=measured, card=card_of(ready.spec, facts, table))
    model.save_pretrained(folder, key=key)
    return model


def _table(comparison: Comparison) -> list[str]:
    """Of a model card."""
    lines = [f"| on {comparison.images} images | your model, as loaded | base, prepared | pruned, as saved |"]
    lines += ["|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows_of(comparison))]
    facts = machine()
    return [*lines, "", f"{facts['processor']}, {facts['versions']}. {PREPARED}", ""]


def rows_of(comparison: Comparison) -> list[tuple[str, str, str, str]]:
    """What a table shows of a comparison: name, the user's own model as it was loaded, base prepared, pruned."""
    c = comparison
    macs, parameters = c.pruned.macs / c.base.macs, c.pruned.parameters / c.base.parameters
    rows = [
        ("top-1", f"{100 * c.base_top1:.2f} %", "the same", f"{100 * c.top1:.2f} % ({-c.loss:+.2f} points)"),
        ("MACs", f"{c.base.macs / 1e6:.1f} M", "the same", f"{c.pruned.macs / 1e6:.1f} M ({1 / macs:.2f}x fewer)"),
        (
            "parameters",
            f"{c.base.parameters / 1e6:.2f} M",
            "the same",
            f"{c.pruned.parameters / 1e6:.2f} M ({1 / parameters:.2f}x fewer)",
        ),
    ]
    for own, t in zip(c.own_times or (None,) * len(c.times), c.times, strict=True):
        saved = f"{100 * t.time_saved:.1f} % of the prepared base's mean saved, {100 * t.low:.1f} .. {100 * t.high:.1f}"
        if own is not None:
            # Beside a base model of its own each: what is compared is how much of the base's time both take.
            saved = f"{100 * (1 - relative(t, own)):.1f} % of your model's mean saved; {saved}"
        mine = "" if own is None else f"{own.median:.2f}"
        rows.append((f"median ms, batch {t.batch}", mine, f"{t.base_median:.2f}", f"{t.median:.2f} ({saved})"))
    return rows
