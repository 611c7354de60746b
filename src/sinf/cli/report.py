"""``sinf report``: what an artefact is and does, as one page to show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sinf.cli import options
from sinf.cli.kinds import kind_of, open_artefact
from sinf.cli.verb import command_line
from sinf.option import Option


def report(
    context: typer.Context,
    artefact: options.Artefact,
    data: options.Data,
    machine: options.Machine,
    split: options.UnseenSplit = "test[50%:]",
    results: Annotated[
        Path | None,
        Option("What optimize, bench, prune or build wrote with --json of this artefact: candidates, times."),
    ] = None,
    out: Annotated[Path, Option("The page; an earlier report is replaced.")] = Path("report.html"),
    threshold: options.Threshold = None,
    base: options.Base = None,
    base_weights: options.BaseWeights = None,
    allow_factory: options.AllowFactory = False,
) -> None:
    """Write one HTML page that shows an artefact: what it saves and loses, where inputs stop, which classes suffer,
    what is left of every layer, and where it comes from. It loads and runs nothing, and can be sent to anyone."""
    from sinf.cli.room import Need, fit
    from sinf.report.page import check_out, write_report
    from sinf.report.results import read_results

    check_out(out)  # before anything is computed, as all that follows
    if results is not None:
        read_results(results)
    kind = kind_of(artefact, threshold=threshold, base=base)
    options.write_alone(context, out)
    machine.pin()
    model: Any = open_artefact(artefact, threshold, allow_factory)
    images = data.for_artefact(model, split)
    beside = None if base is None else options.base_beside(model, base, base_weights)
    need = kind.need(model) if beside is None else kind.need(model).beside(Need.of_model(beside))
    fit(machine.memory, "report", need, model.preprocessing, images)
    with options.Steps() as steps:
        findings = write_report(
            model, images, out, source=artefact, base=beside, results=results, command=command_line(),
            progress=lambda done, total: steps("answers", done, total),
        )  # fmt: skip
    if findings.base is None:
        options.announce("a plain model does not hold its base model: --base MODEL shows what was lost")
    if results is None and not (findings.kind == "static" and model.measured):
        options.announce("no times: --results FILE takes what optimize, bench, prune or build wrote with --json")
    lost = "" if findings.loss is None else f"; lost: {findings.loss.points:.2f} points on {len(images):,} images"
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, opens in any browser{lost}")
