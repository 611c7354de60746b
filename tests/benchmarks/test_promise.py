"""What candidates.py observes of a bundle is what promise.py simulates with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from candidates import write_observed

from promise import losses_of, read_observation
from sinf.engine.torch_engine import Routes
from sinf.measure.accuracy import Observation


def observation(seed: int, count: int = 200) -> Observation:
    draw = torch.Generator().manual_seed(seed)
    drawn = {name: torch.rand(count, generator=draw) for name in Routes._fields}
    drawn["route"] = (3 * drawn["route"]).long()
    drawn["log_route"] = drawn["log_route"].log()
    right, full, base = (torch.rand(count, generator=draw) < share for share in (0.6, 0.8, 0.8))
    return Observation(Routes(**(drawn | {"right": right})), full, base)


def test_all_that_was_observed_is_read_again(tmp_path: Path) -> None:
    halves = observation(0), observation(1)
    write_observed(cast(Any, SimpleNamespace(calibration=halves[0], report=halves[1])), tmp_path / "observed")
    both = read_observation(tmp_path / "observed")
    for rows, half in ((torch.arange(200), halves[0]), (torch.arange(200, 400), halves[1])):
        selected = both.select(rows)
        assert all(torch.equal(a, b) for a, b in zip(selected.routes, half.routes, strict=True))
        assert torch.equal(selected.fallback_right, half.fallback_right)
        assert torch.equal(selected.base_right, half.base_right)
    losses, share = losses_of(both, torch.arange(200), 0.2, None)
    assert len(losses) == 400
    assert 0 <= share <= 1
