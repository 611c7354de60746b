"""``sinf report`` as a person meets it."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from program import Program


@pytest.mark.parametrize("kind", ["semantic", "static", "dynamic"])
def test_report_of_every_kind(sinf: Program, folders: dict[str, Path], data: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "page.html"
    text = sinf("report", folders[kind], "--data", data, "--split", "test", "--out", out)
    assert "opens in any browser" in text
    page = ElementTree.fromstring(out.read_text(encoding="utf-8"))
    assert f"sinf report {folders[kind]}" in "".join(page.itertext())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["page.html"]


def test_report_has_what_eval_says(sinf: Program, built_cascade: Path, data: Path, tmp_path: Path) -> None:
    words = [built_cascade, "--data", data, "--split", "test", "--threshold", 0.7]
    sinf("eval", *words, "--json", tmp_path / "eval.json")
    record = json.loads((tmp_path / "eval.json").read_text())
    text = sinf("report", *words, "--out", tmp_path / "page.html")
    assert f"lost: {record['loss']:.2f} points on 60 images" in text
    assert f"top-1 {100 * record['top1']:.2f} % instead of" in (tmp_path / "page.html").read_text()


def test_bad_options_of_report(sinf: Program, folders: dict[str, Path], data: Path, tmp_path: Path) -> None:
    words = ["--data", data, "--split", "test"]
    out = tmp_path / "page.html"
    assert "ends in .html" in sinf.refused("report", folders["static"], *words, "--out", tmp_path / "page.txt")
    assert "readable JSON" in sinf.refused(
        "report", folders["static"], *words, "--out", out, "--results", tmp_path / "none.json"
    )
    assert "no fallback" in sinf.refused("report", folders["static"], *words, "--out", out, "--threshold", 0.5)
    assert "holds its base model" in sinf.refused(
        "report", folders["semantic"], *words, "--out", out, "--base", "vgg11"
    )
    assert not out.exists()


def test_help_names_report(sinf: Program) -> None:
    assert "report" in sinf("--help")
