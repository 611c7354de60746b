"""The ``sinf`` program: its verbs, and how errors reach a person."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any, TextIO

import typer

from sinf.cli import artefacts, bench, bundles, clusters, demo, dynamic, export, models, optimize, prune, report
from sinf.cli.help_pages import Verb
from sinf.cli.signals import Interrupts
from sinf.cli.verb import verb
from sinf.errors import DataWarning, DoesNotPayError, SinfError, printable

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


def _add(
    to: typer.Typer,
    function: Callable[..., dict[str, Any] | None],
    line: str | None = None,
    name: str | None = None,
    *,
    runs: bool = False,
) -> None:
    """Make a verb of a function; ``line`` says what it does in the list of verbs, which is 80 columns wide."""
    to.command(name, cls=Verb, short_help=line)(verb(function, runs=runs))


_add(app, optimize.optimize, "The fastest network within a limit of the loss.", runs=True)
_add(app, models.profile, "Where a model's time goes, and where it can be cut.")
_add(app, clusters.clusters, "Group the classes of data without superclasses.", runs=True)
_add(app, models.train, "Train a network from random weights, or a pruned one on.", runs=True)
_add(app, prune.prune, "Make a model smaller for all its classes: a plain model.", runs=True)
_add(app, bundles.build, "Make a bundle: a subgraph for every semantic cluster.", runs=True)
_add(app, artefacts.evaluate, "Accuracy and MACs, beside the base model's.", "eval")
_add(app, artefacts.predict, "Classes, route and time of images.")
_add(app, bench.bench, "Time beside the base model's, in turns, in one engine.")
_add(app, bench.tune, "Measure what the tails cost here, for small batches.")
_add(app, bench.results, "Runs of sinf bench beside each other.")
_add(app, report.report, "One page that shows what was made, to send to anyone.")
_add(app, export.export, "Write a bundle for ONNX Runtime, OpenVINO or browsers.")
_add(app, demo.demo, "Try it on the embedded network and images.")

_dynamic = typer.Typer(no_args_is_help=True, help="Dynamic pruning: every input gets its own set of channels.")
_add(_dynamic, dynamic.train, runs=True)
_add(_dynamic, dynamic.evaluate, name="eval")
_add(_dynamic, dynamic.bench)
_add(_dynamic, dynamic.export)
app.add_typer(_dynamic, name="dynamic")


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
        of_data = issubclass(category, DataWarning)
        key = (category, str(message)) if of_data else (category, filename, lineno)
        if key in self._shown:
            return
        self._shown.add(key)
        text = (
            f"warning: {printable(str(message))}\n"
            if of_data
            else warnings.formatwarning(message, category, filename, lineno, "")
        )
        print(text, file=sys.stderr, end="")
