"""What ``sinf optimize`` chose, and from what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from sinf.report.terminal import Terminal

if TYPE_CHECKING:
    from sinf.measure.timing import Latency
    from sinf.pipelines.optimize import OptimizeConfig, Optimized, Row


def show_optimized(optimized: Optimized, config: OptimizeConfig, folder: Path) -> None:
    """What was chosen and promised, then a table: what was tested and the fastest of every kind within the limit, the
    fastest last; how many others there were is said."""
    console, chosen = Terminal(), optimized.chosen
    times = optimized.own.mean / chosen.time.mean
    console.print(
        Text.assemble(
            (f"{times:.1f} times less time than your model as loaded", "bold"),
            f", {100 * chosen.time.time_saved:.1f} % less than it in {config.engine}, by {chosen.name}, "
            f"{chosen.precision}. {optimized.promise}",
        )
    )
    table = Table(
        title=f"{config.engine}, batch {config.batch}, {config.threads} thread(s), all timed in turns in one run\n"
        f"loss on {chosen.loss.images:,} images that choose, with its 95 % interval; sizes are shares of the cost"
    )
    for name in ("", "", "points lost", "ms", "less time"):
        table.add_column(name, justify="right" if name else "left", no_wrap=len(table.columns) != 1)
    table.add_row("", "your model as loaded, torch f32", "", f"{optimized.own.mean:.2f}", "")
    table.add_row("", "base model, f32", "", f"{chosen.time.base_mean:.2f}", "")
    shown = worth_showing(optimized.rows, config.max_loss)
    for row in sorted(shown, key=lambda row: -row.share):
        loss = f"{row.loss.points:.2f} ({row.loss.low:.1f} .. {row.loss.high:.1f})"
        what = f"{row.name}, {row.precision}"
        table.add_row(verdict(row, row == chosen), what, loss, f"{row.time.mean:.2f}", saved(row.time))
    console.print(table)
    others = len(optimized.rows) - len(shown)
    if others:
        console.print(f"{others} others are slower than one of these, or lose more than was asked; --json has them.")
    for reason in optimized.left_out:
        console.print(f"left out: {reason}")
    console.print(f"{folder} is the chosen one.")


def worth_showing(rows: Sequence[Row], max_loss: float) -> list[Row]:
    """Those that were tested, and of every kind and precision the fastest within the limit (a fraction)."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row.kind, row.precision)
        if row.loss.points <= 100 * max_loss and (key not in best or row.share < best[key].share):
            best[key] = row
    return [row for row in rows if row.accepted is not None or best.get((row.kind, row.precision)) is row]


def saved(time: Latency) -> str:
    """Less time than the base model in its engine."""
    return f"{100 * time.time_saved:.1f} %"


def verdict(row: Row, chosen: bool) -> str:
    """What the calibration images said."""
    if chosen:
        return "chosen"
    return {None: "", True: "holds", False: "refused"}[row.accepted]
