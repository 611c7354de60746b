"""Which means is the fastest where: one smaller network, cascades, semantic clusters given and found, on CIFAR-100.

    python benchmarks/head_to_head.py vgg16 WEIGHTS CIFAR100 --work runs/head_to_head

Same checkpoint, machinery, engine and run. Every way makes candidates from train images, as optimize() does when it is
asked for a quarter point, and again for a whole one: the given clusters are the data set's superclasses, the found ones
those that `sinf clusters` finds on train images. All are opened with thresholds for each of the five limits. For each
limit a third of test[:50%] chooses and the rest tests, each way for itself. What was chosen is reported once, on
test[50%:]: the loss with its interval over images, and the time, all ways and limits in one run, the base model in the
engine's f32 in between, batches of one, one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from candidates import say
from table import Table, when_idle

from sinf import BaseModel, LabelledImages, load_images, load_model
from sinf.data.clusters import Clusters, from_column
from sinf.errors import SinfError
from sinf.measure.delivery import ExpectedLoss
from sinf.measure.timed_images import timed_images
from sinf.measure.timing import interleaved
from sinf.pipelines.candidates import Candidate, Place, Static
from sinf.pipelines.optimize import OptimizeConfig, parted
from sinf.pipelines.optimize_choice import Row
from sinf.pipelines.optimize_config import CUTS
from sinf.pipelines.optimize_search import BASE, Search, place_of
from sinf.routing.clustering import find_clusters

#: Each way with the kind of its candidates.
WAYS = {"static": "static", "cascade": "cascade", "semantic, given": "semantic", "semantic, found": "semantic"}
LIMITS = (0.1, 0.25, 0.5, 1.0, 2.0)  # points
MADE_FOR = (0.25, 1.0)  # points: networks are made for these, and tried at all limits
CHOOSING = 100  # pairs that choose among the candidates
FOUND_ON = "train[:10000]"
COLUMNS = (
    "model", "dataset", "engine", "precision", "device", "batch", "threads", "pairs", "way", "asked", "chosen",
    "candidates", "selection_loss", "calibration_loss", "base_top1", "loss", "loss_low", "loss_high", "differ",
    "images", "time_saved", "time_saved_low", "time_saved_high", "base_ms", "ms", "load", "seed", "date", "versions",
)  # fmt: skip
IDENTITY = ("engine", "precision", "way", "asked")
Chosen = tuple[Row, Candidate, int]


def main(
    name: str,
    weights: Path,
    data: Path,
    work: Annotated[Path, typer.Option(help="Folder for steps; may be used again.")],
    engine: str = "onnxruntime",
    precision: str = "f32",
    pairs: int = 300,
    until: Annotated[str, typer.Option(help="networks (are made, beside other work), or all.")] = "all",
    keep: Annotated[bool, typer.Option(help="Leave out engines that are in the file.")] = False,
    loaded: Annotated[bool, typer.Option(help="Write rows even if other processes ran meanwhile.")] = False,
) -> None:
    table = Table(
        f"head_to_head_{name}_cpu.csv", COLUMNS, IDENTITY, keep=keep, loaded=loaded, model=name, dataset="cifar100",
        engine=engine, precision=precision, batch=1, threads=1, pairs=pairs, seed=0,
    )  # fmt: skip
    if table.has(engine=engine, precision=precision):
        return
    base = load_model(name, weights=weights)
    train, unseen = load_images(data, "train"), load_images(data, "test[:50%]")
    asked = OptimizeConfig(engine=engine, precisions=(precision,), pairs=CHOOSING)
    found = find_clusters(base, load_images(data, FOUND_ON), progress=say).clusters
    clusters: dict[str, Clusters | None] = {"semantic, given": from_column(train, unseen), "semantic, found": found}
    place = place_of(asked, train, base.spec.preprocessing)
    chosen: dict[tuple[float, str], Chosen | None] = {}
    for way in WAYS:
        config = replace(asked, clusters=clusters.get(way), cuts=CUTS if way == "cascade" else ())
        chosen |= {(limit, way): won for limit, won in best(base, train, unseen, config, WAYS[way], place, work)}
        if until == "networks":
            continue
        for limit in LIMITS:
            won = chosen[limit, way]
            print(f"{limit:g} points, {way}: {'nothing' if won is None else won[0].name}", flush=True)
    if until != "networks":
        report(base, load_images(data, "test[50%:]"), place, chosen, table)
        table.forget_older(engine=engine, precision=precision)


def best(
    base: BaseModel, train: LabelledImages, unseen: LabelledImages, config: OptimizeConfig, kind: str, place: Place,
    work: Path,
) -> Iterator[tuple[float, Chosen | None]]:  # fmt: skip
    """By limit in points the fastest candidate of a kind that is accepted, and of how many; None where none is."""
    candidates: dict[float, dict[tuple[str, str], Candidate]] = {limit: {} for limit in LIMITS}
    searches = {}
    for points in MADE_FOR:
        # What is open stays open, by its name: bundles of other clusters or limits would share it.
        own = replace(place, opened={})
        search = Search(
            base, train, *parted(unseen, config.selection, 0), replace(config, max_loss=points / 100), work, say, own
        )
        searches[points] = search
        for design in search.designs():
            if kind != "static" and isinstance(design, Static):
                continue
            for limit in LIMITS:
                try:
                    made = design.open(own, config.precisions[0], search.selection, limit / 100, lambda *_: None)
                except SinfError as reason:
                    print(f"{design.name}: {reason}", flush=True)
                    break
                candidates[limit] |= {
                    (f"{each.name}, made for {points:g}", each.precision): each for each in made if each.kind == kind
                }
    for limit in LIMITS:
        yield limit, fastest(searches[MADE_FOR[0]], candidates[limit], limit)


def fastest(search: Search, candidates: dict[tuple[str, str], Candidate], limit: float) -> Chosen | None:
    named = {key: replace(each, name=key[0]) for key, each in candidates.items()}
    if not named:
        return None
    search.config = replace(search.config, max_loss=limit / 100)
    rows, _ = search.measure(list(named.values()))
    accepted = [row for row in search.test(rows, named) if row.accepted]
    if not accepted:
        return None
    row = min(accepted, key=lambda row: row.share)
    return row, named[row.name, row.precision], len(named)


def report(
    base: BaseModel, images: LabelledImages, place: Place, chosen: dict[tuple[float, str], Chosen | None], table: Table
) -> None:
    """Loss and time of all that was chosen, on images that chose and tested nothing."""
    reference, answer = Static(base, BASE).run_in(place, table.common["precision"])
    expected = answer(images, lambda done, total: None)
    made = {str(key): each[1] for key, each in chosen.items() if each is not None}
    losses = {
        key: ExpectedLoss.of(expected, each.answers(images, lambda done, total: None), images.labels)
        for key, each in made.items()
    }
    x = timed_images(images, base.module, base.spec.preprocessing, batch=1, pairs=table.common["pairs"])
    runs = {key: each.run for key, each in made.items()}
    times = when_idle(
        lambda: interleaved(reference, runs, x, batch=1, pairs=table.common["pairs"], threads=place.threads),
        lambda found: next(iter(found.values())).load,
    )
    for (limit, way), each in chosen.items():
        if each is None:
            table.add(way=way, asked=limit, chosen="nothing keeps it")
            continue
        row, key = each[0], str((limit, way))
        loss, time = losses[key], times[key]
        table.add(
            way=way, asked=limit, chosen=row.name, candidates=each[2], selection_loss=row.loss.points,
            calibration_loss=None if row.promise is None else 100 * row.promise.loss,
            base_top1=float((expected == images.labels).double().mean()), loss=loss.points, loss_low=loss.low,
            loss_high=loss.high, differ=loss.disagreement, images=loss.images, time_saved=time.time_saved,
            time_saved_low=time.low, time_saved_high=time.high, base_ms=time.base_mean, ms=time.mean, load=time.load,
        )  # fmt: skip
        print(f"{key}: {row.name}: {loss.points:.2f} points, {time.time_saved:.3f} saved, load {time.load}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
