"""Accuracy, MACs, memory and size of a bundle."""

from __future__ import annotations

import json
import mmap
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from sinf.data.images import LabelledImages
from sinf.engine.torch_engine import SemanticModel
from sinf.measure.accuracy import (
    Costs,
    evaluate,
    facts,
    first_images,
    folder_bytes,
    memory_bytes,
    observe,
)
from sinf.routing.grouping import TailTimes
from sinf.routing.router import part_name


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells it in /proc")
def test_memory_of_this_process() -> None:
    now, peak = memory_bytes(), memory_bytes("VmHWM")
    assert now is not None
    assert peak is not None
    assert 2**24 < now <= peak
    with mmap.mmap(-1, 2**26) as held:  # pages of its own, where an array may get some that the process has already
        held.write(bytes(2**26))
        assert memory_bytes() >= now + 2**25
    assert memory_bytes("VmNonsense") is None


def test_folder_bytes_counts_all_files_below(tmp_path: Path) -> None:
    assert folder_bytes(tmp_path) == 0
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "config.json").write_bytes(bytes(7))
    (tmp_path / "a" / "b" / "tensors").write_bytes(bytes(100))
    assert folder_bytes(tmp_path) == folder_bytes(str(tmp_path)) == 107


def test_facts_name_the_machine_and_the_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(11))
    known = facts(tmp_path, 0.5)
    assert (known["bundle_bytes"], known["load_seconds"]) == (11, 0.5)
    assert known["file_bytes"] == {"file": 11}
    assert torch.__version__ in known["versions"]
    assert known["processor"]
    assert int(known["cores"]) >= 1
    assert facts(None, 0.5)["bundle_bytes"] is None
    assert facts(tmp_path / "nowhere", 0.5)["bundle_bytes"] is None
    json.dumps(known)


# ---- accuracy and costs of a bundle


@pytest.mark.parametrize("threshold", [0.0, 0.4, 2.0])
def test_evaluation_says_what_observation_says(built: Path, tiny_images: LabelledImages, threshold: float) -> None:
    model = SemanticModel.from_pretrained(built)
    model.threshold = threshold
    images = tiny_images.select(list(range(60)))
    found, seen, costs = evaluate(model, images, batch=17), observe(model, images), Costs.of(model)
    calibration = seen.calibration(model.bundle.deferral, model.bundle.threshold.early)
    falls = ~calibration.routed(threshold)
    assert found.images == 60
    assert found.fallback == pytest.approx(float(falls.float().mean()))
    assert found.loss == pytest.approx(100 * (found.base_top1 - found.top1))
    assert found.loss == pytest.approx(100 * float(calibration.losses(threshold).mean()), abs=1e-4)
    assert found.base_top1 == pytest.approx(float(seen.base_right.float().mean()))
    assert found.macs == pytest.approx(seen.mean_cost(costs.macs, calibration, threshold))
    assert found.macs_saved == pytest.approx(1 - found.macs / costs.base_macs)
    assert sum(report.images for report in found.clusters) == 60
    for field in ("top1", "base_top1", "within", "base_within", "route_accuracy", "fallback"):
        mean = sum(report.images * getattr(report, field) for report in found.clusters) / 60
        assert mean == pytest.approx(getattr(found, field))
    assert found.base_within >= found.base_top1
    assert found.base_top5 >= found.base_top1
    if threshold == 2:
        expected = costs.macs["extractor"] + costs.macs["router"] + costs.macs["full_tail"]
        assert (found.fallback, found.macs) == (1, expected)


def test_evaluation_does_not_depend_on_the_batch(built: Path, tiny_images: LabelledImages) -> None:
    """Also where tails were timed, and a batch sends small groups to the full tail."""
    images = tiny_images.select(list(range(40)))
    plain, timed = SemanticModel.from_pretrained(built), SemanticModel.from_pretrained(built)
    # One image's subgraph costs more than the full tail, a fourth one nothing.
    timed.feature_router.times = TailTimes("torch", "f32", 1, "", (1, 4), (3.0, 3.0), (1.0, 4.0), 0.0)
    plain.threshold = timed.threshold = 0.0
    assert int(timed.route(first_images(images, timed, 1)).subgraph_ran.sum()) == 0
    found = [evaluate(model, images, batch=batch) for model, batch in product((plain, timed), (1, 17))]
    assert found[0].subgraph_ran == 1
    for other in found[1:]:
        assert other == found[0]


def test_costs_are_those_of_the_networks_that_run(built: Path) -> None:
    model = SemanticModel.from_pretrained(built)
    costs = Costs.of(model)
    clusters = [part_name(i) for i in range(3)]
    assert set(costs.macs) == set(costs.parameters) == {"extractor", "router", "full_tail", *clusters}
    assert costs.parameters["router"] == sum(p.numel() for p in model.bundle.router.parameters())
    assert costs.base_macs == model.network.macs.total() > costs.macs["extractor"] + costs.macs["full_tail"]
    assert all(costs.macs[name] < costs.macs["full_tail"] for name in clusters)
    from torch.utils.flop_counter import FlopCounterMode

    features = torch.randn(1, *model.network.feature_shape(model.bundle.parts["extractor"]))
    for name, network in (("router", model.bundle.router), (clusters[1], model.tails.get(clusters[1]))):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(features)
        assert counter.get_total_flops() == 2 * costs.macs[name]


def test_first_images_are_normalised_as_the_model_wants(built: Path, tiny_images: LabelledImages) -> None:
    model = SemanticModel.from_pretrained(built)
    first = first_images(tiny_images, model, 3)
    assert torch.equal(first, next(iter(tiny_images.batches(model.bundle.spec.preprocessing, 3)))[0])
