"""Training: it reaches its target, resumes to the same weights, also after kill -9, and several processes are one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from gated import mean_macs
from sinf.data.images import LabelledImages
from sinf.dynamic import calibrate, latency, trainer
from sinf.dynamic.network import GateConfig, GatedNetwork
from sinf.dynamic.targets import Target, expected_macs, rate_for
from sinf.dynamic.trainer import EpochReport, TrainConfig, train
from sinf.errors import ConfigError
from sinf.measure.timing import pinned_threads
from sinf.models import BaseModel, ModelSpec
from sinf.training.recipe import Distillation
from tiny import CLASSES, COLOUR, Interrupted, Mixed, interrupt_at, tiny_data

CONFIG = TrainConfig(Target(channels=0.5), epochs=3, batch=8, learning_rate=0.02, similarity=0.5)
STEPS = 3 * 3  # 24 images in batches of 8
HERE = Path(__file__)


def small(seed: int = 0) -> BaseModel:
    """A training asks for the network alone; the name stands in its record."""
    torch.manual_seed(seed)
    return BaseModel(Mixed(["residual", "plain", "residual"], width=8), ModelSpec("resnet20", CLASSES, COLOUR))


@pytest.fixture
def images(tmp_path: Path) -> LabelledImages:
    return tiny_data(tmp_path / "data")


def differing(one: nn.Module, other: nn.Module, tolerance: float = 0.0) -> list[str]:
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    return [key for key in a if not torch.allclose(a[key].float(), b[key].float(), rtol=tolerance, atol=tolerance)]


VARIANTS = {
    "paper": {},
    "macs": {"target": Target(macs=0.7), "updates": 3},
    "once": {"target": Target(macs=0.7), "epochs": 1},
    "fbs": {"gates": GateConfig("fbs"), "complexity": 1e-4},
    "bf16": {"bf16": True},
    "static": {"gates": GateConfig("static")},
    "distilled": {"distillation": Distillation(0.7, 2.0)},
    "distilled static": {"gates": GateConfig("static"), "distillation": Distillation(1.0), "bf16": True},
    "binary": {"gates": GateConfig(mask="binary", block=2), "detach_weights": True, "detach_features": True},
}


@pytest.mark.parametrize("variant", sorted(VARIANTS.keys() - {"once"}))
def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path, images: LabelledImages, variant: str) -> None:
    config = replace(CONFIG, **VARIANTS[variant])
    whole = train(small(), images, tmp_path / "whole", config)
    for step in (2, 5, 9):
        with pytest.raises(Interrupted):
            train(small(), images, tmp_path / "parts", config, progress=interrupt_at(step))
    torch.manual_seed(99)  # what else the process draws does not matter
    assert differing(whole, train(small(), images, tmp_path / "parts", config)) == []


def run_script(folder: Path, data: Path, words: list[str], launcher: list[str] | None = None) -> subprocess.Popen:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[2] / "src"), str(HERE.parents[1])]),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # with another number, sums are rounded otherwise
    }
    command = [sys.executable, *(launcher or []), str(HERE), str(folder), str(data), *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_kill_9_and_again_ends_with_the_same_weights(tmp_path: Path, images: LabelledImages) -> None:
    whole = train(small(), images, tmp_path / "whole", CONFIG)
    process = run_script(tmp_path / "parts", tmp_path / "data", ["slowly"])
    try:
        until = time.monotonic() + 120
        while not (tmp_path / "parts" / "checkpoint.safetensors").exists() and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    steps: list[int] = []
    again = train(small(), images, tmp_path / "parts", CONFIG, progress=lambda done, total: steps.append(done))
    assert 3 < steps[0] <= STEPS
    assert differing(whole, again) == []


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["paper", "once", "distilled"])
def test_two_processes_are_one(tmp_path: Path, images: LabelledImages, variant: str) -> None:
    """Within rounding, as long as that moves no channel over a threshold."""
    config = replace(CONFIG, **VARIANTS[variant])
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with pinned_threads(1):
        whole = train(small(), images, tmp_path / "whole", config)
        process = run_script(tmp_path / "two", tmp_path / "data", [variant], launcher)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()[-2000:]
    other = small()
    found = train(other, images, tmp_path / "two", config)  # finished: the checkpoint is read, nothing is trained
    assert differing(whole, found, 2e-3) == []


def test_a_finished_run_is_not_repeated(tmp_path: Path, images: LabelledImages) -> None:
    whole = train(small(), images, tmp_path, CONFIG)
    assert differing(whole, train(small(), images, tmp_path, CONFIG, progress=interrupt_at(1))) == []


def test_a_finished_run_is_finished_whatever_reads_it(
    tmp_path: Path, images: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thresholds and statistics of norms are not set again: another number of threads would round them differently."""
    whole = train(small(), images, tmp_path, CONFIG)
    monkeypatch.setattr(trainer, "finish", lambda *words: pytest.fail("set again"))
    assert differing(whole, train(small(), images, tmp_path, CONFIG)) == []


def test_a_run_killed_before_its_end_is_finished(
    tmp_path: Path, images: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*words: object) -> None:
        raise Interrupted

    whole = train(small(), images, tmp_path / "whole", CONFIG)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "finish", killed)
        with pytest.raises(Interrupted):
            train(small(), images, tmp_path / "parts", CONFIG)
    assert differing(whole, train(small(), images, tmp_path / "parts", CONFIG)) == []


@pytest.mark.parametrize("change", [{"epochs": 4}, {"similarity": 0.0}, {"gates": GateConfig("fbs")}, {"seed": 1},
                                    {"distillation": Distillation(0.5)}])  # fmt: skip
