"""What `sinf optimize` delivers on CIFAR-100, beside what a user would pick instead.

    python benchmarks/optimize.py vgg16 WEIGHTS CIFAR100 --work runs/optimize

Every request is one call of optimize(), as a user makes it: candidates from train images, a third of test[:50%]
chooses, the rest tests. What was written is opened as a user opens it (sinf.edge), and reported once, on test[50%:]:
the loss against the base model in the engine's f32, with its interval. All delivered networks are timed together on
images of test[50%:] in turn, batches of one, one thread, the base model in the engine's f32 in between: those that may
have the same precisions in one run, and beside them the base model in int8 by the engine's quantiser, and the model as
it was loaded in torch, eager and compiled.
"""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from candidates import say
from networks import opened
from table import Table, when_idle

from sinf import BaseModel, LabelledImages, load_images, optimize
from sinf.engine.network_engine import open_network
from sinf.errors import ConfigError, DoesNotPayError
from sinf.measure.delivery import ExpectedLoss
from sinf.measure.timing import Latency
from sinf.pipelines.confirm import INT8, confirm
from sinf.pipelines.optimize import OptimizeConfig
from sinf.pipelines.optimize_search import COMPILED, OWN, place_of
from sinf.pipelines.place import Place
from sinf.storage.files import write_json

NOTHING, FEW = "nothing pays", "too few images to promise it"
BOTH, F32 = ("f32", "int8"), ("f32",)
#: Precisions, limit in points and confidence of every request.
ASKED: tuple[tuple[tuple[str, ...], float, float | None], ...] = tuple(
    (precisions, asked, confidence)
    for precisions in (BOTH, F32) for asked in (0.5, 1.0, 0.1) for confidence in (None, 0.95)
)  # fmt: skip
COLUMNS = (
    "model", "dataset", "engine", "device", "batch", "threads", "pairs", "what", "precisions", "asked", "confidence",
    "kind", "chosen", "precision", "selection_loss", "calibration_loss", "base_top1", "loss", "loss_low", "loss_high",
    "images", "time_saved", "time_saved_low", "time_saved_high", "base_ms", "ms", "load", "seed", "date", "versions",
)  # fmt: skip
IDENTITY = ("engine", "batch", "what", "precisions", "asked", "confidence")


def main(
    name: str,
    weights: Path,
    data: Path,
    work: Annotated[
        Path, typer.Option(help="Folder for steps and for what is delivered; what is there is not made again.")
    ],
    engine: str = "onnxruntime",
    batch: int = 1,
    pairs: int = 500,
    only: Annotated[str, typer.Option(help="Ask for these precisions alone: 'f32', or 'f32 int8'.")] = "",
    limits: Annotated[list[float] | None, typer.Option("--limit", help="In points [default: 0.5, 1 and 0.1].")] = None,
    likely: Annotated[bool, typer.Option(help="Ask for limits without a confidence alone.")] = False,
    keep: Annotated[bool, typer.Option(help="Leave out engines that are in the file.")] = False,
    loaded: Annotated[bool, typer.Option(help="Write rows even if other processes ran meanwhile.")] = False,
) -> None:
    table = Table(
        f"optimize_{name}_cpu.csv", COLUMNS, IDENTITY, keep=keep, loaded=loaded, model=name, dataset="cifar100",
        engine=engine, batch=batch, threads=1, pairs=pairs, seed=0,
    )  # fmt: skip
    if table.has(engine=engine, batch=batch):
        return
    base = opened(name, weights)
    train, calibration = load_images(data, "train"), load_images(data, "test[:50%]")
    reported = load_images(data, "test[50%:]")
    asked = [
        (precisions, limit, confidence) for precisions, limit, confidence in ASKED
        if only in ("", " ".join(precisions)) and (not limits or limit in limits) and not (likely and confidence)
    ]  # fmt: skip
    for precisions, requests in groupby(asked, lambda request: request[0]):
        allowed = " ".join(precisions)
        delivered: dict[tuple[Any, ...], tuple[dict[str, Any], Path]] = {}
        # A place of its own: budgets are spent by the times of these precisions, and names do not say so.
        with closing(place_of(OptimizeConfig(engine=engine), train, base.spec.preprocessing)) as place:
            for limit, together in groupby(requests, lambda request: request[1]):
                print(f"{limit:g} points, {allowed}", flush=True)
                delivered |= {each: delivery(base, train, calibration, each, batch, place, work) for each in together}
                # All again: what is compared is timed in one run.
                report(base, place, reported, allowed, delivered, table)
        table.forget_older(engine=engine, batch=batch, precisions=allowed)


