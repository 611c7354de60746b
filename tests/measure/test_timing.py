"""Latency in pairs: the figures belong together and nothing is left changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sinf.errors import ConfigError
from sinf.measure import timing
from sinf.measure.timing import OtherProcesses, interleaved, latency, pinned_threads, summary

SETTLED = timing.SETTLED  # tests/conftest.py takes it away


class Recorder(nn.Module):
    """Keeps what it is given, and says its name when it is called."""

    def __init__(self, name: str = "", calls: list[str] | None = None) -> None:
        super().__init__()
        self.name, self.calls = name, [] if calls is None else calls
        self.seen: list[Tensor] = []
        self.threads: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(self.name)
        self.seen.append(x)
        self.threads.append(torch.get_num_threads())
        assert not torch.is_grad_enabled()
        return x


IMAGES = torch.arange(7.0)[:, None, None, None].expand(7, 3, 2, 2)


def test_figures_belong_together() -> None:
    result = latency(nn.Conv2d(3, 8, 3, padding=1), nn.Identity(), IMAGES, pairs=21, warmup=2)
    assert (result.batch, result.threads, result.pairs) == (1, 1, 21)
    assert 0 < result.base_median <= result.base_p95
    assert 0 < result.median <= result.p95
    assert result.base_mean > 0
    assert result.mean > 0
    assert result.time_saved == pytest.approx(1 - result.mean / result.base_mean)
    assert result.low <= result.high < 1
    assert result.median_low <= result.median <= result.median_high
    assert result.base_median_low <= result.base_median <= result.base_median_high
    assert json.loads(json.dumps(result.to_json()))["time_saved"] == result.time_saved


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As outside of tests."""
    monkeypatch.setattr(timing, "SETTLED", SETTLED)


@pytest.fixture
def unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run counts."""
    monkeypatch.setattr(timing, "SETTLED", 0)


def test_a_model_runs_on_the_images_before_the_run_that_counts() -> None:
    ours = Recorder()
    latency(Recorder(), ours, IMAGES, batch=2, pairs=2, warmup=0)
    rows = [x[:, 0, 0, 0].tolist() for x in ours.seen]
    assert rows[:2] == [[2.0, 3.0], [0.0, 1.0]]
    assert rows[-2:] == [[0.0, 1.0], [2.0, 3.0]]


@pytest.mark.parametrize(("milliseconds", "runs"), [(0.5, 8), (4.0, 2), (30.0, 0)])
def test_slow_models_settle_in_fewer_runs(monkeypatch: pytest.MonkeyPatch, milliseconds: float, runs: int) -> None:
    now = 0.0

    def clock() -> float:
        return now

    def taking(name: str) -> Callable[[Tensor], None]:
        def run(x: Tensor) -> None:
            nonlocal now
            now += milliseconds / 1000
            calls.append(name)

        return run

    calls: list[str] = []
    monkeypatch.setattr(timing.time, "perf_counter", clock)
    latency(taking("base"), taking("slow"), IMAGES, pairs=2, warmup=1)
    counted = [len(list(run)) for name, run in groupby(calls) if name == "slow"]
    assert counted == [2, 2 * (runs + 1)]  # nothing is known of it at first; one pair ends with it, the next begins


@pytest.mark.usefixtures("unsettled")
def test_both_take_turns_on_the_same_images() -> None:
    calls: list[str] = []
    base, ours = Recorder("base", calls), Recorder("ours", calls)
    progress: list[tuple[int, int]] = []
    latency(base, ours, IMAGES, batch=3, pairs=6, warmup=2, progress=lambda done, total: progress.append((done, total)))
    assert len(base.seen) == len(ours.seen) == 8
    assert all(torch.equal(a, b) for a, b in zip(base.seen, ours.seen, strict=True))
    assert all(x.shape == (3, 3, 2, 2) for x in base.seen)
    turns = [tuple(calls[i : i + 2]) for i in range(4, 16, 2)]
    assert turns == [("base", "ours"), ("ours", "base")] * 3  # neither is always first
    assert [(done, total) for done, total in progress] == [(i, 6) for i in range(1, 7)]


@pytest.mark.usefixtures("unsettled")
def test_images_are_used_over_and_over_in_turn() -> None:
    base = Recorder()
    latency(base, Recorder(), IMAGES, batch=3, pairs=5, warmup=0)
    rows = torch.cat([x[:, 0, 0, 0] for x in base.seen])
    assert rows.tolist() == [i % 7 for i in range(15)]


def test_a_batch_may_be_larger_than_the_images() -> None:
    base = Recorder()
    latency(base, Recorder(), IMAGES, batch=16, pairs=2, warmup=0)
    assert base.seen[0].shape[0] == 16


@pytest.mark.parametrize("options", [{"batch": 0}, {"batch": -1}, {"pairs": 1}, {"pairs": 0}, {"threads": 0}])
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    base = Recorder()
    with pytest.raises(ConfigError, match="batch and threads must be at least 1, pairs at least 2"):
        latency(base, Recorder(), IMAGES, **options)
    assert base.seen == []


@pytest.fixture
def _two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.usefixtures("unsettled")
def test_threads_are_set_while_it_runs_and_restored() -> None:
    base = Recorder()
    latency(base, Recorder(), IMAGES, pairs=2, warmup=1, threads=1)
    assert base.threads == [1] * 3
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("_two_threads")
def test_threads_are_restored_when_the_model_fails() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        latency(Recorder(), Failing(), IMAGES, pairs=2)
    assert torch.get_num_threads() == 2
    with pytest.raises(KeyboardInterrupt), pinned_threads(1):
        raise KeyboardInterrupt
    assert torch.get_num_threads() == 2


def test_intervals_hold_what_they_bound() -> None:
    """Of 400 pairs whose medians are 10 and 7 by construction."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(2, 400, generator=generator, dtype=torch.float64) - 0.5
    found = summary(torch.tensor([[10.0], [7.0]], dtype=torch.float64) + spread, 1, 1)
    assert found.base_median_low < 10 < found.base_median_high
    assert found.median_low < 7 < found.median_high
    assert found.median_high - found.median_low < 0.3
    assert found.low < 0.3 < found.high
    constant = summary(torch.tensor([[2.0] * 5, [1.0] * 5], dtype=torch.float64), 4, 2)
    assert (constant.median_low, constant.median_high, constant.low, constant.high) == (1, 1, 0.5, 0.5)
    assert (constant.batch, constant.threads, constant.pairs) == (4, 2, 5)


