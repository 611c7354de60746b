"""Gates that also learn from the base model: what teaches, on which images, by which loss, and at which price."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gated import cut, gated
from sinf.data.images import LabelledImages
from sinf.dynamic import losses, trainer
from sinf.dynamic.gating import Gating
from sinf.dynamic.memory import plan_training
from sinf.dynamic.methods import METHODS
from sinf.dynamic.network import GateConfig, GatedNetwork, attach
from sinf.dynamic.targets import Target
from sinf.dynamic.trainer import TrainConfig, train
from sinf.errors import ConfigError
from sinf.machine.memory import OVERHEAD, Memory, weight_bytes
from sinf.measure.estimate import Estimate
from sinf.models import BaseModel, ModelSpec
from sinf.training.distributed import Group
from sinf.training.loop import Loop
from sinf.training.recipe import Distillation
from sinf.training.teacher import Teacher
from tiny import CLASSES, COLOUR, Chain, Interrupted, Mixed, Residual, interrupt_at, tiny_data

CONFIG = TrainConfig(Target(channels=0.5), epochs=2, batch=8, learning_rate=0.02, similarity=0.5)
TAUGHT = replace(CONFIG, distillation=Distillation(0.7, 2.0))


def small() -> BaseModel:
    """A training asks for the network alone; the name stands in its record."""
    torch.manual_seed(0)
    return BaseModel(Mixed(["residual", "plain", "residual"], width=8), ModelSpec("resnet20", CLASSES, COLOUR))


@pytest.fixture
def images(tmp_path: Path) -> LabelledImages:
    return tiny_data(tmp_path / "data")


def same(one: GatedNetwork, other: GatedNetwork) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return all(torch.equal(a[key], b[key]) for key in a)


def trained_alike(one: GatedNetwork, other: GatedNetwork) -> bool:
    """Without statistics of norms, which the end of a training takes again from images drawn by class."""
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def gating(config: TrainConfig, network: GatedNetwork) -> Gating:
    return Gating(network, config, Group(), 4, Teacher(Chain(), config.distillation).ready("cpu"))


def test_the_loss_is_that_of_labels_teacher_and_saliencies() -> None:
    """Complexity weighs images by their cross entropy with the labels, whatever the teacher says."""
    network, config = cut(gated(Residual())), replace(TAUGHT, complexity=2.0, hardness=5.0)
    ours = gating(config, network)
    ours.mean_before.fill_(1.5)
    x, labels = torch.randn(8, *COLOUR.size), torch.arange(8) % CLASSES
    answer = logits, seen, taught = ours.answer(x)
    assert taught is not None
    assert not taught.requires_grad
    each = F.cross_entropy(logits, labels, reduction="none")
    p, q = (taught / 2).softmax(1), (logits / 2).softmax(1)
    expected = 0.3 * each.mean() + 0.7 * 4 * (p * (p / q).log()).sum(1).mean()
    expected = expected + 2.0 * losses.complexity(seen.saliencies, losses.instance_weights(each, 1.5, 5.0))
    expected = expected + 0.5 * losses.similarity(seen.features, seen.saliencies)
    torch.testing.assert_close(ours.loss(answer, labels, 8), expected, rtol=1e-4, atol=1e-5)
    assert float(ours._sums.rest[0]) == pytest.approx(float(each.detach().sum()), rel=1e-5)


def test_the_base_model_teaches_as_it_was_on_the_images_of_the_step(
    tmp_path: Path, images: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms folded and in eval mode, while gates, weights and norms of what it teaches change."""
    said: list[tuple[Tensor, Tensor]] = []
    shown: list[Tensor] = []
    answers, observe = Teacher.answers, GatedNetwork.observe

    def listened(self: Teacher, x: Tensor) -> Tensor:
        said.append((x, answers(self, x)))
        return said[-1][1]

    def watched(self: GatedNetwork, x: Tensor) -> tuple:
        shown.append(x)
        return observe(self, x)

    monkeypatch.setattr(Teacher, "answers", listened)
    monkeypatch.setattr(GatedNetwork, "observe", watched)
    train(small(), images, tmp_path / "run", replace(TAUGHT, learning_rate=0.1))
    base = small().module.eval()
    assert len(said) == 2 * 3  # once a batch
    for (x, taught), own in zip(said, shown, strict=False):
        assert x is own
        with torch.no_grad():
            torch.testing.assert_close(taught, base(x), rtol=1e-3, atol=1e-4)


