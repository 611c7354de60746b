"""What ``sinf optimize`` chose, and from what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from sinf.measure.timing import Latency
    from sinf.pipelines.optimize import OptimizeConfig, Optimized, Row


def show_optimized(found: Optimized, config: OptimizeConfig, folder: Path) -> None:
    """A table of all candidates, the fastest last, and what is promised of the chosen one."""
    console, chosen = Console(), found.chosen
    table = Table(
        title=f"{config.engine}, batch {config.batch}, {config.threads} thread(s), all timed in turns in one run\n"
        f"loss on {chosen.loss.images:,} images that choose, with its 95 % interval; sizes are shares of the cost"
    )
    for name in ("", "", "points lost", "ms", "less time"):
        table.add_column(name, justify="right" if name else "left", no_wrap=len(table.columns) != 1)
    table.add_row("", "your model as loaded, torch f32", "", f"{found.own.mean:.2f}", saved(found.own))
    table.add_row("", "base model, f32", "", f"{chosen.time.base_mean:.2f}", "")
    for row in sorted(found.rows, key=lambda row: -row.time.mean):
        loss = f"{row.loss.points:.2f} ({row.loss.low:.1f} .. {row.loss.high:.1f})"
        what = f"{row.name}, {row.precision}"
        table.add_row(verdict(row, row == chosen), what, loss, f"{row.time.mean:.2f}", saved(row.time))
    console.print(table)
    for reason in found.left_out:
        console.print(f"left out: {reason}")
    times = found.own.mean / chosen.time.mean
    console.print(
        f"{folder}: {chosen.name}, {chosen.precision}. {times:.1f} times less time than your model as loaded, "
        f"{100 * chosen.time.time_saved:.1f} % less than it in {config.engine}. {found.promise}"
    )


def saved(time: Latency) -> str:
    """Less time than the base model in its engine."""
    return f"{100 * time.time_saved:.1f} %"


def verdict(row: Row, chosen: bool) -> str:
    """What the calibration images said."""
    if chosen:
        return "chosen"
    return {None: "", True: "holds", False: "refused"}[row.accepted]
