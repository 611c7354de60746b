"""What ``sinf optimize`` chose, and from what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from sinf.measure.shares import percent_less, relative, times_less
from sinf.pipelines.optimize_search import BASE, COMPILED
from sinf.report.terminal import Terminal

if TYPE_CHECKING:
    from sinf.pipelines.optimize import OptimizeConfig, Optimized, Row


def show_optimized(optimized: Optimized, config: OptimizeConfig, folder: Path) -> None:
    """What was chosen and promised, then a table: what was tested, the base model in other precisions and the fastest
    of every kind within the limit, the fastest last; how many others there were is said."""
    console, chosen = Terminal(), optimized.chosen
    int8 = next((row.time for row in optimized.rows if (row.name, row.precision) == (BASE, "int8")), None)
    times, less = times_less(relative(chosen.time, optimized.own))
    beside = f", {percent_less(chosen.share)} than it in {config.engine}"
    if int8 is not None and chosen.time is not int8:
        beside += f", {percent_less(relative(chosen.time, int8))} than it there in int8"
    console.print(
        Text.assemble(
            (f"{times} {less} than your model as loaded", "bold"),
            f"{beside}, by {chosen.name}, {chosen.precision}. {optimized.promise}",
        )
    )
    table = Table(
        title=f"{config.engine}, batch {config.batch}, {config.threads} thread(s)\n"
        "each was timed in turns with the base model there, in one run or several: compare percentages, not ms\n"
        f"loss on {chosen.loss.images:,} images that choose, with its 95 % interval; sizes are shares of the cost"
    )
    for name in ("", "", "points lost", "ms", "less time", *([] if int8 is None else ["less than\nint8"])):
        table.add_column(name, justify="right" if name else "left", no_wrap=len(table.columns) != 1)
    table.add_row("", "your model as loaded, torch f32", "", f"{optimized.own.mean:.2f}")
    if optimized.compiled is not None:
        table.add_row("", COMPILED, "", f"{optimized.compiled.mean:.2f}")
    table.add_row("", f"{BASE}, f32", "", f"{chosen.time.base_mean:.2f}")
    shown = worth_showing(optimized.rows, config.max_loss)
    for row in sorted(shown, key=lambda row: -row.share):
        loss = f"{row.loss.points:.2f} ({row.loss.low:.1f} .. {row.loss.high:.1f})"
        what = f"{row.name}, {row.precision}"
        shares = [row.share, *([] if int8 is None else [relative(row.time, int8)])]
        saved = (f"{100 * (1 - share):.1f} %" for share in shares)
        table.add_row(verdict(row, row == chosen), what, loss, f"{row.time.mean:.2f}", *saved)
    console.print(table)
    others = len(optimized.rows) - len(shown)
    if others:
        console.print(f"{others} others are slower than one of these, or lose more than was asked; --json has them.")
    for reason in optimized.left_out:
        console.print(f"left out: {reason}")
    console.print(f"{folder} is the chosen one.")


def worth_showing(rows: Sequence[Row], max_loss: float) -> list[Row]:
    """Those that were tested, of every kind and precision the fastest within the limit (a fraction), and the base model
    in other precisions, which is what a user would run instead."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row.kind, row.precision)
        if row.loss.points <= 100 * max_loss and (key not in best or row.share < best[key].share):
            best[key] = row
    return [
        row
        for row in rows
        if row.accepted is not None or row.name == BASE or best.get((row.kind, row.precision)) is row
    ]


def verdict(row: Row, chosen: bool) -> str:
    """What the calibration images said."""
    if chosen:
        return "chosen"
    return {None: "", True: "holds", False: "refused"}[row.accepted]