def delivery(
    base: BaseModel, train: LabelledImages, calibration: LabelledImages, request: tuple[Any, ...], batch: int,
    place: Place, work: Path,
) -> tuple[dict[str, Any], Path]:  # fmt: skip
    """What optimize() found for a request, as columns, and where it is: as an earlier run left it in ``work``, or
    anew."""
    precisions, asked, confidence = request
    name = (place.engine, f"batch-{batch}", *precisions, f"{asked:g}", str(confidence or "none"))
    folder = work / "delivered" / "-".join(name)
    record = folder.with_name(folder.name + ".json")
    if not record.exists():
        shutil.rmtree(folder, ignore_errors=True)
        write_json(deliver(base, train, calibration, request, batch, place, folder, work / "steps"), record)
    return json.loads(record.read_text()), folder


def deliver(
    base: BaseModel, train: LabelledImages, calibration: LabelledImages, request: tuple[Any, ...], batch: int,
    place: Place, folder: Path, steps: Path,
) -> dict[str, Any]:  # fmt: skip
    precisions, asked, confidence = request
    config = OptimizeConfig(
        max_loss=asked / 100, confidence=confidence, engine=place.engine, precisions=precisions, batch=batch
    )
    try:
        made = optimize(base, train, calibration, config, folder, work=steps, progress=say, place=place)
    except (DoesNotPayError, ConfigError) as reason:
        print(f"{request}: {reason}", flush=True)
        return {"chosen": NOTHING if isinstance(reason, DoesNotPayError) else FEW}
    for row in sorted(made.rows, key=lambda row: row.share):
        print(f"  {row.share:.3f} {row.full_name}: {row.loss}, {100 * row.loss.disagreement:.1f} % differ")
    chosen = made.chosen
    print(f"{request}: {chosen.full_name}, {chosen.time.mean:.2f} ms", flush=True)
    return {
        "kind": chosen.kind, "chosen": chosen.name, "precision": chosen.precision, "selection_loss": chosen.loss.points,
        "calibration_loss": 100 * made.promise.loss,
    }  # fmt: skip


def report(
    base: BaseModel, place: Place, images: LabelledImages, allowed: str, delivered: dict[Any, Any], table: Table
) -> None:
    """Loss and time of all that was delivered in the ``allowed`` precisions, and of what a user would pick instead."""
    folders = {str(request): folder for request, (columns, folder) in delivered.items() if "kind" in columns}
    compiled = open_network(base.module, base.spec.preprocessing.size, "torch-compile")
    shape = {name: table.common[name] for name in ("batch", "pairs")}
    found = when_idle(
        lambda: confirm(base, folders, images, place, **shape, instead={COMPILED: compiled}, progress=say),
        lambda found: found.times[OWN].load,
    )
    for name, what in ((OWN, "torch, as loaded"), (COMPILED, "torch, compiled"), (INT8, "base int8")):
        if name in found.times:
            add(table, found.losses[name], found.times[name], found.base_top1, what=what, precisions=allowed)
    for request, (columns, _) in delivered.items():
        _, asked, confidence = request
        key = {"what": "optimize", "precisions": allowed, "asked": asked, "confidence": confidence}
        if str(request) not in folders:
            table.add(**key, **columns)
            continue
        add(table, found.losses[str(request)], found.times[str(request)], found.base_top1, **key, **columns)


def add(table: Table, loss: ExpectedLoss, time: Latency, base_top1: float, **said: Any) -> None:
    table.add(
        **said, base_top1=base_top1, loss=loss.points, loss_low=loss.low, loss_high=loss.high, images=loss.images,
        time_saved=time.time_saved, time_saved_low=time.low, time_saved_high=time.high, base_ms=time.base_mean,
        ms=time.mean, load=time.load,
    )  # fmt: skip
    print(
        f"{said}: loss {loss.points:.2f} [{loss.low:.2f}, {loss.high:.2f}], {time.mean:.3f} ms, "
        f"saved {time.time_saved:.3f}, load {time.load}", flush=True,
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
