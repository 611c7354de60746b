"""What a bundle saves on the clock in every engine, where the rest goes, and what its exports weigh.

python benchmarks/engines.py BUNDLE CIFAR100        # BUNDLE: a folder made by sinf build

Written to benchmarks/results/engines_MODEL_cpu.csv after every engine. One thread; base model and bundle take turns.
The column ``what`` says what is measured: ``time`` of a batch, ``stages`` of one image in milliseconds, ``file`` sizes,
``answers`` of the single file beside the bundle's, ``edge`` runtime in a process that cannot import torch.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from table import Table, when_idle

from sinf import SemanticModel, load_images
from sinf.data.images import LabelledImages
from sinf.engine.engines import RUNTIMES, native, open_engine, runtime_of
from sinf.engine.onnx_parts import part_to_onnx
from sinf.engine.onnxruntime_engine import OnnxRuntimeEngine
from sinf.export.single import OUTPUTS, export_single
from sinf.export.split import export_split
from sinf.graph.network import Part
from sinf.measure.accuracy import Evaluation, evaluate, first_images, folder_bytes, machine
from sinf.measure.stages import stage_times
from sinf.measure.timing import OtherProcesses, latency
from sinf.routing.router import BASE, FeatureRouter

COLUMNS = (
    "what", "model", "dataset", "method", "engine", "precision", "device", "batch", "threads", "pairs",
    "base_top1", "top1", "loss", "base_ms", "base_ms_low", "base_ms_high", "ms", "ms_low", "ms_high", "load",
    "time_saved", "time_saved_low", "time_saved_high", "macs_saved", "of_macs_saved", "fallback",
    "extractor", "predictor", "subgraph", "deferral", "full_tail", "glue", "overhead",
    "name", "bytes", "of_base", "seconds", "count", "difference", "date", "versions",
)  # fmt: skip
IDENTITY = ("what", "engine", "precision", "batch", "name")
EDGE = """
import json, sys, time
sys.modules["torch"] = None  # importing it fails
start = time.perf_counter()
from sinf import edge
imported = time.perf_counter() - start
import onnxruntime
both = time.perf_counter() - start
import numpy as np
images = np.load(sys.argv[2])
model = edge.load(sys.argv[1])
logits = np.concatenate([model(image[None]) for image in images])
np.save(sys.argv[3], logits)
print(json.dumps({"sinf.edge": imported, "sinf.edge and onnxruntime": both}))
"""

Row = dict[str, Any]


def main(
    bundle: Path,
    data: Path,
    split: Annotated[str, typer.Option(help="Images that are timed and reported.")] = "test[50%:]",
    calibrate: Annotated[str, typer.Option(help="Images that set the ranges of int8.")] = "test[:50%]",
    images: Annotated[int, typer.Option(help="At most so many are timed; all are reported.")] = 1000,
    pairs: Annotated[int, typer.Option(help="Measurements at batch 1; larger batches have fewer.")] = 400,
    batch: Annotated[list[int] | None, typer.Option(help="[default: 1, 8, 32, 128]")] = None,
    engines: Annotated[
        list[str] | None, typer.Option("--engine", help="[default: all but torch-compile, which compiles for minutes]")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Precisions [default: all].")] = None,
    out: Annotated[Path | None, typer.Option(help="[default: benchmarks/results/engines_MODEL_cpu.csv]")] = None,
    keep: Annotated[bool, typer.Option(help="Leave out engines that are in the file.")] = False,
    loaded: Annotated[bool, typer.Option(help="Write rows even if other processes ran meanwhile.")] = False,
) -> None:
    torch.set_num_threads(1)
    model = SemanticModel.from_pretrained(bundle)
    test, held_out = load_images(data, split), load_images(data, calibrate).sample(256)
    path = out.absolute() if out else f"engines_{model.bundle.spec.name.replace(':', '_')}_cpu.csv"
    table = Measured(path, model, data, keep, loaded)
    print(f"{len(test)} images in torch ...", flush=True)
    whole = evaluate(model, test)
    x = first_images(test.sample(images), model, images)
    ranges = first_images(held_out, model, len(held_out))
    for engine in engines or [name for name in RUNTIMES if name != "torch-compile"]:
        for precision in runtime_of(engine).precisions:
            if only and precision not in only:
                continue
            if table.table.has(what="stages", engine=engine, precision=precision):  # the last of its rows
                continue
            print(f"{engine} {precision} ...", flush=True)
            router = open_engine(model, engine, precision=precision, calibration=ranges)
            common = {"engine": engine, "precision": precision, "threads": 1, "macs_saved": whole.macs_saved}
            table.add(_of_engine(model, router, test, x, whole, common, batch or [1, 8, 32, 128], pairs))
            if engine != "torch":
                router.close()
    with tempfile.TemporaryDirectory(prefix="sinf-engines-") as folder:
        print("exports ...", flush=True)
        table.add(_of_exports(model, bundle, x[:1000], Path(folder)))
        print("edge runtime ...", flush=True)
        table.add(_of_edge(model, x[:200], Path(folder)))
    if not engines and not only and not batch:  # a whole run
        table.table.forget_older()
    print(table.table.path)


class Measured:
    """The table of one run."""

    def __init__(self, path: str | Path, model: SemanticModel, data: Path, keep: bool, loaded: bool) -> None:
        packages = ("onnxruntime", "openvino")
        versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
        self.table = Table(
            path, COLUMNS, IDENTITY, keep=keep, loaded=loaded, model=model.bundle.spec.name,
            dataset=data.resolve().name, method="semantic",
            versions=", ".join([machine()["versions"], *versions]),
        )  # fmt: skip

    def add(self, rows: Iterator[Row]) -> None:
        for row in rows:
            self.table.add(**row)
            print({key: f"{v:.4g}" if isinstance(v, float) else v for key, v in row.items()}, flush=True)


def _of_engine(
    model: SemanticModel,
    router: FeatureRouter,
    test: LabelledImages,
    x: torch.Tensor,
    whole: Evaluation,
    common: Row,
    batches: list[int],
    pairs: int,
) -> Iterator[Row]:
    right = _accuracy(model, router, test, whole, common)
    given = native(common["engine"], x)
    for size in batches:
        count = pairs if size == 1 else max(20, pairs // size)
        times = when_idle(
            lambda size=size, count=count: latency(router.base, router, given, batch=size, pairs=count),
            lambda times: times.load,
        )
        yield {
            "what": "time",
            **common,
            **right,
            "batch": size,
            "pairs": times.pairs,
            "load": times.load,
            "base_ms": times.base_median,
            "base_ms_low": times.base_median_low,
            "base_ms_high": times.base_median_high,
            "ms": times.median,
            "ms_low": times.median_low,
            "ms_high": times.median_high,
            "time_saved": times.time_saved,
            "time_saved_low": times.low,
            "time_saved_high": times.high,
            "of_macs_saved": times.time_saved / common["macs_saved"] if common["macs_saved"] else "",
        }
    found, load = when_idle(lambda: _stages(model, router, given, pairs), lambda found: found[1])
    yield {
        "what": "stages",
        **common,
        "batch": 1,
        "pairs": found.images,
        "load": load,
        "base_ms": found.base,
        "ms": found.ours,
        "time_saved": 1 - found.ours / found.base,
        "fallback": found.fallback_share,
        "extractor": found.extractor,
        "predictor": found.predictor,
        "subgraph": found.subgraph,
        "deferral": found.deferral,
        "full_tail": found.full_tail,
        "glue": found.glue,
        "overhead": found.overhead,
    }


def _stages(model: SemanticModel, router: FeatureRouter, given: Any, turns: int) -> tuple[Any, float | None]:
    """Times of the stages, and what other processes took meanwhile."""
    others = OtherProcesses()
    return stage_times(router, tuple(model.bundle.clusters.names), given, turns=turns), others.load()


def _accuracy(model: SemanticModel, router: FeatureRouter, test: LabelledImages, whole: Evaluation, common: Row) -> Row:
    """Of base model and bundle in one engine and precision; the loss is against the base model in f32, which is the
    same in every engine within rounding."""
    if common["engine"] == "torch":
        return {"base_top1": whole.base_top1, "top1": whole.top1, "loss": whole.loss, "fallback": whole.fallback}
    base_right = right = fell_back = 0
    alone = router.one_by_one()
    for x, y in test.batches(model.bundle.spec.preprocessing):
        routed = alone.route(x)
        right += int((torch.as_tensor(routed.logits).argmax(1) == y).sum())
        fell_back += int(torch.as_tensor(routed.fell_back).sum())
        if common["precision"] != "f32":
            base_right += int((torch.as_tensor(router.base(x)).argmax(1) == y).sum())
    count = len(test)
    return {
        "base_top1": whole.base_top1 if common["precision"] == "f32" else base_right / count,
        "top1": right / count,
        "loss": 100 * (whole.base_top1 - right / count),
        "fallback": fell_back / count,
    }


def _of_exports(model: SemanticModel, bundle: Path, x: torch.Tensor, folder: Path) -> Iterator[Row]:
    """Sizes beside the base model's ONNX file, with the reconstruction's matrices and without; and what the single file
    answers."""
    base = len(part_to_onnx(model.engine, BASE).SerializeToString())
    yield {"what": "file", "name": "base model, onnx", "bytes": base, "of_base": 1.0}
    yield {"what": "file", "name": "bundle", "bytes": folder_bytes(bundle), "of_base": folder_bytes(bundle) / base}
    plain = replace(model.bundle, parts={name: Part(part.keep) for name, part in model.bundle.parts.items()})
    for name, each in (("", model), (" without reconstruction", SemanticModel(plain))):
        each.threshold = model.threshold
        single = folder / f"single{name.replace(' ', '-')}.onnx"
        export_single(each, single)
        size = single.stat().st_size
        yield {"what": "file", "name": f"single{name}", "bytes": size, "of_base": size / base}
    export_split(model, folder / "split")
    size = folder_bytes(folder / "split")  # the same without reconstruction: weights of a part have one shape
    yield {"what": "file", "name": "split", "bytes": size, "of_base": size / base}
    path = folder / "single.onnx"
    start = time.perf_counter()
    engine = OnnxRuntimeEngine(lambda part: path)
    engine.run("single", x[:1].numpy())
    loaded = time.perf_counter() - start
    expected = model.route(x)
    rows = [engine.run("single", image[None].numpy()) for image in x]
    found = {name: np.concatenate(values) for name, values in zip(OUTPUTS, zip(*rows, strict=True), strict=True)}
    same = (found["route"] == expected.route.numpy()) & (found["fell_back"] == expected.fell_back.numpy())
    gap = np.abs(found["logits"] - expected.logits.numpy())[same].max()
    yield {"what": "answers", "name": "single", "count": len(x), "difference": float(gap), "seconds": loaded}
    yield {"what": "answers", "name": "single: other ways than the bundle's", "count": int((~same).sum())}


def _of_edge(model: SemanticModel, x: torch.Tensor, folder: Path) -> Iterator[Row]:
    """Import times are medians of processes of their own, and of the files in memory as a device in use has them."""
    np.save(folder / "images.npy", x.numpy())
    split, logits = folder / "split", folder / "logits.npy"
    runs = []
    for _ in range(5):
        command = [sys.executable, "-c", EDGE, str(split), str(folder / "images.npy"), str(logits)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        runs.append(json.loads(answer.stdout))
    for name in runs[0]:
        yield {"what": "edge", "name": f"import {name}", "seconds": median(run[name] for run in runs)}
    gap = float((torch.from_numpy(np.load(logits)) - model(x)).abs().max())
    yield {"what": "edge", "name": "answers beside the bundle's", "count": len(x), "difference": gap}


if __name__ == "__main__":
    typer.run(main)
