"""What is read of results, by shares of the base model's time: milliseconds of two runs do not compare."""

from __future__ import annotations

from typing import Any

import pytest

from sinf.errors import ConfigError
from sinf.measure.delivery import ExpectedLoss
from sinf.pipelines.candidates import Promise
from sinf.pipelines.optimize import Optimized, Row
from sinf.report.results import results_of
from times import latency

QUICK, SLOW = (
    Row(name, "static", "f32", ExpectedLoss(0.2, 0.0, 0.4, 0.01, 0.7, 100), latency(ms, base), True)
    for name, ms, base in (("quick", 6.0, 30.0), ("slow", 5.0, 10.0))
)  # the quick one was timed in a run in which the machine was three times as slow


def record(confidence: float | None = None) -> dict[str, Any]:
    """As ``sinf optimize --json`` writes it."""
    promise = Promise(0.01, confidence, 0.002, 100, "onnxruntime", "f32")
    return Optimized(QUICK, promise, (SLOW, QUICK), latency(20.0)).to_json()


def test_candidates_are_in_the_order_of_their_shares() -> None:
    found = results_of(record(), "here")
    assert [row.name for row in found.candidates] == ["quick", "slow"]
    assert [row.share for row in found.candidates] == pytest.approx([0.2, 0.5])
    assert [row.pairs for row in found.candidates] == [10, 10]


def test_the_model_as_loaded_is_compared_by_shares() -> None:
    (times,) = results_of(record(), "here").times
    assert times.own is not None
    assert (times.own.milliseconds, times.own.share) == (20.0, 2.0)
    assert times.share == pytest.approx(0.1)
    assert times.own.compiled is None
    (times,) = results_of(record() | {"compiled": latency(15.0).to_json()}, "here").times
    assert times.own is not None
    assert (times.own.compiled, times.share) == (15.0, pytest.approx(0.1))
    (times,) = results_of(record() | {"own": None}, "here").times
    assert times.share == pytest.approx(0.2)


@pytest.mark.parametrize("confidence", [None, 0.95])
def test_the_confidence_is_that_of_the_promise(confidence: float | None) -> None:
    assert results_of(record(confidence), "here").confidence == confidence


def test_damage_is_refused() -> None:
    without = record()
    del without["promise"]["confidence"]
    with pytest.raises(ConfigError, match="confidence"):
        results_of(without, "here")
    at_once = record()
    at_once["rows"][0]["time"]["time_saved"] = 1.0
    with pytest.raises(ConfigError, match="time_saved is 1"):
        results_of(at_once, "here")
