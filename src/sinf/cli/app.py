"""The ``sinf`` program: its verbs, and how errors reach a person."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import typer

from sinf.cli import bench, bundles, demo, dynamic, export, models, prune
from sinf.errors import DataWarning, SinfError

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
    """Run the program; an error made on purpose becomes one line and exit code 2."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", DataWarning)
            warnings.showwarning = _show_warning
            app()
    except SinfError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        raise SystemExit(130) from None


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """What sinf warns of is one line, without the place in its code."""
    if issubclass(category, DataWarning):
        print(f"warning: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, *place[:2]), file=sys.stderr, end="")
