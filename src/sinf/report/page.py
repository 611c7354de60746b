"""One page that shows what an artefact is and does: a file that holds all it needs, and runs nothing.

page.html, page.css    the template, of jinja2, which escapes whatever is put into it
sections, routes       what the sections show, from the findings about the artefact (sinf.pipelines.findings)
front, charts, ...     drawings, as SVG
"""

from __future__ import annotations

import datetime
import math
import platform
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup

from sinf.data.images import LabelledImages
from sinf.errors import ConfigError, DataWarning
from sinf.measure.accuracy import machine
from sinf.measure.shares import times_less
from sinf.measure.timing import Progress
from sinf.models import BaseModel
from sinf.pipelines.findings import Artefact, Findings, find
from sinf.report import sections
from sinf.report.front import front
from sinf.report.origin import Origin, origin_of
from sinf.report.results import Results, Times, read_results, results_of
from sinf.report.routes import routes
from sinf.storage.files import replacing
from sinf.version import __version__

_HERE = Path(__file__).parent
_MARK = b'name="generator" content="sinf '
_ENDINGS = (".html", ".htm")
# What no page may hold, in whatever name it stood.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
FOREIGN = "the results were written of another artefact: their times and candidates are left out"
_KINDS = {
    "static": "one smaller network for all inputs",
    "semantic": "a network with a subgraph for every semantic cluster",
    "cascade": "a cascade: a small tail for every input, and the full tail where that is unsure",
    "dynamic": "a network in which every input runs the channels that it needs",
}


@dataclass(frozen=True)
class Tile:
    """A number that matters, with what it is and where it holds."""

    value: str
    what: str
    where: str


def check_out(out: str | Path) -> Path:
    """Refuse a name that is no page's, or a file of something else, before the work.

    Raises:
        ConfigError: it ends in something else, or holds something else.
    """
    path = Path(out)
    if path.suffix.lower() not in _ENDINGS:
        raise ConfigError("a report is a page, and its name ends in .html", got=path, remedy="take --out report.html")
    if path.exists():
        if not path.is_file():
            raise ConfigError("a report is a file", got=f"{path}, which is none", remedy="name another")
        with path.open("rb") as file:
            if _MARK not in file.read(2000):
                raise ConfigError(
                    "only a report may be replaced", got=f"{path} of something else", remedy="name another"
                )
    return path


def write_report(
    model: Artefact,
    images: LabelledImages,
    out: str | Path,
    *,
    source: str | Path,
    base: BaseModel | None = None,
    results: str | Path | None = None,
    command: str | None = None,
    progress: Progress | None = None,
) -> Findings:
    """Run an artefact and its base model over labelled images, and write the findings as one HTML page.

    Args:
        model: what :func:`sinf.from_pretrained` opened.
        images: that were not used to make it, with the model's classes as labels.
        out: the page; an earlier report is replaced, anything else is refused.
        source: the folder that the artefact was opened from, whose provenance is shown.
        base: of a plain model, the model that it was made from; bundles hold theirs.
        results: what ``sinf optimize``, ``bench``, ``prune`` or ``build`` wrote with ``--json`` of this artefact.
        command: that writes this page again.
        progress: called with how many images are done, and how many there are.

    Raises:
        ConfigError: a file is something else, or ``base`` does not go with the model.
        DataError: the images have no labels.
        StorageError: the page cannot be written; what was there stays.
    """
    path = check_out(out)
    measured = None if results is None else read_results(Path(results))
    origin = origin_of(source)
    findings = find(model, images, base, progress)
    if measured is not None and of_another(findings, measured, origin):
        warnings.warn(FOREIGN, DataWarning, stacklevel=2)
        measured = None
    text = _CONTROL.sub("\ufffd", page(findings, model.preprocessing, origin, measured, command))
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return findings


def page(findings: Findings, feed: Any, origin: Origin, results: Results | None, command: str | None = None) -> str:
    """The page as text. ``feed`` is the model's preprocessing; times are those of ``results``, or else those that the
    artefact itself holds."""
    if results is None:
        results = Results() if origin.measured is None else results_of(origin.measured, f"measured of {origin.name}")
    drawn, beyond = front(results.candidates, results.max_loss) if results.candidates else (None, 0)
    first, rest = sections.first_and_rest(sections.classes(findings))
    kept = sections.kept(findings)
    return _environment().get_template("page.html").render(
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        version=__version__,
        name=origin.name,
        model=findings.name,
        kind=_KINDS[findings.kind],
        cascade=findings.kind == "cascade",
        images=findings.images,
        tiles=tiles(findings, results),
        promise=findings.promise,
        promised=not findings.promise.startswith("No promise"),
        notes=_notes(findings, results),
        results=results,
        front=drawn,
        beyond=beyond,
        stops=sections.stops(findings, feed),
        routes=routes(findings, feed),
        changes=sections.changes(findings, feed),
        classes=first,
        more_classes=rest,
        per_class=len(findings.images) / max(1, len(first) + len(rest)),
        kept=kept,
        origin=origin,
        made=_made(findings),
        commands=_commands(origin, results, command),
    )  # fmt: skip


def of_another(findings: Findings, results: Results, origin: Origin) -> bool:
    """Whether candidates are surely not those that the artefact was chosen from."""
    if results.chosen is None:
        return False
    made = dict(origin.facts).get("made")
    if findings.kind == "static":
        return made is not None and made != results.chosen.name
    if findings.calibrated is None or results.calibrated is None:
        return results.chosen.kind == "static"
    same = math.isclose(findings.calibrated[0], results.calibrated[0], abs_tol=1e-6)
    return not same or findings.calibrated[1] != results.calibrated[1]


