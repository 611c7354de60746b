"""``sinf demo``: the main job from end to end on the embedded model and images."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from sinf.cli import options

MODEL = "vgg13"


def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for bundle, results and figure.")] = Path("sinf-demo"),
    threads: options.Threads = None,
    web: Annotated[
        bool, typer.Option("--web", help="Serve a page that runs it in the browser; a bundle that is there is taken.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0 is any free one.")] = 8000,
    runtime: Annotated[
        Path | None, typer.Option(help="Folder of the npm package onnxruntime-web [default: in node_modules here].")
    ] = None,
) -> None:
    """Build, evaluate and bench a bundle of the embedded network, and draw the result; or serve it as a page."""
    options.write_alone(context, out)
    if web:
        _serve(out, threads, port, runtime)
    else:
        _run(out, threads)


def _serve(out: Path, threads: int | None, port: int, runtime: Path | None) -> None:
    from sinf.engine.torch_engine import SemanticModel
    from sinf.export import page
    from sinf.export.local_server import HOST, server

    files = page.find_runtime(runtime)
    with server(out / "web", port) as web:  # what may be missing or taken is found before the minutes of a build
        if not (out / "bundle" / "config.json").is_file():
            _run(out, threads)
        model = SemanticModel.from_pretrained(out / "bundle")
        with options.Steps() as steps:
            gallery = page.find_gallery(model)
            page.export_page(model, out / "web", files, gallery, lambda done, total: steps("exporting", done, total))
        print(f"http://{HOST}:{web.server_port}/ is the page; end it with Ctrl-C", flush=True)
        with suppress(KeyboardInterrupt):
            web.serve_forever()


def _run(out: Path, threads: int | None) -> None:
    from rich.console import Console

    from sinf import measure
    from sinf.clusters import from_column
    from sinf.data import load_images
    from sinf.engine.torch_engine import SemanticModel
    from sinf.models import load_model
    from sinf.pipeline import WEIGHT_COST, BuildConfig, Images, build
    from sinf.report import figure, tables
    from sinf.router import RouterConfig
    from sinf.subgraph.select import Budget
    from sinf.timing import latency

    figure.require()  # a missing package should not cost the minutes before the figure
    console = Console()
    start = time.perf_counter()
    options.set_threads(threads)
    assets = Path(__file__).parent.parent / "assets"
    weights, data = assets / f"{MODEL}_cifar100.safetensors", assets / "cifar100_subset"
    base = load_model(MODEL, weights=weights)
    scoring, calibration, test = (load_images(data, split) for split in ("scoring", "calibration", "test"))
    clusters = from_column(scoring)
    console.print(
        f"{MODEL}, width {base.spec.options['width']:g}: {scoring.classes} classes of CIFAR-100 in {len(clusters)} "
        f"semantic clusters; {len(scoring)} scoring, {len(calibration)} calibration and {len(test)} test images"
    )
    config = BuildConfig(
        cut="features.27",
        subgraph=Budget(0.1, WEIGHT_COST),
        common=0.75,
        max_loss=0.03,
        route_draws=22_000,
        router=RouterConfig(channels=128, hidden=128, kernel=1),  # in so small a network a larger one costs its gain
    )
    with options.Steps() as steps:
        build(base, Images(scoring, scoring, calibration), clusters, config, out / "bundle", progress=steps)
        begin = time.perf_counter()
        model = SemanticModel.from_pretrained(out / "bundle")
        loaded = time.perf_counter() - begin
        result = measure.evaluate(model, test, progress=lambda done, total: steps("evaluating", done, total))
        x = measure.first_images(test, model, len(test))
        times = latency(
            model.engine.base, model, x, pairs=300, progress=lambda done, total: steps("measuring time", done, total)
        )
        points = figure.curve(model, test, progress=lambda done, total: steps("trade-off", done, total))
    tables.show_evaluation(result)
    facts = measure.facts(out / "bundle", loaded)
    tables.show_bench([times], facts)
    picture = figure.draw(model, test, result, times, points, out / "result.png")
    options.write_json(out / "result.json", {"evaluation": result.to_json(), "latency": times.to_json(), **facts})
    console.print(f"{picture} shows it; {out / 'bundle'} is the bundle. {time.perf_counter() - start:.0f} s in all.")
