"""A teacher's answers beside the labels: the formula, and what of the teacher is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sinf.errors import ConfigError
from sinf.training.recipe import Distillation
from sinf.training.teacher import Teacher


def test_the_loss_of_a_teacher() -> None:
    logits, answers, hard = torch.randn(4, 3), torch.randn(4, 3), torch.tensor(2.0)
    p, q = (answers / 3).softmax(1), (logits / 3).softmax(1)
    soft = (p * (p.log() - q.log())).sum(1).mean()
    expected = 0.25 * hard + 0.75 * 9 * soft
    torch.testing.assert_close(Teacher(nn.Identity(), Distillation(0.75, 3.0)).loss(logits, answers, hard), expected)


@pytest.mark.parametrize(("weight", "temperature"), [(-0.1, 4), (1.1, 4), (0.9, 0), (0.9, float("nan"))])
def test_a_teacher_out_of_range(weight: float, temperature: float) -> None:
    with pytest.raises(ConfigError, match="teacher"):
        Distillation(weight, temperature)


def test_a_teacher_that_is_ready_is_a_copy_that_does_not_change() -> None:
    """In eval mode, without gradients; the model that was given is left as it is."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 4, 5))
    x = torch.randn(6, 3, 2, 2)
    expected = model.eval()(x)
    teacher = Teacher(model.train()).ready("cpu")
    with torch.no_grad():
        model[0].weight.zero_()
    answers = teacher.answers(x)
    torch.testing.assert_close(answers, expected)
    assert not answers.requires_grad
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


class Halving(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(0.5)


def test_a_teacher_leaves_the_images_to_its_student() -> None:
    x = torch.ones(2, 3)
    assert torch.equal(Teacher(Halving()).answers(x), torch.full((2, 3), 0.5))
    assert torch.equal(x, torch.ones(2, 3))


def test_teachers_are_told_apart_by_weights_and_options() -> None:
    records = [
        Teacher(model, how).record()
        for model in (nn.Linear(2, 2), nn.Linear(2, 2))
        for how in (Distillation(), Distillation(0.5), Distillation(temperature=2.0))
    ]
    assert all(one != other for i, one in enumerate(records) for other in records[:i])
