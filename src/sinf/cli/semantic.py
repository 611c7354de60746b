"""What the verbs do with a semantic bundle."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, ClassVar

from sinf.cli import options
from sinf.cli.kinds import CALIBRATION, Bench, Export, Kind, Progress
from sinf.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from sinf.cli.room import Need
    from sinf.data.images import LabelledImages
    from sinf.engine.torch_engine import SemanticModel
    from sinf.models import BaseModel
    from sinf.routing.router import FeatureRouter


class Semantic(Kind):
    refuses: ClassVar = {"base": "a bundle holds its base model"}

    def evaluate(self, model: SemanticModel, images: LabelledImages, base: BaseModel | None, progress: Progress) -> Any:
        from sinf.measure.accuracy import evaluate

        return evaluate(model, images, progress=progress)

    def show_evaluation(self, result: Any) -> None:
        from sinf.report import tables

        tables.show_evaluation(result)

    def need(self, model: SemanticModel) -> Need:
        from sinf.cli.room import Need

        tails = model.bundle.tail_bytes(model.network)
        return Need.of(model.network.graph, largest=2, tails=tails)  # features stay while tails run

    def bench(self, model: SemanticModel, asked: Bench) -> dict[str, Any]:
        from sinf.engine.engines import native, open_engine
        from sinf.measure import accuracy as measure
        from sinf.measure.energy import find_meters
        from sinf.measure.stages import stage_times
        from sinf.measure.timing import make_parts
        from sinf.report import tables

        images, engine, precision, threads = asked.images, asked.engine, asked.precision, asked.threads
        sizes, timed = asked.plan(self.need(model), model.preprocessing, (1, 32))
        calibration = calibration_images(model, asked.held_out)
        router = open_engine(model, engine, threads=threads, precision=precision, calibration=calibration)
        x = native(engine, timed)
        meters, why = find_meters() if asked.energy else ([], ["energy was not asked for"])
        promise = measure.promise(model, engine, precision)
        with options.Steps() as steps:
            right = _accuracy(model, router, x, images, steps) if precision != "f32" else None
            make_parts(
                router, x, batch=images.batch, progress=lambda done, total: steps("loading parts", done, total)
            )  # fmt: skip
            rows = _time(router, x, sizes, asked.pairs, threads, steps)
            # Before bare parts, which only profiles run, are in memory too.
            name = engine if precision == "f32" else f"{engine} {precision}"
            facts = measure.facts(asked.source, asked.load_seconds, name)
            joules = _energy(router, x, sizes, threads, meters, steps)
            parts = None
            if asked.stages:
                names = tuple(model.bundle.clusters.names)
                parts = stage_times(
                    router,
                    names,
                    x,
                    turns=asked.pairs,
                    threads=threads,
                    progress=lambda done, total: steps("stages", done, total),
                )
        tables.show_bench(rows, facts)
        tables.show_precision(precision, right)
        tables.show_promise(promise)
        tables.show_stages(parts, joules, why)
        return {
            "model": model.bundle.spec.name,
            "precision": precision,
            "threshold": router.threshold,
            "promise": promise,
            "top1": right,
            "latency": [row.to_json() for row in rows],
            "stages": None if parts is None else parts.to_json(),
            "energy": [row.to_json() for row in joules] if joules else None,
            "energy_not_available": why,
            **facts,
        }

    def export(self, model: SemanticModel, asked: Export) -> None:
        from sinf.export import page
        from sinf.export.single import export_single
        from sinf.export.split import export_split
        from sinf.measure.accuracy import folder_bytes
        from sinf.report import tables

        if (asked.layout, asked.file_format) == ("single", "openvino"):
            raise ConfigError("the single layout is an ONNX file", got="openvino", remedy="take --layout split")
        out, files = asked.out, page.find_runtime(asked.runtime) if asked.file_format == "web" else None
        with options.Steps() as steps:

            def show(done: int, total: int) -> None:
                steps("exporting", done, total)

            if files is not None:
                page.export_page(model, out, files, page.find_gallery(model, asked.data, asked.split), show)
            elif asked.layout == "single":
                export_single(model, out, show)
            else:
                export_split(
                    model, out, asked.file_format, show, precision=asked.precision,
                    ranges=asked.ranges(model.preprocessing), key=options.key(),
                )  # fmt: skip
        tables.show_export(out, folder_bytes(out) if out.is_dir() else out.stat().st_size)
        if files is not None:
            print(f"python3 -m http.server --bind 127.0.0.1 --directory {shlex.quote(str(out))}    # serves it")

    def show_predictions(self, records: list[dict[str, Any]]) -> None:
        from sinf.report import tables

        tables.show_predictions(records)

    def parts(self, model: SemanticModel) -> dict[str, dict[str, float]]:
        from sinf.measure.accuracy import Costs

        costs = Costs.of(model)
        return {name: {"macs": costs.macs[name], "parameters": costs.parameters[name]} for name in costs.macs}


def _time(router: FeatureRouter, x: Any, sizes: list[int], pairs: int, threads: int, steps: options.Steps) -> list[Any]:
    from sinf.measure.timing import latency

    rows = []
    for size in sizes:
        name, count = f"batch {size}", pairs if size == 1 else max(10, pairs // 4)

        def show(done: int, total: int, name: str = name) -> None:
            steps(name, done, total)

        rows.append(latency(router.base, router, x, batch=size, pairs=count, threads=threads, progress=show))
    return rows


def _accuracy(
    model: Any, router: FeatureRouter, x: Any, images: LabelledImages, steps: options.Steps
) -> dict[str, float]:
    """Top-1 of the timed images: the base model in f32, and base model and bundle in the engine's precision."""
    import numpy as np

    right, batch = {"images": float(len(x)), "base_f32": 0.0, "base": 0.0, "ours": 0.0}, images.batch
    for row in range(0, len(x), batch):
        some, y = x[row : row + batch], images.labels[row : row + batch].numpy()
        for name, logits in (
            ("base_f32", model.engine.run("base", some)[0]),
            ("base", router.base(some)),
            ("ours", router(some)),
        ):
            right[name] += float((np.asarray(logits).argmax(1) == y[: len(some)]).sum()) / len(x)
        steps("accuracy", min(row + batch, len(x)), len(x))
    return right


def _energy(
    router: FeatureRouter, x: Any, sizes: list[int], threads: int, meters: list[Any], steps: options.Steps
) -> list[Any]:
    from sinf.measure.energy import energy

    rows = []
    for size in sizes if meters else []:
        name = f"energy, batch {size}"

        def show(done: int, total: int, name: str = name) -> None:
            steps(name, done, total)

        rows += energy(router.base, router, x, meters, batch=size, threads=threads, progress=show)
    return rows


def calibration_images(model: SemanticModel, images: LabelledImages | None) -> Tensor | None:
    """Normalised images that show an int8 engine what values to expect."""
    from sinf.measure.accuracy import first_images

    if images is None:
        return None
    return first_images(images.sample(CALIBRATION), model, CALIBRATION)