def test_without_labels_only_the_base_model_teaches(tmp_path: Path, images: LabelledImages) -> None:
    """At a weight of 1 and without complexity, whose weights of images are of labels, no label matters."""
    other = images.labelled_by((images.labels + 1) % CLASSES, images.class_names)
    for weight, equal in ((1.0, True), (0.7, False)):
        config = replace(CONFIG, complexity=0.0, distillation=Distillation(weight))
        one, two = (train(small(), part, tmp_path / f"{weight}{i}", config) for i, part in enumerate((images, other)))
        assert trained_alike(one, two) == equal


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_can_be_taught(tmp_path: Path, images: LabelledImages, kind: str) -> None:
    config = replace(CONFIG, gates=GateConfig(kind), complexity=1e-4)
    plain, taught = (
        train(small(), images, tmp_path / str(how.weight), replace(config, distillation=how))
        for how in (Distillation(0.0), Distillation(0.7))
    )
    assert not same(plain, taught)


def test_a_weight_of_nothing_is_no_teacher(tmp_path: Path, images: LabelledImages) -> None:
    """Neither to the weights, nor to a checkpoint that is there."""
    whole = train(small(), images, tmp_path / "whole", CONFIG)
    with pytest.raises(Interrupted):
        train(small(), images, tmp_path / "parts", CONFIG, progress=interrupt_at(5))
    nothing = replace(CONFIG, distillation=Distillation(0.0, 2.0))
    assert same(whole, train(small(), images, tmp_path / "parts", nothing))
    assert "distillation" not in nothing.identity()  # as before there was any


@pytest.mark.parametrize("change", [Distillation(0.0), Distillation(0.6, 2.0), Distillation(0.7, 3.0)], ids=str)
def test_a_checkpoint_knows_what_taught(tmp_path: Path, images: LabelledImages, change: Distillation) -> None:
    with pytest.raises(Interrupted):
        train(small(), images, tmp_path / "run", TAUGHT, progress=interrupt_at(5))
    with pytest.raises(ConfigError, match="one training run"):
        train(small(), images, tmp_path / "run", replace(TAUGHT, distillation=change))


@pytest.mark.parametrize("part", [3, 8])
def test_a_batch_in_parts_takes_the_same_step(part: int) -> None:
    states = []
    for size in (16, part):
        torch.manual_seed(0)
        network = cut(gated(Chain()))
        config = replace(TAUGHT, batch=16, similarity=0.0, momentum=0.0)
        ours = gating(config, network)
        network.eval()  # batch norms of a part are others
        loss = Loop(ours, config, 4, part=size).step(torch.randn(16, *COLOUR.size), torch.arange(16) % CLASSES)
        states.append([loss, *(p.detach().clone() for p in network.parameters())])
    for mine, whole in zip(*states, strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-5)


def test_what_a_teacher_costs_is_said_before(
    tmp_path: Path, images: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In time, and in memory: its weights are there besides."""
    told: list[Estimate] = []
    teachers: list[Teacher | None] = []

    def planned(*words: Any) -> tuple[int, int]:
        teachers.append(words[-1])
        return plan_training(*words)

    monkeypatch.setattr(trainer, "plan_training", planned)
    for name, config in (("plain", CONFIG), ("taught", TAUGHT)):
        train(small(), images, tmp_path / name, config, expect=told.append)
    (extra,) = set(told[1].steps) - set(told[0].steps)
    assert "base model" in extra
    assert 0 < told[1].steps[extra] < told[1].steps["training"]
    nobody, teacher = teachers
    assert nobody is None
    assert teacher is not None
    assert 0 < weight_bytes(teacher.model) <= weight_bytes(small().module)
    network = attach(small())
    least, most = OVERHEAD, 10 * OVERHEAD
    while most - least > 1000:  # the least memory in which it fits without a teacher
        middle = (least + most) // 2
        try:
            plan_training(network, images, None, COLOUR, Memory(middle), CONFIG)
            most = middle
        except ConfigError:
            least = middle
    plan_training(network, images, None, COLOUR, Memory(most), CONFIG)
    with pytest.raises(ConfigError, match="must fit"):
        plan_training(network, images, None, COLOUR, Memory(most), CONFIG, 1, teacher)
