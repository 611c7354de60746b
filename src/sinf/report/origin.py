"""Where an artefact comes from, as it says itself: provenance, versions, hashes, and the machine where it was
measured."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinf.bundle.folder import folder_of
from sinf.errors import DataError
from sinf.storage.config import read_card
from sinf.storage.schema import parse_file

Fact = tuple[str, str]
_MACHINE = re.compile(r"^- machine: (.+)$", re.MULTILINE)
_NAMES = {
    "method": "kind",
    "sinf_format": "format",
    "cut": "cut after",
}


@dataclass(frozen=True)
class Origin:
    """Facts that the artefact carries, hashes of its files, and the command that made it where it is known."""

    name: str
    facts: tuple[Fact, ...]
    hashes: tuple[Fact, ...]
    measured: dict[str, Any] | None
    command: str | None


def origin_of(source: str | Path) -> Origin:
    """Of a folder that was opened without an error, here or on the hub."""
    folder = folder_of(source)
    config = parse_file(folder / "config.json", DataError)
    provenance = config["provenance"]
    measured = config.get("measured")
    facts = [(shown, str(config[name])) for name, shown in _NAMES.items() if name in config]
    facts += [
        (name, str(value)) for name, value in provenance.items() if name not in ("command", "promise") and value != ""
    ]
    facts += _threshold(config.get("threshold"))
    names = [name for name, _ in facts]
    if "sinf" not in names:
        facts.append(("sinf version that made it", "not stored in the artefact"))
    measured = measured if isinstance(measured, dict) else None
    facts += [
        (name, str(measured[name])) for name in ("processor", "cores", "versions") if measured and name in measured
    ]
    facts += _machine(folder)
    written = datetime.datetime.fromtimestamp((folder / "config.json").stat().st_mtime, datetime.UTC)
    facts.append(("date of config.json", f"{written:%Y-%m-%d %H:%M} UTC"))
    facts.append(("signed", "yes" if "signature" in config else "no"))
    hashes = {"config.json (digest of its content)": config.get("digest", "none"), **config.get("sha256", {})}
    command = provenance.get("command")
    return Origin(
        name=Path(source).name or str(source),
        facts=tuple(facts),
        hashes=tuple((name, str(value)) for name, value in hashes.items()),
        measured=measured,
        command=command if isinstance(command, str) else None,
    )


def _threshold(threshold: dict[str, Any] | None) -> list[Fact]:
    if threshold is None:
        return []
    where = f"{threshold['images']:,} images by answers in {threshold['engine']} {threshold['precision']}"
    did = "tested" if threshold.get("only_tested") else "set"
    lost = f"{100 * threshold['loss']:.2f} points lost, {100 * threshold['fallback']:.1f} % fall back"
    return [("threshold", f"{threshold['value']:.4g}, {did} on {where}"), ("on these images", lost)]


def _machine(folder: Path) -> list[Fact]:
    """The line of the model card that names the machine."""
    line = _MACHINE.search(read_card(folder) or "")
    return [] if line is None else [("machine that wrote it", line.group(1))]
