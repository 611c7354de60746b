"""The program as a person meets it, in this process."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sinf.cli import main

#: What long work says where there is no terminal.
PROGRESS = re.compile(
    r"expected time( of the rest)?: .+|is it worth it\? .+|memory: .+|checked on \d+ held-out images: .+"
    r"|.+ (\.\.\.|\d+ % \(\d+ of \d+\)(, .+ left)?|done, .+)"
)


def build_words(data: Path, weights: Path, out: Path) -> list[object]:
    """A build of a narrow VGG11 that is kept whatever it saves."""
    return [
        "build", "vgg11", "--keep-anyway", "--weights", weights, "--data", data, "--score", "train", "--route", "train",
        "--route-draws", "240", "--calibrate", "test", "--max-loss", "90", "--extractor", "0.8", "--out", out,
        "--threads", "1",
    ]  # fmt: skip


#: What it says of a step, of these lines.
STEP = re.compile(r".+ (\.\.\.|\d+ % \(\d+ of \d+\)(, .+ left)?|done, .+)")
#: Verbs that take seconds, however large the model: they need not say where they are.
QUICK = ("profile", "results")


class Program:
    """Runs ``sinf`` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *words: object) -> str:
        """What a call prints; it must succeed, and say where it is if it may take long."""
        code, out, err = self.call(*words)
        assert code == 0, err
        long = (
            str(words[0]).isalpha() and words[0] not in QUICK and not any(str(each)[:6] == "--help" for each in words)
        )
        assert not long or any(map(STEP.fullmatch, err.splitlines())), err
        return out

    def refused(self, *words: object) -> str:
        """The one line of a call that must be refused."""
        code, _, err = self.call(*words)
        assert code == 2, err
        lines = [line for line in err.splitlines() if line.strip() and not PROGRESS.fullmatch(line)]
        assert len(lines) == 1, err
        assert lines[0].startswith("error: ")
        return lines[0]

    def call(self, *words: object) -> tuple[int, str, str]:
        self.monkeypatch.setattr("sys.argv", ["sinf", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = self.capsys.readouterr()
        return code, captured.out, captured.err
