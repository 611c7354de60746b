"""The loop that every training shares: draws, parts of a batch, weight decay, checkpoints, and losses that are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from sinf.data.images import LabelledImages
from sinf.dynamic import trainer
from sinf.dynamic.network import GateConfig
from sinf.dynamic.targets import Target
from sinf.errors import ConfigError
from sinf.models import BaseModel, ModelSpec
from sinf.storage.files import hash_tensors
from sinf.training import train as plain
from sinf.training.loop import Loop, Objective, Parameters
from tiny import CLASSES, COLOUR, Interrupted, conv, interrupt_at, tiny_data

CONFIG = plain.TrainConfig(epochs=3, batch=8, learning_rate=0.05)
GATES = trainer.TrainConfig(Target(channels=0.5), epochs=3, batch=8, learning_rate=0.02)


class Forgetful(nn.Module):
    """With dropout, whose draws are nobody's but torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(conv(3, 6), conv(6, 8))
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.convs(x).mean((2, 3)))


SPEC = ModelSpec(f"{__name__}:Forgetful", CLASSES, COLOUR)


@pytest.fixture
def images(tmp_path: Path) -> LabelledImages:
    return tiny_data(tmp_path / "data")


def start() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return Forgetful().state_dict()


def train_plain(images: LabelledImages, folder: Path, **options: Any) -> nn.Module:
    words = {key: options.pop(key) for key in ("progress", "report") if key in options}
    return plain.train(SPEC, images, folder, replace(CONFIG, **options), start=start(), **words).module


def train_gates(images: LabelledImages, folder: Path, **options: Any) -> nn.Module:
    words = {key: options.pop(key) for key in ("progress", "report") if key in options}
    module = Forgetful()
    module.load_state_dict(start())
    return trainer.train(BaseModel(module, SPEC), images, folder, replace(GATES, **options), **words)


both = pytest.mark.parametrize("run", [train_plain, train_gates])


@both
def test_dropout_draws_by_seed_and_epoch_alone(
    tmp_path: Path, images: LabelledImages, run: Callable[..., nn.Module]
) -> None:
    whole = hash_tensors(run(images, tmp_path / "whole").state_dict())
    with pytest.raises(Interrupted):
        run(images, tmp_path / "parts", progress=interrupt_at(5))
    torch.manual_seed(99)
    torch.rand(7)
    assert hash_tensors(run(images, tmp_path / "parts").state_dict()) == whole
    assert hash_tensors(run(images, tmp_path / "other", seed=1).state_dict()) != whole


@both
def test_reports_and_progress(tmp_path: Path, images: LabelledImages, run: Callable[..., nn.Module]) -> None:
    steps, reports = [], []
    run(images, tmp_path, progress=lambda *step: steps.append(step), report=reports.append)
    assert steps == [(step, 9) for step in range(1, 10)]
    assert [(each.epoch, each.epochs, each.top1) for each in reports] == [(n, 3, None) for n in (1, 2, 3)]


