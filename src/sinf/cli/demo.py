"""``sinf demo``: the main job from end to end on the embedded model and images."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from sinf.cli import options
from sinf.option import Option
from sinf.storage import files

if TYPE_CHECKING:
    from sinf.data.images import LabelledImages
    from sinf.engine.torch_engine import SemanticModel
    from sinf.models import BaseModel
    from sinf.report.candidates import Comparison

ASSETS = Path(__file__).parent.parent / "assets"
MODEL = "vgg13"
LIMIT = 3.0  # points of loss that are asked for
BUDGETS = (0.55, 0.4)  # of a network in low rank: fractions of the base model's cost
CUT, SUBGRAPH = "features.27", 0.15  # of the bundle, and what a subgraph keeps of the tail's cost
DRAWS = 22_000  # augmented images that its route predictor learns from
ROUNDS = 300  # of measurements of time
BUNDLE, PARTS = "the bundle", "its parts, not routed"


def demo(
    context: typer.Context,
    out: Annotated[Path, Option("Folder for bundle, results and figure.")] = Path("sinf-demo"),
    threads: options.Threads = None,
    web: Annotated[bool, Option("Serve a page that runs it in the browser; a bundle that is there is taken.")] = False,
    port: Annotated[int, Option("Of the page; 0 is any free one.", low=0, high=65535)] = 8000,
    runtime: options.Runtime = None,
) -> None:
    """Make the embedded network smaller in several ways, compare them, and draw the result; or serve it as a page."""
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
    """Compare networks in low rank, a bundle, and the bundle's parts without routing. The fastest within the limit on
    the calibration images is chosen; a bundle that is not faster there than its own parts is no result. The test images
    choose nothing."""
    from rich.console import Console

    from sinf.data.images import load_images
    from sinf.engine.torch_engine import SemanticModel
    from sinf.measure.accuracy import machine
    from sinf.models import load_model
    from sinf.pipelines import comparison as pruned
    from sinf.report import candidates, figure, tables

    figure.require()  # a missing package should not cost the minutes before the figure
    pruned.check_target(out / "low-rank")
    console = Console()
    start = time.perf_counter()
    options.set_threads(threads)
    data = ASSETS / "cifar100_subset"
    base = load_model(MODEL, weights=ASSETS / f"{MODEL}_cifar100.safetensors")
    scoring, calibration, test = (load_images(data, split) for split in ("scoring", "calibration", "test"))
    console.print(
        f"{MODEL}, width {base.spec.options['width']:g}: {scoring.classes} classes of CIFAR-100; {len(scoring)} images "
        f"score, {len(calibration)} calibrate, {len(test)} test. At most {LIMIT:g} points of top-1 may be lost."
    )
    routing = None
    with options.Steps() as steps:
        small = {f"low rank, {100 * budget:g} %": _prune(base, scoring, budget, steps) for budget in BUDGETS}
        networks = {"base model": base, **small}
        _build(base, scoring, calibration, out / "bundle", steps)
        model = SemanticModel.from_pretrained(out / "bundle")
        before = _compare(networks, model, calibration, "calibration", steps)
        pays = candidates.routing_pays(before, BUNDLE, PARTS, LIMIT)
        after = _compare(networks, model if pays else None, test, "test", steps)
        if pays:
            points = figure.curve(model, test, after.rows[0], lambda done, total: steps("trade-off", done, total))
            routing = figure.Routing(model, points, test)
    shown = before if pays else before.without(BUNDLE, PARTS)
    chosen = shown.fastest(LIMIT)
    if chosen in small:
        made_by = {"method": "low rank", "made by": "sinf demo", "chosen as": chosen}
        pruned.save(small[chosen], out / "low-rank", scoring.class_names, made_by=made_by)
    record = {"limit": LIMIT, "chosen": chosen, "routing pays": pays, "calibration": before.to_json()}
    files.write_json(record | {"test": after.to_json(), **machine()}, out / "result.json")
    picture = figure.draw(after, chosen, len(test), out / "result.png", routing)
    tables.show_comparison(after, chosen, len(test))
    console.print(candidates.describe_choice(shown, after, LIMIT))
    console.print(f"On the calibration images: {candidates.describe_routing(before, BUNDLE, PARTS, LIMIT)}")
    where = f"; {out / 'low-rank'} is the chosen network" if chosen in small else ""
    seconds = time.perf_counter() - start
    console.print(f"{picture} shows it{where}; {out / 'bundle'} is the bundle. {seconds:.0f} s in all.")


def _prune(base: BaseModel, scoring: LabelledImages, budget: float, steps: options.Steps) -> BaseModel:
    """The base model in low rank, with a fraction of its cost."""
    from sinf.compress.select import Budget
    from sinf.graph.cost import WEIGHT_COST
    from sinf.pipelines.prune import PruneConfig, prune

    def progress(step: str, done: int, total: int) -> None:
        steps(f"{step}, {100 * budget:g} %", done, total)

    with TemporaryDirectory() as work:
        config = PruneConfig(Budget(budget, WEIGHT_COST), "ranks", limits=None)
        return prune(base, scoring, config, work, progress=progress)


def _build(
    base: BaseModel, scoring: LabelledImages, calibration: LabelledImages, folder: Path, steps: options.Steps
) -> None:
    """A bundle that routes the base model. Neither extractor nor full tail is made smaller for all classes: that would
    spend the limit, and routing so small a network costs about what it saves even with all of it."""
    from sinf.compress.select import Budget
    from sinf.data.clusters import from_column
    from sinf.graph.cost import WEIGHT_COST
    from sinf.pipelines.build import BuildConfig, Images, build
    from sinf.routing.predictor import RouterConfig

    config = BuildConfig(
        cut=CUT,
        subgraph=Budget(SUBGRAPH, WEIGHT_COST),
        max_loss=LIMIT / 100,
        keep_anyway=True,  # it is compared with the others
        route_draws=DRAWS,
        router=RouterConfig(channels=128, hidden=128, kernel=1),  # in so small a network a larger one costs its gain
    )
    build(base, Images(scoring, scoring, calibration), from_column(scoring), config, folder, progress=steps)


def _compare(
    networks: dict[str, BaseModel], model: SemanticModel | None, images: LabelledImages, name: str, steps: options.Steps
) -> Comparison:
    """Networks, and, if there is a bundle, its parts without routing and the bundle."""
    from sinf.graph.prepare import prepare
    from sinf.graph.trace import trace
    from sinf.measure.accuracy import Costs, evaluate
    from sinf.measure.plain import Size
    from sinf.report.candidates import Candidate, compare
    from sinf.routing.router import FALLBACK

    def progress(step: str) -> Callable[[int, int], None]:
        return lambda done, total: steps(f"{step}, {name}", done, total)

    preprocessing = next(iter(networks.values())).spec.preprocessing
    models = [
        Candidate(name, prepare(trace(network.module, preprocessing)), Size.of(network).macs)
        for name, network in networks.items()
    ]
    if model is not None:
        macs = Costs.of(model).macs
        routed = evaluate(model, images, progress=progress("evaluating")).macs
        parts = Candidate(PARTS, lambda x: model.run_fallback(model.extractor(x)), macs["extractor"] + macs[FALLBACK])
        models += [parts, Candidate(BUNDLE, model, routed)]
    return compare(models, images, preprocessing, rounds=ROUNDS, progress=progress("measuring time"))
