"""The ``sinf`` program: its verbs, and how errors reach a person."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from typing import Any

import typer

from sinf.cli import bench, bundles, demo, dynamic, export, models, prune
from sinf.cli.signals import Interrupts
from sinf.errors import DataWarning, DoesNotPayError, SinfError

_INTERRUPTED = 128 + signal.SIGINT
_DOES_NOT_PAY = 3

app = typer.Typer(
    name="sinf",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make a trained image classifier faster: run, for each input, only the part of the network that it needs.",
)

app.command()(models.profile)
app.command()(models.train)
app.command()(prune.prune)
app.command()(bundles.build)
app.command("eval")(bundles.evaluate)
app.command()(bundles.predict)
app.command()(bench.bench)
app.command()(bench.tune)
app.command()(bench.results)
app.command()(export.export)
app.command()(demo.demo)
app.add_typer(dynamic.app, name="dynamic")


def main() -> None:
    """Run the program, and exit: 2 and one line where an error was made on purpose; 3 and one line where what was
    made is not worth having, and is not written (:class:`sinf.errors.DoesNotPayError`); 130 or 143 and one line where
    SIGINT or SIGTERM ended it; 1 where nobody reads what it prints."""
    with Interrupts() as interrupts:
        try:
            code = _run()
        except KeyboardInterrupt:
            code = _INTERRUPTED
        if code == _INTERRUPTED:
            print("interrupted; the same command goes on from the last step that was finished", file=sys.stderr)
            code = 128 + (interrupts.number or signal.SIGINT)
    raise SystemExit(code)


def _run() -> int | str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", DataWarning)
            warnings.showwarning = _show_warning
            app()
    except DoesNotPayError as error:
        print("nothing is written: " + " ".join(str(error).split()), file=sys.stderr)
        return _DOES_NOT_PAY
    except SinfError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except SystemExit as end:  # typer ends with one, for KeyboardInterrupt too
        return _flushed(end.code)
    return _flushed(None)


def _flushed(code: int | str | None) -> int | str | None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # as of `sinf results | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python flushes again, and complains
        return 1
    return code


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """What sinf warns of is one line, without the place in its code."""
    if issubclass(category, DataWarning):
        print(f"warning: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, *place[:2]), file=sys.stderr, end="")
