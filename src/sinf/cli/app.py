"""The ``sinf`` program: its verbs, and how errors reach a person."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from typing import Any, TextIO

import typer

from sinf.cli import artefacts, bench, bundles, clusters, demo, dynamic, export, models, optimize, prune, report
from sinf.cli.signals import Interrupts
from sinf.errors import DataWarning, DoesNotPayError, SinfError

_INTERRUPTED = 128 + signal.SIGINT
_DOES_NOT_PAY = 3

app = typer.Typer(
    name="sinf",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes leave one word a line in 80 columns
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make a trained image classifier faster, where it runs, for a loss of accuracy that you name.",
)

# One line each in the list of verbs, which is 80 columns wide.
app.command(short_help="The fastest network within a limit of the loss.")(optimize.optimize)
app.command(short_help="Where a model's time goes, and where it can be cut.")(models.profile)
app.command(short_help="Group the classes of data without superclasses.")(clusters.clusters)
app.command(short_help="Train a network from random weights, or a pruned one on.")(models.train)
app.command(short_help="Make a model smaller for all its classes: a plain model.")(prune.prune)
app.command(short_help="Make a bundle: a subgraph for every semantic cluster.")(bundles.build)
app.command("eval", short_help="Accuracy and MACs, base beside ours.")(artefacts.evaluate)
app.command(short_help="Classes, route and time of images.")(artefacts.predict)
app.command(short_help="Time of base and ours, in turns, in one engine.")(bench.bench)
app.command(short_help="Measure what the tails cost here, for small batches.")(bench.tune)
app.command(short_help="Runs of sinf bench beside each other.")(bench.results)
app.command(short_help="One page that shows what was made, to send to anyone.")(report.report)
app.command(short_help="Write a bundle for ONNX Runtime, OpenVINO or browsers.")(export.export)
app.command(short_help="Try it on the embedded network and images.")(demo.demo)
app.add_typer(dynamic.app, name="dynamic")


def main() -> None:
    """Run the program, and exit: 2 and one line where an error was made on purpose; 3 and one line where what was
    made is not worth having, and is not written (:class:`sinf.errors.DoesNotPayError`); 130 or 143 and one line where
    SIGINT or SIGTERM ended it; 1 where nobody reads what it prints."""
    _find_own_code()
    with Interrupts() as interrupts:
        try:
            code = _run()
        except KeyboardInterrupt:
            code = _INTERRUPTED
        if code == _INTERRUPTED:
            print("interrupted; the same command goes on from the last step that was finished", file=sys.stderr)
            code = 128 + (interrupts.number or signal.SIGINT)
    raise SystemExit(code)


def _find_own_code() -> None:
    """Let ``package.module:factory`` lie in the current folder, last on the path: a file there never stands in for a
    library's module of the same name."""
    with contextlib.suppress(OSError):  # the folder was removed
        here = os.getcwd()
        if here not in sys.path and "" not in sys.path:
            sys.path.append(here)


def _run() -> int | str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", DataWarning)
            warnings.showwarning = _WarningsOnce()
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


class _WarningsOnce:
    """Shows what sinf warns of in one line, without the place in its code, each text once; and what other libraries
    warn of once for each place in their code, whatever the text: a loop over layers names every one."""

    def __init__(self) -> None:
        self._shown: set[tuple[Any, ...]] = set()

    def __call__(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        ours = issubclass(category, DataWarning)
        key = (category, str(message)) if ours else (category, filename, lineno)
        if key in self._shown:
            return
        self._shown.add(key)
        text = f"warning: {message}\n" if ours else warnings.formatwarning(message, category, filename, lineno, "")
        print(text, file=sys.stderr, end="")