@pytest.mark.usefixtures("unsettled")
def test_candidates_take_turns_with_the_base_between_them() -> None:
    """In every round each candidate has a base run beside it, on the round's images; nobody is always first."""
    calls: list[str] = []
    models = {name: Recorder(name, calls) for name in ("A", "B", "C")}
    found = interleaved(Recorder("base", calls), models, IMAGES, pairs=6, warmup=0)
    assert list(found) == ["A", "B", "C"]
    rounds = [calls[i : i + 6] for i in range(0, 36, 6)]
    for number, order in enumerate(rounds):
        halves = [order[i : i + 2] for i in range(0, 6, 2)]
        assert all(half.count("base") == 1 for half in halves)
        assert all((half[0] == "base") == (number % 2 == 0) for half in halves)
        assert sorted(set(order)) == ["A", "B", "C", "base"]
    assert {next(name for name in order if name != "base") for order in rounds} == {"A", "B", "C"}
    for model in models.values():
        assert [x[0, 0, 0, 0].item() for x in model.seen] == [i % 7 for i in range(6)]
    assert all(result.pairs == 6 for result in found.values())


def test_no_candidates_are_refused() -> None:
    with pytest.raises(ConfigError, match="a model beside the base model"):
        interleaved(Recorder(), {}, IMAGES)


def test_the_load_is_what_other_processes_take(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of 1000 ticks that the processors spent in ten seconds, 300 were idle and 100 waiting; this process had 4 s."""
    file, clock, own = tmp_path / "stat", [0.0], [1.0]
    monkeypatch.setattr(timing, "_COUNTERS", file)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(timing.time, "process_time", lambda: own[0])
    file.write_text("cpu  100 0 100 500 50 0 0 0 0 0\ncpu0 1 1 1 1\n")
    others = OtherProcesses()
    assert others.load() == 0
    file.write_text("cpu  400 100 250 800 150 10 20 20 5 0\ncpu0 1 1 1 1\n")
    clock[0], own[0] = 10.0, 5.0
    assert others.load() == pytest.approx((6.0 - 4.0) / 10)
    file.unlink()
    assert others.load() is None
    assert OtherProcesses().load() is None


def test_the_load_is_part_of_the_result() -> None:
    result = latency(Recorder(), Recorder(), IMAGES, pairs=2, warmup=0)
    assert result.to_json()["load"] == result.load
    assert result.load is None or result.load >= 0
