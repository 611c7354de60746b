"""What optimize() delivered, on images that chose and tested nothing: opened as a user opens it, beside what the user
would run instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sinf import edge
from sinf.data.images import LabelledImages
from sinf.engine.engines import native, open_engine, runtime_of
from sinf.engine.network_engine import open_network
from sinf.engine.parts import bare
from sinf.engine.torch_engine import SemanticModel
from sinf.load import from_pretrained
from sinf.measure.delivery import ExpectedLoss, answers_with_margins
from sinf.measure.timed_images import timed_images
from sinf.measure.timing import Latency, interleaved
from sinf.models import BaseModel
from sinf.pipelines.candidates import FORMATS, Run, Static
from sinf.pipelines.optimize_search import BASE, OWN
from sinf.pipelines.place import Place
from sinf.routing.router import FRONT, FULL_TAIL

Progress = Callable[[str, int, int], None]

INT8 = f"{BASE}, int8"
PARTS = "its own extractor and full tail"


@dataclass(frozen=True)
class Confirmed:
    """By name, loss against the base model in its engine's f32, and time beside it, all timed in one run: of what was
    delivered, of the base model as it was loaded, and of it in int8 where the engine has that. ``base_top1`` is a
    fraction."""

    base_top1: float
    losses: dict[str, ExpectedLoss]
    times: dict[str, Latency]


def confirm(
    base: BaseModel,
    folders: Mapping[str, Path],
    images: LabelledImages,
    place: Place,
    *,
    batch: int = 1,
    pairs: int = 100,
    instead: Mapping[str, Run] | None = None,
    progress: Progress | None = None,
) -> Confirmed:
    """Loss and time of what lies in ``folders``, and of ``instead``, what else a user would run, by name.

    Raises:
        BundleError, ModelError: a folder was not written by optimize() for the engine of the place, or is damaged.
    """
    told = progress or (lambda step, done, total: None)
    fed = base.spec.preprocessing
    own = Static(base, BASE)  # open in the place already, where optimize() worked in it
    reference, _ = own.run_in(place, "f32")
    runs: dict[str, Run] = {OWN: base.module}
    if "int8" in runtime_of(place.engine).precisions:
        runs[INT8], _ = own.run_in(place, "int8")
    runs |= instead or {}
    runs |= {name: open_delivered(folder, place.engine, place.threads) for name, folder in folders.items()}

    def answers(name: str, run: Run) -> tuple[Tensor, Tensor]:
        return answers_with_margins(run, images, fed, lambda done, total: told(f"answers of {name}", done, total))

    expected, margins = answers(BASE, reference)
    losses = {name: ExpectedLoss.of(expected, answers(name, run)[0], images.labels) for name, run in runs.items()}
    x = timed_images(images, margins, fed, batch=batch, pairs=pairs)
    times = interleaved(
        reference, runs, x, batch=batch, pairs=pairs, threads=place.threads,
        warmup=max(2, pairs // 10), progress=lambda done, total: told("time", done, total),
    )  # fmt: skip
    return Confirmed(float((expected == images.labels).double().mean()), losses, times)


def parts_alone(model: SemanticModel, place: Place, precision: str) -> Run:
    """The extractor and the full tail of a bundle as one network, without a router or a small tail: it must be slower
    than the bundle, or these are worth nothing."""
    whole = nn.Sequential(model.engine.module(bare(FRONT)), model.engine.module(FULL_TAIL))
    return Static(BaseModel(whole, model.bundle.spec), PARTS).run_in(place, precision)[0]


def open_delivered(folder: Path, engine: str, threads: int) -> Run:
    """What optimize() wrote, in the engine that it was written for: for most this needs :mod:`sinf.edge` alone."""
    if engine in FORMATS:
        export = edge.load(folder / engine, threads=threads)
        return lambda x: torch.as_tensor(export(x.numpy()))
    model: Any = from_pretrained(folder)
    if isinstance(model, SemanticModel):
        router = open_engine(model, engine, threads=threads).one_by_one()
        return lambda x: torch.as_tensor(router(x))
    run = open_network(model.network, model.preprocessing.size, engine, threads=threads)
    return lambda x: torch.as_tensor(run(native(engine, x)))