def test_checkpoints_of_gates_under_their_old_names_go_on(tmp_path: Path, images: LabelledImages) -> None:
    whole = train_gates(images, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train_gates(images, tmp_path / "parts", progress=interrupt_at(5))
    path = tmp_path / "parts" / "checkpoint.safetensors"
    with safe_open(str(path), framework="pt") as file:
        metadata = {name: said for name, said in file.metadata().items() if name != "sha256"}  # which came later
    older = {
        f"network.{key.removeprefix('model.')}" if key.startswith("model.") else key: value
        for key, value in load_file(path).items()
    }
    assert len([key for key in older if key.startswith("network.")]) == len(whole.state_dict())
    save_file(older, path, metadata)
    again = train_gates(images, tmp_path / "parts")
    assert hash_tensors(again.state_dict()) == hash_tensors(whole.state_dict())


def test_gates_without_parameters_are_trained(tmp_path: Path, images: LabelledImages) -> None:
    network = train_gates(images, tmp_path, gates=GateConfig("static"), epochs=1)
    assert list(network.gates.parameters()) == []


# ---- the loop itself


class Quadratic(Objective):
    """Half the squared distance of a weight and a bias from the images, whose gradient is simple."""

    def __init__(self) -> None:
        self.model = nn.Linear(1, 1)
        nn.init.ones_(self.model.weight)
        nn.init.ones_(self.model.bias)
        self.done: list[int] = []

    def parameters(self) -> tuple[Parameters, Parameters]:
        return [self.model.weight], [self.model.bias]

    def schedule(self, optimizer: torch.optim.Optimizer, steps: int, done: int) -> LRScheduler:
        return LambdaLR(optimizer, lambda step: 1 - step / steps, last_epoch=done - 1)

    def answer(self, x: Tensor) -> Tensor:
        return (self.model.weight - x[:, :1]).square() / 2 + (self.model.bias - x[:, 1:2]).square() / 2

    def loss(self, answer: Tensor, labels: Tensor, whole: int) -> Tensor:
        return answer.sum() / whole

    def stepped(self, done: int) -> None:
        self.done.append(done)


def quadratic(part: int | None = None, **options: Any) -> Loop:
    config = replace(CONFIG, **{"epochs": 2, "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.5, **options})
    return Loop(Quadratic(), config, 2, part=part)


@pytest.mark.parametrize("part", [1, 3, 8])
def test_parts_of_a_batch_add_up(part: int) -> None:
    loop, x = quadratic(part), torch.arange(16.0).reshape(8, 2)
    loss = loop.step(x, torch.zeros(8))
    torch.testing.assert_close(loss, ((1 - x).square() / 2).sum() / 8)
    expected = 1 - 0.5 * (1 - x.mean(0))
    torch.testing.assert_close(torch.stack([loop.model.weight[0, 0], loop.model.bias[0]]).detach(), expected)


def test_what_decays_and_what_does_not() -> None:
    loop = quadratic(weight_decay=0.1)
    loop.step(torch.ones(8, 2), torch.zeros(8))
    assert float(loop.model.weight.detach()) == pytest.approx(1 - 0.5 * 0.1)
    assert float(loop.model.bias.detach()) == 1


def test_the_rate_goes_on_where_the_checkpoint_was() -> None:
    loop = quadratic()
    rates = []
    for _ in range(4):
        rates.append(loop.optimizer.param_groups[0]["lr"])
        loop.step(torch.ones(8, 2), torch.zeros(8))
    assert rates == pytest.approx([0.5, 0.375, 0.25, 0.125])
    again = quadratic()
    again.load(loop.tensors(), 1)
    assert again.epochs_done == 1
    assert again.optimizer.param_groups[0]["lr"] == pytest.approx(0.25)


class Pictures(Quadratic):
    """Of the first numbers of real images; from step ``bad`` on, the loss is none."""

    def __init__(self, bad: int = 100) -> None:
        super().__init__()
        self.bad = bad

    def answer(self, x: Tensor) -> Tensor:
        return super().answer(x.flatten(1))

    def loss(self, answer: Tensor, labels: Tensor, whole: int) -> Tensor:
        loss = super().loss(answer, labels, whole)
        return loss * torch.nan if len(self.done) + 1 >= self.bad else loss


def pictures(bad: int = 100) -> Loop:
    return Loop(Pictures(bad), replace(CONFIG, epochs=2), 3)


def test_steps_are_counted_over_epochs_and_resumed_runs(tmp_path: Path, images: LabelledImages) -> None:
    first = pictures()
    assert not first.open(tmp_path, "one")
    with pytest.raises(Interrupted):
        first.run(images, COLOUR, progress=interrupt_at(4))
    assert first.objective.done == [1, 2, 3, 4]
    second = pictures()
    assert second.open(tmp_path, "one")
    second.run(images, COLOUR)
    assert second.objective.done == [4, 5, 6]


def test_a_loss_that_is_not_finite_is_refused(tmp_path: Path, images: LabelledImages) -> None:
    """And no checkpoint of it is written: the run can go on from the one before."""
    loop = pictures(bad=5)
    loop.open(tmp_path, "one")
    with pytest.raises(ConfigError, match=r"the loss must be finite \(got nan\)"):
        loop.run(images, COLOUR)
    again = pictures()
    assert again.open(tmp_path, "one")
    assert again.epochs_done == 1
    assert all(bool(p.isfinite().all()) for p in again.model.parameters())


def test_torch_draws_for_the_caller_as_if_nothing_had_run(tmp_path: Path, images: LabelledImages) -> None:
    loop, before = pictures(), torch.get_rng_state()
    loop.open(tmp_path, "one")
    drawn = []
    loop.run(images, COLOUR, progress=lambda done, total: drawn.append(float(torch.rand(()))))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(set(drawn)) == 6  # every epoch has draws of its own
