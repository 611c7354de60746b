"""What verbs measured and wrote with ``--json``, as a report shows it: candidates of ``sinf optimize``, and times of
``sinf optimize``, ``bench``, ``prune`` and ``build``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinf.errors import ConfigError
from sinf.storage.schema import parse_file, shortened

_REMEDY = "give what sinf optimize --json wrote, or bench, prune or build"


@dataclass(frozen=True)
class Candidate:
    """A network in a precision. ``points`` is its loss of top-1, ``low`` .. ``high`` the 95 % interval, on ``images``
    that chose. It was timed in ``pairs`` with the base model: ``milliseconds`` are its own, a batch, ``saved`` is a
    fraction of the base model's, between ``saved_low`` and ``saved_high``. ``accepted`` is what the calibration images
    said, None where it was not tested."""

    name: str
    kind: str
    precision: str
    points: float
    low: float
    high: float
    images: int
    milliseconds: float
    pairs: int
    saved: float
    saved_low: float
    saved_high: float
    accepted: bool | None
    chosen: bool

    @property
    def share(self) -> float:
        """Its time as a share of the base model's beside it, by which it is chosen: milliseconds of two runs differ by
        what else the machine did."""
        return 1 - self.saved

    @property
    def verdict(self) -> str:
        if self.chosen:
            return "chosen"
        return {None: "not tested", True: "holds", False: "refused"}[self.accepted]


@dataclass(frozen=True)
class Own:
    """The model as it was loaded: mean milliseconds a batch, and its time as a share of that of the base model in the
    engine, which ran beside it; and milliseconds by torch.compile where that was timed."""

    milliseconds: float
    share: float
    compiled: float | None = None


@dataclass(frozen=True)
class Times:
    """Mean milliseconds a batch of the base model in the same engine, and of the artefact, which is ``delivered``,
    where they were measured. ``saved`` is a fraction, between ``low`` and ``high``."""

    where: str
    base: float
    delivered: float
    own: Own | None
    saved: float
    low: float
    high: float

    @property
    def share(self) -> float:
        """Of the model as it was loaded, or where that was not timed, of the base model."""
        return (1 - self.saved) / (1.0 if self.own is None else self.own.share)


@dataclass(frozen=True)
class Compared:
    """What ``sinf prune`` found of a plain model and its base: top-1 of both as fractions of 1, the ``loss`` in points,
    on ``images``; and MACs of the base model."""

    base_top1: float
    top1: float
    loss: float
    images: int
    base_macs: int


@dataclass(frozen=True)
class Results:
    """Attributes:
    candidates: of ``sinf optimize``, the fastest first; none of other verbs.
    confidence: with which the chosen one was tested, None where none was asked for.
    times: of the artefact, the first is the one that matters.
    max_loss: limit of the loss in points, None where none was asked for.
    left_out: what was not tried, and why.
    command: what was typed, where the file says so.
    compared: of ``sinf prune``.
    calibrated: loss (a fraction) of what was chosen on the calibration images, and how many these are.
    """

    candidates: tuple[Candidate, ...] = ()
    times: tuple[Times, ...] = ()
    max_loss: float | None = None
    left_out: tuple[str, ...] = ()
    command: str | None = None
    chosen: Candidate | None = None
    calibrated: tuple[float, int] | None = None
    compared: Compared | None = None
    confidence: float | None = None


def read_results(path: Path) -> Results:
    """What a verb wrote with ``--json``.

    Raises:
        ConfigError: it is not there, or nothing that a report can show.
    """
    record = parse_file(path, ConfigError, remedy=_REMEDY)
    if not isinstance(record, dict):
        raise ConfigError(f"{path} must be a result of sinf", got=type(record).__name__, remedy=_REMEDY)
    if not {"rows", "latency", "times"} & set(record):
        got = shortened(", ".join(list(record)[:5]) or "nothing")
        raise ConfigError(f"{path} must hold candidates or times", got=got, remedy=_REMEDY)
    return results_of(record, str(path))


def results_of(record: dict[str, Any], where: str) -> Results:
    """The same of what was read, or of what a plain model keeps of its comparison; ``where`` names it in messages.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        return _of_optimize(record) if "rows" in record else _of_times(record)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        got = shortened(f"{type(problem).__name__}: {problem}")
        raise ConfigError(f"{where} must be as sinf wrote it", got=got, remedy=_REMEDY) from problem


def _of_times(record: dict[str, Any]) -> Results:
    """Times of ``bench``, ``prune`` or ``build``; of a model that was timed alone there are none."""
    rows = record.get("latency") or record.get("times") or []
    own = record.get("own_times") or [None] * len(rows)
    engine = str(record.get("engine") or "torch")
    times = [_times(row, engine, mine) for row, mine in zip(rows, own, strict=True) if "base_mean" in row]
    compared = None
    if {"base_top1", "top1", "loss", "images", "base"} <= set(record):
        accuracies = float(record["base_top1"]), float(record["top1"]), float(record["loss"])
        compared = Compared(*accuracies, int(record["images"]), int(record["base"]["macs"]))
    return Results(times=tuple(times), command=_text(record.get("command")), compared=compared)


def _of_optimize(record: dict[str, Any]) -> Results:
    chosen, promise = record.get("chosen"), record.get("promise") or {}
    rows = [_candidate(row, row == chosen) for row in record["rows"]]
    times: tuple[Times, ...] = ()
    if chosen is not None:
        engine = " ".join(str(promise[name]) for name in ("engine", "precision") if promise.get(name))
        times = (_times(chosen["time"], engine or chosen["precision"], record.get("own"), record.get("compiled")),)
    limit = _number(promise.get("max_loss"))
    return Results(
        candidates=tuple(sorted(rows, key=lambda row: row.share)),
        times=times,
        max_loss=None if limit is None else 100 * limit,
        left_out=tuple(str(reason) for reason in record.get("left_out") or ()),
        command=_text(record.get("command")),
        chosen=next((row for row in rows if row.chosen), None),
        calibrated=(float(promise["loss"]), int(promise["images"])) if {"loss", "images"} <= set(promise) else None,
        confidence=None if chosen is None else _number(promise["confidence"]),
    )


def _candidate(row: dict[str, Any], chosen: bool) -> Candidate:
    loss, time, accepted = row["loss"], row["time"], row.get("accepted")
    if accepted not in (None, True, False):
        raise ValueError(f"accepted is {accepted}")
    return Candidate(
        str(row["name"]), str(row["kind"]), str(row["precision"]),
        float(loss["points"]), float(loss["low"]), float(loss["high"]), int(loss["images"]),
        float(time["mean"]), int(time["pairs"]), *_saved(time), accepted, chosen,
    )  # fmt: skip


def _times(
    row: dict[str, Any], engine: str, own: dict[str, Any] | None, compiled: dict[str, Any] | None = None
) -> Times:
    where = [engine]
    where += [f"batch {row['batch']}"] if "batch" in row else []
    where += [f"{row['threads']} thread{'s' if row['threads'] != 1 else ''}"] if "threads" in row else []
    base, mean = float(row["base_mean"]), float(row["mean"])
    by_compile = None if compiled is None else float(compiled["mean"])
    loaded = None if own is None else Own(float(own["mean"]), 1 - _saved(own)[0], by_compile)
    return Times(", ".join(where), base, mean, loaded, *_saved(row))


def _saved(row: dict[str, Any]) -> tuple[float, float, float]:
    """The fraction of the base model's time that is saved, and its interval."""
    saved = float(row["time_saved"])
    if not saved < 1:
        raise ValueError(f"time_saved is {saved}")
    return saved, float(row.get("low", saved)), float(row.get("high", saved))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