def test_other_options_in_the_same_folder_are_refused(tmp_path: Path, images: LabelledImages, change: dict) -> None:
    train(small(), images, tmp_path, replace(CONFIG, epochs=1))
    with pytest.raises(ConfigError, match="one training run"):
        train(small(), images, tmp_path, replace(CONFIG, **change))


def test_other_weights_in_the_same_folder_are_refused(tmp_path: Path, images: LabelledImages) -> None:
    train(small(), images, tmp_path, replace(CONFIG, epochs=1))
    with pytest.raises(ConfigError, match="one training run"):
        train(small(seed=1), images, tmp_path, replace(CONFIG, epochs=1))


@pytest.mark.parametrize("option", ["detach_weights", "detach_features"])
def test_what_the_paper_leaves_open_makes_a_difference(tmp_path: Path, images: LabelledImages, option: str) -> None:
    config = replace(CONFIG, epochs=1, updates=3, complexity=10.0, hardness=5.0)
    one, other = (train(small(), images, tmp_path / str(v), replace(config, **{option: v})) for v in (True, False))
    assert differing(one, other)


def test_the_share_of_macs_is_reached(tmp_path: Path, images: LabelledImages) -> None:
    reports: list[EpochReport] = []
    config = replace(CONFIG, target=Target(macs=0.75), epochs=6, updates=3, ramp=0.5)
    network = train(small(), images, tmp_path, config, report=reports.append)
    assert reports[0].macs > reports[-1].macs
    assert reports[-1].macs == pytest.approx(0.75, abs=0.1)
    assert 0.6 < mean_macs(network, images) <= 0.75


def test_a_share_of_time_becomes_one_of_channels(
    tmp_path: Path, images: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time is played by MACs, so that the test does not depend on the machine."""

    def share(network: GatedNetwork, x: torch.Tensor) -> float:
        assert len(x)
        return float(network.macs_of(network.keep(network.observe(x)[1])).mean()) / network.base_macs

    monkeypatch.setattr(latency, "time_share", share)
    monkeypatch.setattr(calibrate, "time_share", share)
    reports: list[EpochReport] = []
    config = replace(CONFIG, target=Target(latency=0.75), epochs=6, updates=3, ramp=0.5)
    network = train(small(), images, tmp_path, config, report=reports.append)
    assert reports[-1].macs == pytest.approx(0.75, abs=0.15)
    assert 0.5 < mean_macs(network, images) <= 0.8
    with pytest.raises(ConfigError, match="within reach"):
        train(small(), images, tmp_path / "other", replace(config, target=Target(latency=0.01)))


def test_time_is_measured_against_the_base_model(
    tmp_path: Path, images: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "time_share", partial(latency.time_share, pairs=3))
    monkeypatch.setattr(latency, "_RATES", (1.0, 0.1))
    network = train(small(), images, tmp_path, replace(CONFIG, epochs=1))
    x = next(images.batches(COLOUR))[0]
    expected = network(x)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    assert latency.time_share(network, x) > 0
    assert torch.equal(network(x), expected)
    with pytest.raises(ConfigError, match="within reach"):
        latency.rate_for_latency(network, x, 1e-6)
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())


def test_as_many_channels_stay_as_were_asked_for(tmp_path: Path, images: LabelledImages) -> None:
    network = train(small(), images, tmp_path, replace(CONFIG, gates=GateConfig("static")))
    with torch.no_grad():
        _, seen = network.observe(next(images.batches(COLOUR))[0])
    assert [float((mask > 0).float().mean()) for mask in seen.masks] == pytest.approx(
        [0.5] * len(network.sites), abs=0.11
    )


def test_counting_macs_backwards(tmp_path: Path, images: LabelledImages) -> None:
    network = train(small(), images, tmp_path, replace(CONFIG, epochs=1))
    assert expected_macs(network, 1.0) == pytest.approx(1 + network.gate_macs() / network.base_macs)
    assert rate_for(network, expected_macs(network, 0.3)) == pytest.approx(0.3, abs=1e-6)


def test_what_gates_cannot_save_is_refused(tmp_path: Path, images: LabelledImages) -> None:
    with pytest.raises(ConfigError, match="take at least"):
        train(small(), images, tmp_path, replace(CONFIG, target=Target(macs=0.01)))


@pytest.mark.parametrize(("start", "least"), [("importance", 0.5), ("equal", 1.0)])
def test_start(images: LabelledImages, tmp_path: Path, start: str, least: float) -> None:
    config = replace(CONFIG, epochs=1, learning_rate=1e-8, start=start)
    network = train(small(), images, tmp_path / "run", config)
    for index in range(len(network.sites)):
        assert float(network.gate(index).excite.bias.detach().min()) == pytest.approx(least, abs=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"ramp": 2.0}, {"updates": 0}, {"hardness": 0.0}, {"device": "nothing"}, {"start": "?"}],
    ids=str,
)
def test_options_that_cannot_be_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        replace(CONFIG, **wrong)


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path, images: LabelledImages) -> None:
    with pytest.raises(ConfigError, match="larger than the data"):
        train(small(), images, tmp_path, replace(CONFIG, batch=25))


def _main() -> None:
    """What the tests above start as a process of its own: ``FOLDER DATA VARIANT|slowly``."""
    from sinf.data.images import load_images

    folder, data, word = sys.argv[1:]
    config = CONFIG if word == "slowly" else replace(CONFIG, **VARIANTS[word])
    pause = (lambda done, total: time.sleep(0.3)) if word == "slowly" else None
    train(small(), load_images(data, "train"), folder, config, progress=pause)


if __name__ == "__main__":
    _main()
