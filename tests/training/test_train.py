"""Training: it learns, it resumes to the same weights, and it refuses what cannot be the same run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sinf.data.augmentation import augment, join_pairs
from sinf.data.images import LabelledImages, load_images
from sinf.errors import ConfigError, SinfError
from sinf.models import ModelSpec, load_model, load_spec, read_weights
from sinf.models.load import spec_from_metadata
from sinf.training.loop import Loop
from sinf.training.recipe import Distillation
from sinf.training.train import EpochReport, Teacher, TrainConfig, _Classification, train
from tiny import CLASSES, COLOUR, Interrupted, interrupt_at, picture, tiny_data, write_parquet

SPEC = ModelSpec("resnet20", 6, COLOUR, {"width": 0.5})
CONFIG = TrainConfig(epochs=3, batch=8, learning_rate=0.05)
STEPS = 3 * 3  # 24 images in batches of 8


@pytest.fixture
def images(tmp_path: Path) -> LabelledImages:
    return tiny_data(tmp_path / "data")


def assert_same_weights(first: Path, second: Path) -> None:
    one, other = read_weights(first / "model.safetensors"), read_weights(second / "model.safetensors")
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


@pytest.mark.parametrize("options", [{}, {"average": 0.5}, {"bf16": True}], ids=["plain", "averaged", "bf16"])
@pytest.mark.parametrize("step", [1, 5, STEPS])
def test_a_resumed_run_ends_with_the_same_weights(
    tmp_path: Path, images: LabelledImages, options: dict[str, float], step: int
) -> None:
    config = replace(CONFIG, **options)
    train(SPEC, images, tmp_path / "whole", config)
    with pytest.raises(Interrupted):
        train(SPEC, images, tmp_path / "parts", config, progress=interrupt_at(step))
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    torch.manual_seed(99)  # what else the process draws does not matter
    train(SPEC, images, tmp_path / "parts", config)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_a_run_interrupted_twice_in_an_epoch(tmp_path: Path, images: LabelledImages) -> None:
    train(SPEC, images, tmp_path / "whole", CONFIG)
    for step in (4, 5, 8):
        with pytest.raises(Interrupted):
            train(SPEC, images, tmp_path / "parts", CONFIG, progress=interrupt_at(step))
    train(SPEC, images, tmp_path / "parts", CONFIG)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_a_resumed_run_repeats_no_finished_epoch(tmp_path: Path, images: LabelledImages) -> None:
    with pytest.raises(Interrupted):
        train(SPEC, images, tmp_path, CONFIG, progress=interrupt_at(5))
    steps: list[tuple[int, int]] = []
    reports: list[EpochReport] = []
    train(SPEC, images, tmp_path, CONFIG, progress=lambda *step: steps.append(step), report=reports.append)
    assert steps == [(step, STEPS) for step in range(4, STEPS + 1)]
    assert [(report.epoch, report.epochs) for report in reports] == [(2, 3), (3, 3)]


def test_a_finished_run_is_not_repeated(tmp_path: Path, images: LabelledImages) -> None:
    train(SPEC, images, tmp_path, CONFIG)
    before = (tmp_path / "model.safetensors").read_bytes()
    train(SPEC, images, tmp_path, CONFIG, progress=interrupt_at(1))
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [{"epochs": 4}, {"batch": 4}, {"learning_rate": 0.1}, {"seed": 1}, {"average": 0.9}, {"label_smoothing": 0.0}],
    ids=lambda change: next(iter(change)),
)
def test_other_options_in_the_same_folder_are_refused(
    tmp_path: Path, images: LabelledImages, change: dict[str, float]
) -> None:
    with pytest.raises(Interrupted):
        train(SPEC, images, tmp_path, CONFIG, progress=interrupt_at(4))
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="one training run"):
        train(SPEC, images, tmp_path, replace(CONFIG, **change))
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_another_model_in_the_same_folder_is_refused(tmp_path: Path, images: LabelledImages) -> None:
    train(SPEC, images, tmp_path, replace(CONFIG, epochs=1))
    with pytest.raises(ConfigError, match="one training run"):
        train(replace(SPEC, options={"width": 0.25}), images, tmp_path, replace(CONFIG, epochs=1))


def test_other_images_in_the_same_folder_are_refused(tmp_path: Path, images: LabelledImages) -> None:
    with pytest.raises(Interrupted):
        train(SPEC, images, tmp_path, CONFIG, progress=interrupt_at(4))
    with pytest.raises(ConfigError, match="one training run"):
        train(SPEC, images.select(list(range(8, 24))), tmp_path, CONFIG)


@pytest.mark.parametrize("content", [b"", b"damaged", None], ids=["empty", "foreign", "truncated"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, images: LabelledImages, content: bytes | None) -> None:
    with pytest.raises(Interrupted):
        train(SPEC, images, tmp_path, CONFIG, progress=interrupt_at(4))
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-50] if content is None else content)
    with pytest.raises(SinfError, match="checkpoint"):
        train(SPEC, images, tmp_path, CONFIG)


def test_the_seed_decides(tmp_path: Path, images: LabelledImages) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(SPEC, images, tmp_path / name, replace(CONFIG, epochs=1, seed=seed))
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    one, other = (read_weights(tmp_path / name / "model.safetensors")["conv1.weight"] for name in "ac")
    assert not torch.equal(one, other)


def test_the_result_is_loaded_as_it_was_returned(tmp_path: Path, images: LabelledImages) -> None:
    trained = train(SPEC, images, tmp_path, replace(CONFIG, epochs=1))
    path = tmp_path / "model.safetensors"
    assert spec_from_metadata(path) == SPEC
    loaded = load_model("resnet20", weights=path)
    assert loaded.spec.classes == 6
    x = torch.randn(2, *COLOUR.size)
    assert not trained.module.training
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(x), trained.module(x))


def test_it_learns_what_can_be_learned(tmp_path: Path) -> None:
    """Dark or light: classes that a network tells apart after a few epochs, and not before."""
    import io

    from PIL import Image

    def plain(level: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (level, level, level)).save(buffer, "PNG")
        return buffer.getvalue()

    levels = [40 * (i % 6) + i // 6 for i in range(60)]
    names = [str(i) for i in range(6)]
    write_parquet(tmp_path / "data", [plain(level) for level in levels], {"label": ([i % 6 for i in range(60)], names)})
    images = load_images(tmp_path / "data", "train")
    reports: list[EpochReport] = []
    config = TrainConfig(epochs=20, batch=12, learning_rate=0.1, label_smoothing=0.0)
    train(SPEC, images, tmp_path / "run", config, validation=images, report=reports.append)
    assert reports[-1].top1 > 0.6 > reports[0].top1
    assert reports[-1].loss < reports[0].loss / 2


def test_without_validation_there_is_no_accuracy(tmp_path: Path, images: LabelledImages) -> None:
    reports: list[EpochReport] = []
    train(SPEC, images, tmp_path, replace(CONFIG, epochs=1), report=reports.append)
    assert [report.top1 for report in reports] == [None]


# ---- from weights that are there, with a teacher


class Stubborn(nn.Module):
    """Always says the same class."""

    def __init__(self, answer: int) -> None:
        super().__init__()
        self.register_buffer("logits", 20.0 * torch.nn.functional.one_hot(torch.tensor(answer), CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def test_a_student_says_what_its_teacher_says(tmp_path: Path, images: LabelledImages) -> None:
    x = torch.cat([x for x, _ in images.batches(SPEC.preprocessing)])
    config, said = replace(CONFIG, label_smoothing=0.0), []
    for weight in (1.0, 0.0):
        how = Distillation(weight, temperature=1.0)
        student = train(SPEC, images, tmp_path / f"{weight}", config, teacher=Teacher(Stubborn(2), how))
        with torch.no_grad():
            said.append(float((student.module(x).argmax(1) == 2).float().mean()))
    assert said[0] == 1 > said[1]


def test_training_starts_from_the_weights_that_are_given(tmp_path: Path, images: LabelledImages) -> None:
    first = train(SPEC, images, tmp_path / "first", replace(CONFIG, epochs=1))
    still = replace(CONFIG, epochs=1, learning_rate=1e-8, weight_decay=0.0)
    again = train(SPEC, images, tmp_path / "again", still, start=first.module.state_dict())
    for name, value in again.module.named_parameters():
        torch.testing.assert_close(value, first.module.get_parameter(name), atol=1e-5, rtol=1e-5)


def test_other_weights_or_another_teacher_in_the_same_folder_are_refused(
    tmp_path: Path, images: LabelledImages
) -> None:
    start = load_spec(SPEC).state_dict()
    one = replace(CONFIG, epochs=1)
    train(SPEC, images, tmp_path, one, start=start, teacher=Teacher(Stubborn(2)))
    for other in ({"start": start}, {"start": load_spec(SPEC).state_dict(), "teacher": Teacher(Stubborn(2))},
                  {"start": start, "teacher": Teacher(Stubborn(3))}):  # fmt: skip
        with pytest.raises(ConfigError, match="one training run"):
            train(SPEC, images, tmp_path, one, **other)


# ---- options


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("batch", 1), ("learning_rate", 0), ("learning_rate", float("nan")), ("warmup", 1), ("average", 1),
     ("average", -0.1), ("label_smoothing", 1), ("weight_decay", -1), ("momentum", 1.5), ("momentum", -0.1),
     ("device", "abacus")],
)  # fmt: skip
def test_option_out_of_range(tmp_path: Path, images: LabelledImages, name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        train(SPEC, images, tmp_path, TrainConfig(**{"epochs": 1, "batch": 8, name: value}))


def test_a_batch_larger_than_the_data(tmp_path: Path, images: LabelledImages) -> None:
    with pytest.raises(ConfigError, match="batch"):
        train(SPEC, images, tmp_path, replace(CONFIG, batch=25))


def test_more_classes_in_the_data_than_in_the_model(tmp_path: Path, images: LabelledImages) -> None:
    with pytest.raises(SinfError, match="classes"):
        train(replace(SPEC, classes=5), images, tmp_path, CONFIG)


def test_no_warmup(tmp_path: Path, images: LabelledImages) -> None:
    train(SPEC, images, tmp_path, replace(CONFIG, epochs=1, warmup=0))


# ---- augmentation


def crops(image: Tensor, padding: int) -> set[bytes]:
    """All crops of a padded image, and their mirror images."""
    height, width, _ = image.shape
    padded = torch.full((height + 2 * padding, width + 2 * padding, 3), 124, dtype=torch.uint8)
    padded[padding : padding + height, padding : padding + width] = image
    found = set()
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[top : top + height, left : left + width]
            found |= {crop.numpy().tobytes(), crop.flip(1).contiguous().numpy().tobytes()}
    return found


def test_augmented_images_are_crops_and_flips() -> None:
    image = torch.from_numpy(COLOUR.decode(picture(5), "image").copy())
    made = augment(image.expand(300, -1, -1, -1), torch.Generator().manual_seed(0), padding=1)
    assert made.dtype == torch.uint8
    assert {one.numpy().tobytes() for one in made} == crops(image, padding=1)


def test_joined_pairs_differ_in_one_rectangle_that_is_of_another_image() -> None:
    images = torch.arange(6.0)[:, None, None, None].expand(6, 3, 16, 20)
    generator = torch.Generator().manual_seed(0)
    shares = set()
    for _ in range(30):
        joined = join_pairs(images, generator)
        changed = (joined != images).any(1)  # (6, 16, 20)
        for number, place in enumerate(changed):
            rows, columns = place.any(1), place.any(0)
            assert torch.equal(place, rows[:, None] & columns)
            assert len(joined[number][:, place].unique()) <= 1
        shares.add(float(changed.float().mean((1, 2)).max()))
    assert max(shares) <= 0.5
    assert len(shares) > 10
    assert torch.equal(images[:, 0, 0, 0], torch.arange(6.0))  # what was given stays as it was


def test_every_epoch_draws_anew(tmp_path: Path, images: LabelledImages, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def recorded(pixels: Tensor, *args: object, **kwargs: object) -> Tensor:
        made = augment(pixels, *args, **kwargs)
        seen.append(made.numpy().tobytes())
        return made

    monkeypatch.setattr("sinf.training.checkpoint.augment", recorded)
    train(SPEC, images, tmp_path, CONFIG)
    assert len(set(seen)) == len(seen) == STEPS


def test_augmentation_repeats_with_its_generator() -> None:
    image = torch.from_numpy(COLOUR.decode(picture(5), "image").copy()).expand(8, -1, -1, -1)
    one, other = (augment(image, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, other)


# ---- the recipe


def loop_of(config: TrainConfig, steps_per_epoch: int) -> Loop:
    return Loop(_Classification(nn.Linear(2, 2), config), config, steps_per_epoch, average=config.average)


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.1, 0.3, 0.5])
def test_the_learning_rate_is_one_cycle(warmup: float) -> None:
    """Also where a warm-up takes one of 20 steps, by which torch would divide by zero."""
    config = TrainConfig(epochs=4, learning_rate=0.5, warmup=warmup)
    rates = rates_of(loop_of(config, 5), 20)
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.5, rel=0.03)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(0.5e-5)
    if warmup * 20 > 1:
        assert rates[0] == pytest.approx(0.5 / 25)
        assert peak == round(warmup * 20) - 1
    resumed = loop_of(config, 5)
    resumed.load(loop_of(config, 5).tensors(), 3)
    assert rates_of(resumed, 5) == pytest.approx(rates[15:])


def test_a_single_step_changes_something() -> None:
    (rate,) = rates_of(loop_of(TrainConfig(epochs=1, learning_rate=0.5), 1), 1)
    assert 0.1 < rate <= 0.5


def rates_of(loop: Loop, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(loop.optimizer.param_groups[0]["lr"])
        loop.step(torch.ones(2, 2), torch.tensor([0, 1]))
    return rates


def test_the_average_is_exponential() -> None:
    """From the first step on; 0.25 an epoch of two steps is 0.5 a step."""
    loop = loop_of(TrainConfig(epochs=2, average=0.25), 2)
    expected = None
    for _ in range(4):
        loop.step(torch.eye(2), torch.tensor([0, 1]))
        now = loop.model.weight.detach()
        expected = now.clone() if expected is None else (expected + now) / 2
    torch.testing.assert_close(loop.result.weight.detach(), expected)
