"""Tables of plain models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinf.report.tables import _bytes, _console, _count, _share, _table

if TYPE_CHECKING:
    from sinf.measure.plain import PlainEvaluation
    from sinf.measure.timing import Alone
    from sinf.pipelines.exported import ExportEvaluation


def show_plain(result: PlainEvaluation) -> None:
    rows: list[tuple[str, Any, float]] = [
        ("top-1", _share, result.top1),
        ("top-5", _share, result.top5),
        ("MACs", _count, result.macs),
        ("parameters", _count, result.parameters),
    ]
    if result.base is None or result.base_size is None:
        table = _table(f"{result.images} images", "", "pruned")
        for name, shown, value in rows:
            table.add_row(name, shown(value))
    else:
        before = (result.base.top1, result.base.top5, result.base_size.macs, result.base_size.parameters)
        table = _table(f"{result.images} images", "", "base", "pruned", "difference")
        for (name, shown, value), base in zip(rows, before, strict=True):
            points = f"{100 * (value - base):+.2f} points" if shown is _share else f"{100 * (value / base - 1):+.1f} %"
            table.add_row(name, shown(base), shown(value), points)
    _console().print(table)


def show_export(result: ExportEvaluation) -> None:
    """Of what was exported, in its engine."""
    table = _table(f"{result.images:,} images, {result.engine} {result.precision}", "", "")
    if result.loss is not None and result.loss.base_top1 is not None:
        table.add_row("top-1 of the base model, f32", _share(result.loss.base_top1))
    table.add_row("top-1", _share(result.top1))
    if result.loss is not None:
        loss = result.loss
        table.add_row("points lost (95 %)", f"{loss.points:.2f} ({loss.low:.2f} .. {loss.high:.2f})")
        table.add_row("other answers than the base model's", _share(loss.disagreement))
    if result.fallback is not None:
        table.add_row("answered by the full tail", _share(result.fallback))
    console = _console()
    console.print(table)
    console.print(result.promise)


def show_alone(rows: list[Alone], facts: dict[str, Any]) -> None:
    """Of a model without a base model beside it."""
    title = f"Milliseconds a batch, {facts['engine']}, {rows[0].threads} thread(s), {facts['processor']}"
    table = _table(title, "batch", "median", "95 % interval", "p95", "mean")
    for r in rows:
        interval = f"{r.median_low:.2f} .. {r.median_high:.2f}"
        table.add_row(str(r.batch), f"{r.median:.2f}", interval, f"{r.p95:.2f}", f"{r.mean:.2f}")
    console = _console()
    console.print(table)
    console.print(
        f"peak memory {_bytes(facts['peak_memory_bytes'])}, folder {_bytes(facts['bundle_bytes'])}, "
        f"loaded in {facts['load_seconds']:.2f} s; --base MODEL times a base model in turns with it"
    )


def show_right(right: dict[str, float] | None, precision: str) -> None:
    """Shares of right answers in another precision than f32."""
    if right is not None:
        _console().print(f"top-1 in {precision}: " + ", ".join(f"{k} {_share(v)}" for k, v in right.items()))


def show_classes(records: list[dict[str, Any]]) -> None:
    table = _table("", "image", "classes", "ms", left=2)
    for record in records:
        classes = ", ".join(f"{c['name']} {100 * c['probability']:.1f} %" for c in record["classes"])
        table.add_row(Path(record["image"]).name, classes, f"{record['milliseconds']:.2f}")
    _console().print(table)


def show_parts(parts: dict[str, dict[str, float]]) -> None:
    """Of a bundle, beside the profile of its base model."""
    if parts:
        table = _table("Parts of the bundle, beside the base model above", "part", "MACs", "parameters")
        for name, part in parts.items():
            table.add_row(name, _count(part["macs"]), _count(part["parameters"]))
        _console().print(table)