def tiles(findings: Findings, results: Results) -> list[Tile]:
    """What matters, first: time (or where none was measured, MACs), loss, MACs, and how many stop early."""
    made = [_time_tile(results.times[0])] if results.times else []
    made += _loss_tiles(findings, results)
    base_macs = findings.base_macs or (results.compared.base_macs if results.compared is not None else None)
    if base_macs:
        made.insert(len(made) if results.times else 0, _macs_tile(findings, base_macs))
    elif not results.times:
        made.append(
            Tile(f"{findings.macs / 1e6:.1f} M", "multiply-accumulates an image", "no base model to compare with")
        )
    if findings.routing is not None:
        share = float((~findings.routing.fell_back).double().mean())
        where = "at the small tail" if findings.routing.cascade else "at a subgraph"
        made.append(Tile(f"{100 * share:.0f} %", f"of the images stop {where}", "the others run the full tail"))
    return made


def _macs_tile(findings: Findings, base: int) -> Tile:
    times, mean = f"{base / findings.macs:.2f}", "" if findings.kind == "static" else " in the mean over the images"
    if times == "1.00":
        return Tile(f"{findings.macs / 1e6:.1f} M", "multiply-accumulates an image", f"as many as the base model{mean}")
    size = f"{findings.macs / 1e6:.1f} M instead of {base / 1e6:.1f} M"
    return Tile(f"{times} times", "fewer multiply-accumulates", f"{size} an image{mean}")


def _time_tile(times: Times) -> Tile:
    inside = f"{times.base:.2f} ms → {times.delivered:.2f} ms in {times.where}"
    saved = f"{100 * times.saved:.1f} % saved ({100 * times.low:.1f} .. {100 * times.high:.1f})"
    number, less = times_less(times.share)
    if times.own is None:
        return Tile(number, f"{less} than the base model", f"{inside}; {saved}")
    own = f"your model as loaded ({times.own.milliseconds:.2f} ms)"
    compiled = "" if times.own.compiled is None else f"; your model by torch.compile: {times.own.compiled:.2f} ms"
    return Tile(number, f"{less} than {own}", f"base model: {inside}; {saved}{compiled}")


def _loss_tiles(findings: Findings, results: Results) -> list[Tile]:
    """On the images of this page, in torch; and where it was made for something else, as it was measured there."""
    made, loss, chosen = [], findings.loss, results.chosen
    elsewhere = findings.runs_in not in (None, "torch f32")
    if chosen is not None and (loss is None or elsewhere):
        where = f" in {findings.runs_in}" if elsewhere else ""
        interval = f"95 %: {chosen.low:.2f} .. {chosen.high:.2f}"
        made.append(
            Tile(
                f"{chosen.points:.2f}",
                f"points lost{where}",
                f"{interval}, on the {chosen.images:,} images that chose it",
            )
        )
    if loss is not None and findings.base_top1 is not None:
        accuracy = f"top-1 {100 * findings.top1:.2f} % instead of {100 * findings.base_top1:.2f} %"
        interval = f"95 %: {loss.low:.2f} .. {loss.high:.2f}"
        what = "points lost in torch f32" if elsewhere else "points lost"
        made.append(Tile(f"{loss.points:.2f}", what, f"{interval}; {accuracy}, on {loss.images:,} images"))
    elif results.compared is not None:
        was = results.compared
        accuracy = f"top-1 {100 * was.top1:.2f} % instead of {100 * was.base_top1:.2f} %"
        made.append(Tile(f"{was.loss:.2f}", "points lost", f"{accuracy}, on {was.images:,} images when it was pruned"))
    elif not made:
        where = f"on {len(findings.images):,} images; no base model to compare with"
        made.append(Tile(f"{100 * findings.top1:.2f} %", "top-1", where))
    return made


def _notes(findings: Findings, results: Results) -> list[str]:
    """What a reader must know before the numbers."""
    notes = []
    if findings.base is None:
        notes.append("A plain model does not hold its base model, which was not given: what was lost is not shown.")
    if findings.runs_in not in (None, "torch f32"):
        notes.append(f"It was made for {findings.runs_in}; the answers on this page are those of torch in f32.")
    if not results.times:
        notes.append("Times were not given to this page.")
    if empty := findings.images.empty_classes():
        notes.append(f"{len(empty)} of {findings.images.classes} classes have no image here, and are left out.")
    return notes


def _made(findings: Findings) -> list[tuple[str, str]]:
    """Of this page."""
    facts = machine()
    versions = f"sinf {__version__}, torch {torch.__version__}, python {platform.python_version()}"
    return [
        ("images", f"{findings.images.name}: {len(findings.images):,}"),
        ("sha256 of images and labels", findings.images.fingerprint()),
        ("answers by", f"torch f32; {versions}"),
        ("on", f"{facts['processor']}, {facts['cores']} cores"),
        ("date", f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"),
    ]


def _commands(origin: Origin, results: Results, command: str | None) -> list[tuple[str, str]]:
    made = origin.command or results.command
    pairs = [("The artefact", made)] if made is not None else []
    return pairs + ([("This page", command)] if command is not None else [])


def _or_nothing(value: Any) -> Any:
    """None is an empty cell."""
    return "" if value is None else value


def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, finalize=_or_nothing,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"percent": _percent, "points": _points}
    return made


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def _points(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1f}" if value else "0.0"
