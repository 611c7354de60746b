"""How long work will take is said before it begins, in one line, for the price of a few batches."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from sinf.data.images import LabelledImages
from sinf.graph.network import PartedNetwork
from sinf.measure import estimate
from sinf.measure.estimate import Estimate, Pace, build_time, gated_time, prune_time
from sinf.models import load_model
from sinf.pipelines.prune import Amount, PruneConfig, prune
from tiny import COLOUR, Chain, traced

PACE = Pace(forward=0.01, teaching=0.004, matrix=0.1)
LINE = re.compile(r"expected time: about [0-9hmins ]+ \(.+\)")


def test_the_base_model_runs_few_batches() -> None:
    graph, runs = traced(Chain()), []
    graph.register_forward_pre_hook(lambda module, given: runs.append(len(given[0])))
    first = next(iter(node.target for node in graph.graph.nodes if node.op == "call_module"))
    graph.get_submodule(str(first)).register_forward_pre_hook(lambda module, given: runs.append(len(given[0])))
    pace = Pace.of(graph, COLOUR.size, batch=4)
    assert sum(runs) <= 4 * 8
    assert min(pace.forward, pace.teaching, pace.matrix) > 0


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.floats(0.01, 1e5), min_size=1))
def test_only_long_work_is_told_how_to_be_shorter(steps: dict[str, float]) -> None:
    line = Estimate(steps, "fewer images").line()
    assert LINE.match(line)
    assert line.endswith("fewer images") == (sum(steps.values()) > estimate.LONG)
    assert max(steps, key=lambda name: steps[name]) in line


@given(st.integers(1, 10_000), st.integers(1, 40))
def test_more_images_take_longer(images: int, clusters: int) -> None:
    network = _NETWORK

    def built(scoring: int, routing: int, calibration: int) -> float:
        return build_time(
            PACE, network, scoring=scoring, routing=routing, calibration=calibration, clusters=clusters,
            whole=True, whole_images=4000, reconstruct=True,
        ).seconds  # fmt: skip

    least = built(images, images, images)
    assert all(built(*(images + (i == which) for i in range(3))) > least for which in range(3))

    def pruned(count: int, methods: tuple[str, ...], trials: int, checks: int = 0) -> float:
        return prune_time(
            PACE, network, images=count, methods=methods, trials=trials, trial_images=100, held_out=10, checks=checks
        ).seconds  # fmt: skip

    assert pruned(images, ("channels",), 0) < pruned(images + 1, ("channels",), 0) < pruned(images + 1, ("ranks",), 0)
    assert pruned(images, ("channels",), 1) < pruned(images, ("channels", "ranks"), 1)
    assert pruned(images, ("channels",), 0) < pruned(images, ("channels",), 0, checks=1)
    one, two = (gated_time(PACE, images=images, epochs=epochs, finishing=10).seconds for epochs in (1, 2))
    assert one < two < gated_time(PACE, images=images, epochs=2, finishing=10, taught=True).seconds


_NETWORK = PartedNetwork(traced(Chain()))


def test_a_pruning_says_it_once_before_its_first_step(tiny_images: LabelledImages, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = load_model("vgg11", classes=6, options={"width": 0.125})
    told: list[str] = []
    prune(
        base, tiny_images, PruneConfig(Amount(macs=0.8), "channels", images=24, round_to=1, limits=None), tmp_path,
        progress=lambda step, done, total: told.append(step), expect=lambda expected: told.append(expected.line()),
    )  # fmt: skip
    assert LINE.match(told[0])
    assert not any(LINE.match(line) for line in told[1:])


def test_nobody_elses_draws_change() -> None:
    graph, state = traced(Chain()), torch.get_rng_state()
    Pace.of(graph, COLOUR.size, batch=2)
    assert torch.equal(torch.get_rng_state(), state)
