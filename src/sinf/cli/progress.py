"""How long work shows where it is: a bar on a terminal, and elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sinf.machine.durations import duration

_SECONDS = 30.0  # between two lines; of long steps a tenth of the time that they have taken
_SHARE = 0.1


class Steps:
    """Progress of named steps on standard error, with an estimate: ``steps(name, done, total)``."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._lines = None if console.is_terminal else Lines()
        self._progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Steps:
        if self._lines is None:
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lines is None:
            self._progress.stop()

    def __call__(self, step: str, done: int, total: int) -> None:
        if self._lines is not None:
            self._lines(step, done, total)
            return
        if step not in self._tasks:
            self._tasks[step] = self._progress.add_task(step, total=total or None)
        self._progress.update(self._tasks[step], completed=done, total=total or None)

    @contextmanager
    def once(self, step: str) -> Iterator[None]:
        """A step that says nothing of how far it is."""
        self(step, 0, 1)
        yield
        self(step, 1, 1)


@dataclass
class _Step:
    """One step: when it began and with how much done, when a line was last written, and how far it is."""

    began: float
    first: int
    told: float
    done: int


class Lines:
    """The same in lines, for a file or another program: one when a step begins, one every 30 seconds or more with what
    is left, and one at the end of a step that took as long. ``clock`` is in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._steps: dict[str, _Step] = {}

    def __call__(self, step: str, done: int, total: int) -> None:
        now = self._clock()
        state = self._steps.get(step)
        if state is None or done < state.done:  # a step may be done again, for other images
            if state is None:
                self._write(f"{step} ...")
            self._steps[step] = _Step(now, done, now, done)
            return
        elapsed, before, state.done = now - state.began, state.done, done
        if total and done >= total:
            if before < total and elapsed >= _SECONDS:
                self._write(f"{step} done, {duration(elapsed)}")
        elif now - state.told >= max(_SECONDS, _SHARE * elapsed):
            state.told = now
            self._write(f"{step} {_where(state, elapsed, total)}")

    def _write(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def announce(line: str) -> None:
    """Say what is expected, before work begins."""
    print(line, file=sys.stderr, flush=True)


def _where(step: _Step, elapsed: float, total: int) -> str:
    """``34 % (12 of 36), 5 min left``: what was done before this run, which resumes, says nothing of its pace."""
    if not total:
        return f"{step.done}"
    made = step.done - step.first
    left = f", {duration(elapsed * (total - step.done) / made)} left" if made else ""
    return f"{100 * step.done // total} % ({step.done} of {total}){left}"
