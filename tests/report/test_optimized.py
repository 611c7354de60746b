"""What ``sinf optimize`` prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from sinf.measure.delivery import ExpectedLoss
from sinf.pipelines.candidates import Promise
from sinf.pipelines.optimize import OptimizeConfig, Optimized, Row
from sinf.pipelines.optimize_search import BASE
from sinf.report.optimized import show_optimized, worth_showing
from times import latency


def row(
    name: str, ms: float, precision: str = "f32", *, base: float = 10.0, points: float = 0.2, kind: str = "static",
    accepted: bool | None = None,
) -> Row:  # fmt: skip
    """A candidate that takes so many milliseconds beside a base model that takes ``base``."""
    loss = ExpectedLoss(points, points - 0.1, points + 0.1, 0.02, 0.7, 2500)
    return Row(name, kind, precision, loss, latency(ms, base), accepted)


def names(rows: list[Row], max_loss: float = 0.01) -> list[str]:
    return [each.name for each in worth_showing(rows, max_loss)]


def test_the_fastest_of_every_kind_and_precision_within_the_limit_is_shown() -> None:
    rows = [
        row("80 %", 8.0), row("60 %", 6.0), row("40 %", 4.0, points=1.1), row("60 %, int8", 3.0, "int8"),
        row("cascade", 5.0, kind="cascade"),
    ]  # fmt: skip
    assert names(rows) == ["60 %", "60 %, int8", "cascade"]
    assert names(rows, 0.02) == ["40 %", "60 %, int8", "cascade"]


def test_the_fastest_is_the_one_of_the_least_share() -> None:
    """The second was timed in a run in which the machine was three times as slow."""
    assert names([row("slow", 5.0), row("quick", 6.0, base=30.0)]) == ["quick"]


def test_what_was_tested_is_shown() -> None:
    rows = [row("refused", 8.0, accepted=False), row("holds", 7.0, accepted=True), row("60 %", 6.0)]
    assert names(rows) == ["refused", "holds", "60 %"]


@pytest.mark.parametrize("points", [0.2, 9.0])
def test_the_base_model_is_always_shown(points: float) -> None:
    """What a user would run instead, however much slower it is, or loses."""
    rows = [row(BASE, 4.0, "int8", points=points), row(BASE, 5.0, "bf16"), row("60 %", 3.0, "int8")]
    assert names(rows) == [BASE, BASE, "60 %"]


def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, chosen: Row, *others: Row) -> str:
    """What is printed of a choice; the model as loaded takes twice the base model's time, in another run, and a fifth
    more than compiled."""
    monkeypatch.setenv("COLUMNS", "200")
    promise = Promise(0.01, None, 0.002, 100, "onnxruntime", chosen.precision)
    optimized = Optimized(chosen, promise, (*others, chosen), latency(100.0, base=50.0), (), latency(80.0, base=50.0))
    show_optimized(optimized, OptimizeConfig(engine="onnxruntime", max_loss=0.01), Path("fast"))
    return capsys.readouterr().out


def cells(text: str, name: str) -> list[str]:
    """Of a row of the table."""
    (line,) = [each for each in text.splitlines() if each.startswith("│") and name in each]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_a_choice_is_compared_with_the_base_model_in_int8(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by its share of the base model's time, also where it was timed in a run of its own."""
    int8, worse = row(BASE, 4.0, "int8"), row("cascade", 15.0, base=30.0, kind="cascade")
    text = shown(capsys, monkeypatch, row("60 %", 6.0, "int8", base=30.0), int8, worse, row("90 %", 9.0, "int8"))
    line = " ".join(text.split())
    assert "10.0 times less time than your model as loaded, 80.0 % less than it in onnxruntime," in line
    assert ", 50.0 % less than it there in int8, by 60 %, int8." in line
    assert "┃ less than ┃" in text
    assert [cells(text, name)[3] for name in ("as loaded", "torch.compile")] == ["100.00", "80.00"]
    assert "┃      int8 ┃" in text, "the head of the last column"
    assert cells(text, "60 %, int8")[-3:] == ["6.00", "80.0 %", "50.0 %"]
    assert cells(text, "base model, int8")[-3:] == ["4.00", "60.0 %", "0.0 %"]
    assert cells(text, "cascade, f32")[-3:] == ["15.00", "50.0 %", "-25.0 %"]
    assert cells(text, "your model as loaded")[-3:] == ["100.00", "", ""]
    assert "in one run or several" in text
    assert "1 others are slower" in text


def test_without_int8_there_is_nothing_to_compare_with_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(capsys, monkeypatch, row("60 %", 6.0), row(BASE, 9.0, "bf16"))
    assert "3.3 times less time than your model as loaded, 40.0 % less than it in onnxruntime, by 60 %, f32." in text
    assert "int8" not in text
    assert cells(text, "60 %, f32")[-2:] == ["6.00", "40.0 %"]


def test_the_base_model_in_int8_is_not_compared_with_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(shown(capsys, monkeypatch, row(BASE, 4.0, "int8")).split())
    assert "60.0 % less than it in onnxruntime, by base model, int8." in text


def test_more_time_than_int8_is_said_to_be_more(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(capsys, monkeypatch, row("60 %", 5.0), row(BASE, 4.0, "int8", points=2.0))
    assert "25.0 % more than it there in int8" in " ".join(text.split())
