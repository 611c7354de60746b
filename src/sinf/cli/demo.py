"""``sinf demo``: the main job from end to end on the embedded model and images."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sinf.cli import options
from sinf.option import Option
from sinf.storage import files

if TYPE_CHECKING:
    from sinf.models import BaseModel
    from sinf.pipelines.confirm import Confirmed

ASSETS = Path(__file__).parent.parent / "assets"
MODEL, DATA = "vgg13", "cifar100_subset"
LIMIT = 1.0  # points of loss that are asked for
ENGINE, CHOSEN = "onnxruntime", "what was chosen"
BUNDLE_LIMIT = 3.0  # points that the bundle of the browser page may lose
CUT, SUBGRAPH = "features.27", 0.15  # of that bundle, and what a subgraph keeps of the tail's cost
DRAWS = 22_000  # augmented images that its route predictor learns from


def demo(
    context: typer.Context,
    machine: options.Machine,
    out: Annotated[Path, Option("Folder for what is chosen, and the page that shows it.")] = Path("sinf-demo"),
    web: Annotated[bool, Option("Serve a page that runs it in the browser; a bundle that is there is taken.")] = False,
    port: Annotated[int, Option("Port of the page; 0 is any free one.", low=0, high=65535)] = 8000,
    runtime: options.Runtime = None,
) -> None:
    """Find what runs the embedded network fastest within a point of loss, and show it; or serve a bundle as a page."""
    options.write_alone(context, out)
    if web:
        _serve(out, machine, port, runtime)
    else:
        _run(out, machine)


def _serve(out: Path, machine: options.Machine, port: int, runtime: Path | None) -> None:
    from sinf.cli.kinds import Export
    from sinf.cli.semantic import Semantic
    from sinf.engine.torch_engine import SemanticModel
    from sinf.export import page
    from sinf.export.local_server import HOST, server

    runtime_files = page.find_runtime(runtime)
    with server(out / "web", port) as web:  # what may be missing or taken is found before the minutes of a build
        if not (out / "bundle" / "config.json").is_file():
            _build(out / "bundle", machine)
        model = SemanticModel.from_pretrained(out / "bundle")
        asked = Export(out / "web", "web", None, "f32", runtime, None, "test")
        asked.fit(machine.memory, Semantic().need(model), model.preprocessing)
        with options.Steps() as steps:
            gallery = page.find_gallery(model)
            page.export_page(
                model, out / "web", runtime_files, gallery, lambda done, total: steps("exporting", done, total)
            )
        print(f"http://{HOST}:{web.server_port}/ is the page; end it with Ctrl-C", flush=True)
        with suppress(KeyboardInterrupt):
            web.serve_forever()


def _run(out: Path, machine: options.Machine) -> None:
    """Optimise the embedded network, confirm the result on images that chose and tested nothing, and write a report of
    both."""
    from sinf.bundle.plain import PlainModel
    from sinf.cli.room import Need, fit
    from sinf.data.images import load_images
    from sinf.engine.torch_engine import SemanticModel
    from sinf.load import from_pretrained
    from sinf.pipelines.confirm import PARTS, confirm, parts_alone
    from sinf.pipelines.optimize import optimize
    from sinf.pipelines.optimize_config import OptimizeConfig
    from sinf.pipelines.optimize_search import place_of
    from sinf.report.optimized import show_optimized
    from sinf.report.page import write_report
    from sinf.report.terminal import Terminal

    console, start, fast = Terminal(), time.perf_counter(), out / "fast"
    machine.pin()
    base = _base()
    scoring, calibration, test = (load_images(ASSETS / DATA, split) for split in ("scoring", "calibration", "test"))
    fit(machine.memory, "answers", Need.of_model(base).exported(), base.spec.preprocessing, calibration, test)
    console.print(
        f"{MODEL}, width {base.spec.options['width']:g}: {scoring.classes} classes of CIFAR-100; {len(scoring)} images "
        f"make candidates, {len(calibration)} choose and test them. At most {LIMIT:g} point of top-1 may be lost."
    )
    # A network of so few weights is not worth a second method, cuts of many places, two tails, or times of every kind
    # of layer: that takes a user ten minutes.
    config = OptimizeConfig(
        max_loss=LIMIT / 100, engine=ENGINE, precisions=("f32", "int8"), methods=("ranks",), cuts=(0.3,), tails=(0.55,),
        by_time=False, memory=machine.memory,
    )  # fmt: skip
    with options.Steps() as steps:
        place = place_of(config, scoring, base.spec.preprocessing)
        optimized = optimize(base, scoring, calibration, config, fast, progress=steps, place=place)
        model = from_pretrained(fast)
        alone = (
            {PARTS: parts_alone(model, place, optimized.chosen.precision)} if isinstance(model, SemanticModel) else {}
        )
        confirmed = confirm(base, {CHOSEN: fast}, test, place, instead=alone, progress=steps)
    show_optimized(optimized, config, fast)
    console.print(_confirmed(confirmed, len(test)))
    files.write_json({"folder": str(fast), **optimized.to_json()}, out / "found.json")
    write_report(
        model, test, out / "report.html", source=fast, base=base if isinstance(model, PlainModel) else None,
        results=out / "found.json", command="sinf demo",
    )  # fmt: skip
    console.print(f"{out / 'report.html'} shows it. {time.perf_counter() - start:.0f} s in all.")


def _confirmed(confirmed: Confirmed, images: int) -> str:
    """One sentence of what the test images say."""
    from sinf.measure.shares import percent_less, relative, times_less
    from sinf.pipelines.confirm import INT8, PARTS
    from sinf.pipelines.optimize_search import OWN

    loss, delivered = confirmed.losses[CHOSEN], confirmed.times[CHOSEN]
    shares = {name: relative(delivered, time) for name, time in confirmed.times.items()}
    times, less = times_less(shares[OWN])
    parts = ""
    if PARTS in shares:  # of one network there are none
        lost = f"{confirmed.losses[PARTS].points:.2f} points lost"
        parts = f", {percent_less(shares[PARTS])} than {PARTS} alone ({lost})"
    return (
        f"On {images} test images, which chose nothing: {loss.points:.2f} points lost ({loss.low:.1f} .. "
        f"{loss.high:.1f}), {times} {less} than the model as loaded "
        f"({confirmed.times[OWN].mean:.2f} -> {delivered.mean:.2f} ms), {percent_less(1 - delivered.time_saved)} than "
        f"the base model in the same engine, {percent_less(shares[INT8])} than that in int8{parts}."
    )


def _base() -> BaseModel:
    from sinf.models import load_model

    return load_model(MODEL, weights=ASSETS / f"{MODEL}_cifar100.safetensors")


def _build(folder: Path, machine: options.Machine) -> None:
    """The bundle that the browser page shows. Neither extractor nor full tail is made smaller for all classes: that
    would spend the limit, and routing so small a network costs about what it saves even with all of it."""
    from sinf.data.clusters import from_column
    from sinf.data.images import load_images
    from sinf.graph.cost import WEIGHT_COST
    from sinf.pipelines.build import BuildConfig, Images, build
    from sinf.routing.predictor import RouterConfig

    machine.pin()
    scoring, calibration = (load_images(ASSETS / DATA, split) for split in ("scoring", "calibration"))
    config = BuildConfig(
        cut=CUT,
        macs=SUBGRAPH,
        weight_cost=WEIGHT_COST,
        max_loss=BUNDLE_LIMIT / 100,
        keep_anyway=True,  # it is there to be looked at
        route_draws=DRAWS,
        router=RouterConfig(channels=128, hidden=128, kernel=1),  # in so small a network a larger one costs its gain
        memory=machine.memory,
    )
    with options.Steps() as steps:
        build(
            _base(), Images(scoring, scoring, calibration), from_column(scoring), config, folder, progress=steps,
            notice=options.announce,
        )  # fmt: skip
