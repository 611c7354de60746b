"""What the verbs do with a plain model: one network for all classes, with or without the base model beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sinf.cli import options
from sinf.cli.kinds import CALIBRATION, Bench, Export, Kind, Progress
from sinf.errors import ConfigError

if TYPE_CHECKING:
    from sinf.bundle.plain import PlainModel
    from sinf.cli.room import Need
    from sinf.data.images import LabelledImages
    from sinf.models import BaseModel


class Plain(Kind):
    refuses: ClassVar = {"threshold": "a plain model has no fallback"}

    def evaluate(self, model: PlainModel, images: LabelledImages, base: BaseModel | None, progress: Progress) -> Any:
        from sinf.measure.plain import evaluate

        return evaluate(model, images, base, progress=progress)

    def show_evaluation(self, result: Any) -> None:
        from sinf.report import artefacts

        artefacts.show_plain(result)

    def need(self, model: PlainModel) -> Need:
        from sinf.cli.room import Need

        return Need.of_model(model.base_model())

    def bench(self, model: PlainModel, asked: Bench) -> dict[str, Any]:
        from sinf.cli.room import Need
        from sinf.engine.engines import native
        from sinf.engine.network_engine import open_network
        from sinf.graph.prepare import prepare
        from sinf.graph.trace import trace
        from sinf.measure import accuracy as measure
        from sinf.measure.plain import right_share
        from sinf.measure.timing import alone, latency
        from sinf.report import artefacts, tables

        size, feed, images = model.preprocessing.size, model.preprocessing, asked.images
        need = self.need(model) if asked.base is None else self.need(model).beside(Need.of_model(asked.base))
        sizes, x = asked.plan(need, feed, (1, 32) if len(images) >= 32 else (1,))
        calibration = None
        if asked.held_out is not None:
            sample = asked.held_out.sample(CALIBRATION)
            calibration = feed.normalise(sample.pixels(feed, 0, CALIBRATION))
        how: dict[str, Any] = {"threads": asked.threads, "precision": asked.precision, "calibration": calibration}
        network = open_network(model.network, size, asked.engine, **how)
        base = None
        if asked.base is not None:
            base = open_network(prepare(trace(asked.base.module, feed)), size, asked.engine, **how)
        given = native(asked.engine, x)
        with options.Steps() as steps:
            right = None
            if asked.precision != "f32":
                named = _named(network, base)
                right = {name: right_share(run, given, images.labels, images.batch) for name, run in named.items()}
            rows: list[Any] = []
            for batch in sizes:
                pairs = asked.pairs if batch == 1 else max(10, asked.pairs // 4)

                def show(done: int, total: int, name: str = f"batch {batch}") -> None:
                    steps(name, done, total)

                run: dict[str, Any] = {"batch": batch, "pairs": pairs, "threads": asked.threads, "progress": show}
                rows.append(alone(network, given, **run) if base is None else latency(base, network, given, **run))
        engine = asked.engine if asked.precision == "f32" else f"{asked.engine} {asked.precision}"
        facts = measure.facts(asked.source, asked.load_seconds, engine)
        if base is None:
            artefacts.show_alone(rows, facts)
        else:
            tables.show_bench(rows, facts)
        artefacts.show_right(right, asked.precision)
        return {
            "model": model.spec.name,
            "precision": asked.precision,
            "top1": right,
            "latency": [row.to_json() for row in rows],
            "stages": None,
            "energy": None,
            **facts,
        }

    def export(self, model: PlainModel, asked: Export) -> None:
        from sinf.export.plain import export_network, export_plain
        from sinf.measure.accuracy import folder_bytes
        from sinf.report import tables

        if asked.file_format == "web":
            rule, remedy = "a page shows a bundle beside its base model", "export onnx"
            raise ConfigError(rule, got="a plain model", remedy=remedy)
        with options.Steps() as steps, steps.once("exporting"):
            if asked.layout == "split" or asked.precision != "f32":
                export_network(
                    model, asked.out, asked.file_format, precision=asked.precision,
                    ranges=asked.ranges(model.preprocessing), key=options.key(),
                )  # fmt: skip
                size = folder_bytes(asked.out)
            else:
                size = sum(Path(each).stat().st_size for each in export_plain(model, asked.out, asked.file_format))
        tables.show_export(asked.out, size)

    def show_predictions(self, records: list[dict[str, Any]]) -> None:
        from sinf.report import artefacts

        artefacts.show_classes(records)


def _named(network: Any, base: Any) -> dict[str, Any]:
    return {"ours": network} if base is None else {"base": base, "ours": network}
