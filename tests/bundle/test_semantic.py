"""A built bundle on disk and in memory: round trip, refusals, memory budget, and the semantics of routing."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sealed import rewrite, tiny_bundle
from sinf.bundle import semantic
from sinf.bundle.semantic import Bundle
from sinf.engine.parts import DeferralHead
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import BundleError, ConfigError, DataError
from sinf.graph.network import Part
from sinf.measure.accuracy import Costs, evaluate, observe
from sinf.pipelines.calibration import CALL_COST, tail_costs
from sinf.routing.deferral import Deferral
from sinf.routing.predictor import make_predictor
from sinf.routing.router import FULL_TAIL, part_name
from sinf.routing.threshold import Threshold
from tiny import CLASSES


def images_of(model: SemanticModel, count: int = 12) -> torch.Tensor:
    return torch.randn(count, *model.bundle.spec.preprocessing.size, generator=torch.Generator().manual_seed(0))


def test_round_trip_gives_the_same_answers(built: Path, tmp_path: Path) -> None:
    model = SemanticModel.from_pretrained(built)
    x = images_of(model)
    model.save_pretrained(tmp_path / "copy")
    again = SemanticModel.from_pretrained(tmp_path / "copy")
    assert torch.equal(model(x), again(x))
    assert (tmp_path / "copy" / "config.json").read_bytes() == (built / "config.json").read_bytes()


@pytest.mark.parametrize("threshold", [0.0, 0.4, 2.0])
def test_a_batch_answers_as_its_images_one_by_one_and_keeps_the_order(built: Path, threshold: float) -> None:
    model = SemanticModel.from_pretrained(built)
    model.threshold = threshold
    x = images_of(model)
    together = model.route(x)
    alone = [model.route(one[None]) for one in x]
    torch.testing.assert_close(together.logits, torch.cat([r.logits for r in alone]), rtol=1e-4, atol=1e-4)
    assert together.route.tolist() == [int(r.route) for r in alone]
    assert together.fell_back.tolist() == [bool(r.fell_back) for r in alone]
    assert torch.equal(together.fell_back, together.confidence < threshold)


def test_routed_logits_are_a_distribution_over_all_classes_led_by_the_cluster(built: Path) -> None:
    model = SemanticModel.from_pretrained(built)
    model.threshold = 0.0
    routed = model.route(images_of(model))
    torch.testing.assert_close(routed.logits.exp().sum(1), torch.ones(12))
    inside = torch.zeros(12)
    for i, cluster in enumerate(routed.route.tolist()):
        inside[i] = routed.logits[i, list(model.bundle.clusters.members[cluster])].exp().sum()
    log_clusters = model.engine.front.router(model.extractor(images_of(model))).log_softmax(1)
    torch.testing.assert_close(inside, log_clusters.amax(1).exp())


def with_deferral(built: Path, deferral: Deferral, early: float, threshold: float) -> SemanticModel:
    bundle = Bundle.load(built)
    thresholds = replace(bundle.threshold, early=early, value=threshold)
    return SemanticModel(replace(bundle, deferral=deferral, threshold=thresholds))


def test_an_answer_that_is_not_accepted_falls_back_after_its_subgraph(built: Path) -> None:
    model = with_deferral(built, Deferral(-9.0, 0.0), 0.0, 0.5)
    x = images_of(model)
    routed = model.route(x)
    assert routed.subgraph_ran.all()
    assert routed.fell_back.all()
    torch.testing.assert_close(routed.logits, model.run_full_tail(model.extractor(x)))


def test_an_input_that_stops_early_runs_no_subgraph(built: Path) -> None:
    model = with_deferral(built, Deferral(9.0, 0.0), 1.0, 1.0)
    made = model.tails.made
    routed = model.route(images_of(model))
    assert not routed.subgraph_ran.any()
    assert routed.fell_back.all()
    assert model.tails.made - made == 1  # the full tail
    model.threshold = 0.0
    assert model.route(images_of(model)).subgraph_ran.all()


def test_a_mixed_batch_takes_every_answer_from_where_it_belongs(built: Path) -> None:
    """Some stop early, some are answered by subgraphs, some fall back after theirs; one by one it is the same."""
    plain = SemanticModel.from_pretrained(built)
    x = images_of(plain, 60)
    features = plain.extractor(x)
    routes = plain.route_all(features, torch.zeros(60, dtype=torch.long))
    early = float(routes.log_route.exp().quantile(0.3))
    middle = float(routes.energy.median())
    model = with_deferral(built, Deferral(-middle, 0.0, 1.0), early, 0.5)
    routed = model.route(x)
    routed_right = routed.subgraph_ran & ~routed.fell_back
    for some in (~routed.subgraph_ran, routed.subgraph_ran & routed.fell_back, routed_right):
        assert 0 < int(some.sum()) < 60
    torch.testing.assert_close(routed.logits[routed.fell_back], model.run_full_tail(features)[routed.fell_back])
    model.threshold = 0.0
    torch.testing.assert_close(routed.logits[routed_right], model.route(x).logits[routed_right])
    model.threshold = 0.5
    for i, one in enumerate(x):
        alone = model.route(one[None])
        assert bool(alone.subgraph_ran) == bool(routed.subgraph_ran[i])
        assert bool(alone.fell_back) == bool(routed.fell_back[i])
        torch.testing.assert_close(alone.logits[0], routed.logits[i], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(alone.confidence[0], routed.confidence[i], rtol=1e-4, atol=1e-4)


def test_an_unpruned_full_tail_is_the_base_model(built_whole: Path) -> None:
    model = SemanticModel.from_pretrained(built_whole)
    model.threshold = 2.0
    x = images_of(model)
    torch.testing.assert_close(model(x), model.network.graph(x))


def test_heads_have_the_classes_of_their_cluster_only(built: Path) -> None:
    model = SemanticModel.from_pretrained(built)
    features = model.extractor(images_of(model))
    for cluster, members in enumerate(model.bundle.clusters.members):
        assert model.run_subgraph(cluster, features).shape == (12, len(members))


def test_subgraphs_are_smaller_and_counted(built: Path) -> None:
    model = SemanticModel.from_pretrained(built)
    costs = Costs.of(model)
    for cluster in range(len(model.bundle.clusters)):
        assert costs.macs[part_name(cluster)] < model.network.tail_macs.total()
    assert costs.macs["extractor"] <= model.network.extractor_macs.total()


def test_the_memory_budget_forgets_the_least_recently_used(built: Path) -> None:
    free = SemanticModel.from_pretrained(built)
    x = images_of(free, 40)
    free.threshold = 0.0
    expected = free(x)
    features = free.extractor(x[:1])
    for cluster in range(len(free.bundle.clusters)):
        free.run_subgraph(cluster, features)
    sizes = free.tails.bytes
    tight = SemanticModel.from_pretrained(built, memory_budget=sizes // 2)
    tight.threshold = 0.0
    torch.testing.assert_close(tight(x), expected)
    for _ in range(2):
        for cluster in range(len(free.bundle.clusters)):
            tight.run_subgraph(cluster, features)
            assert tight.tails.bytes <= sizes // 2
    assert tight.tails.made > len(free.bundle.clusters)
    none = SemanticModel.from_pretrained(built, memory_budget=0)
    none.threshold = 0.0
    torch.testing.assert_close(none(x), expected)


def test_under_a_budget_the_base_models_weights_stay_where_they_are(built_whole: Path) -> None:
    model = SemanticModel.from_pretrained(built_whole, memory_budget=0)
    model(images_of(model, 3))
    mapped = {t.data_ptr() for t in model.bundle.base_state.values()}
    assert {p.data_ptr() for p in model.network.graph.parameters()} <= mapped
    assert {p.data_ptr() for p in model.extractor.parameters()} <= mapped


@pytest.mark.parametrize("name", ["model.safetensors", "subgraphs.safetensors", "router.safetensors", "README.md"])
@pytest.mark.parametrize("harm", ["truncate", "edit", "remove"])
def test_a_damaged_file_is_refused_by_name(built: Path, tmp_path: Path, name: str, harm: str) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(built, folder)
    data = bytearray((folder / name).read_bytes())
    if harm == "truncate":
        (folder / name).write_bytes(data[:-7])
    elif harm == "edit":
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
    else:
        (folder / name).unlink()
    with pytest.raises(BundleError, match=name):
        SemanticModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sinf_format": 99}, "99.*install the version"),
        ({"sinf_format": 7}, "7.*build the bundle again with this version"),
        ({"sinf_format": "8"}, "format 8"),
        ({"cut": "nowhere"}, "nowhere"),
        ({"clusters": [{"name": "a", "classes": [0]}, {"name": "b", "classes": [0, 1]}]}, "one cluster"),
        ({"clusters": {"a": [0], "b": [1]}}, "clusters"),
        ({"model": None}, "model"),
        ({"sha256": None}, "sha256"),
        ({"sha256": {}}, "all its files"),
        ({"router": {"side": -1}}, "router"),
    ],
)
def test_a_contradictory_config_is_refused(built: Path, tmp_path: Path, change: dict, says: str) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(built, folder)
    rewrite(folder / "config.json", change)
    with pytest.raises(BundleError, match=says):
        SemanticModel.from_pretrained(folder)


def test_foreign_folders_and_broken_json_are_refused(built: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"config\.json"):
        Bundle.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(BundleError, match="written by sinf"):
        Bundle.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BundleError, match="JSON"):
        Bundle.load(tmp_path)


def test_code_of_ones_own_runs_only_when_allowed(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(built, folder)
    model = json.loads((folder / "config.json").read_text())["model"]
    rewrite(folder / "config.json", {"model": model | {"name": "os:getcwd"}})
    for load in (SemanticModel.from_pretrained, Bundle.load):
        with pytest.raises(BundleError, match="allow_factory"):
            load(folder)


def test_a_save_that_fails_leaves_what_was_there(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(built, folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    bundle = Bundle.load(built)

    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(BundleError, match="No space left"):
        replace(bundle, provenance={"new": "yes"}).save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_only_a_bundle_is_ever_replaced(built: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="only a bundle"):
        Bundle.load(built).save(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_unwritable_place_is_a_clear_error(built: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot be written"):
        Bundle.load(built).save(tmp_path / "file" / "bundle")


def test_bad_inputs_are_refused(built: Path) -> None:
    model = SemanticModel.from_pretrained(built)
    channels, height, width = model.bundle.spec.preprocessing.size
    nan = images_of(model, 2)
    nan[1, 0, 3, 3] = float("nan")
    with pytest.raises(DataError, match="NaN"):
        model(nan)
    with pytest.raises(DataError, match="shape"):
        model(torch.zeros(1, channels + 1, height, width))
    with pytest.raises(DataError, match="float"):
        model(torch.zeros(1, channels, height, width, dtype=torch.uint8))
    for threshold in (-0.1, 2.5, float("nan")):
        with pytest.raises(ConfigError, match="threshold"):
            model.threshold = threshold
    with pytest.raises(ConfigError, match="memory_budget"):
        SemanticModel.from_pretrained(built, memory_budget=-1)


def test_observe_and_evaluate_agree(built: Path, tiny_images) -> None:
    model = SemanticModel.from_pretrained(built)
    model.threshold = 0.5
    seen, result = observe(model, tiny_images), evaluate(model, tiny_images)
    calibration = seen.calibration(model.bundle.deferral, model.bundle.threshold.early)
    assert result.loss == pytest.approx(100 * float(calibration.losses(0.5).mean()))
    assert result.macs == pytest.approx(seen.mean_cost(Costs.of(model).macs, calibration, 0.5), rel=1e-6)
    assert result.fallback == pytest.approx(1 - float(calibration.routed(0.5).float().mean()))
    assert result.subgraph_ran == pytest.approx(float(calibration.subgraph_ran(0.5).float().mean()))
    assert sum(c.images for c in result.clusters) == result.images


def test_every_part_is_in_the_file_and_base_weights_are_there_once(built: Path) -> None:
    model = SemanticModel.from_pretrained(built)
    assert set(model.bundle.parts) == {
        "extractor",
        FULL_TAIL,
        *(part_name(c) for c in range(len(model.bundle.clusters))),
    }
    size = sum(t.numel() * t.element_size() for t in model.bundle.base_state.values())
    assert os.path.getsize(built / "model.safetensors") < size + 20_000


def test_costs_of_tails_count_macs_weights_and_calls(built: Path) -> None:
    model = SemanticModel.from_pretrained(built)
    calls = CALL_COST * sum(node.op.startswith("call") for node in model.network.parts.tail.graph.nodes)
    keep = model.bundle.parts[FULL_TAIL].keep
    for weight_cost in (0.0, 32.0):
        subgraph, full = tail_costs(model, weight_cost)
        assert full == calls + model.network.tail_macs.total(keep, weight_cost)
        assert calls < subgraph < full


# ---- what is written


def cascade() -> Bundle:
    """One cluster, and nothing that differs from the base model."""
    made = tiny_bundle(("all",), (tuple(range(CLASSES)),))
    network = made.network()
    parts = {name: Part(network.coupling.keep_all()) for name in made.parts}
    router = make_predictor(network.feature_shape(parts["extractor"]), 1, made.router_config)
    return replace(made, parts=parts, router=router)


def test_a_bundle_without_differences_is_saved_and_answers_as_the_base_model(tmp_path: Path) -> None:
    """A file of tensors must hold one: it is empty, and belongs to no part."""
    cascade().save(tmp_path / "bundle")
    tensors = load_file(tmp_path / "bundle" / "subgraphs.safetensors")
    assert [(tensor.numel(), tensor.dtype) for tensor in tensors.values()] == [(0, torch.int32)]
    loaded = Bundle.load(tmp_path / "bundle")
    assert all(part.keep.all() and not part.layers for part in loaded.parts.values())
    model = SemanticModel(loaded)
    x = images_of(model)
    for threshold in (0.0, 2.0):
        model.threshold = threshold
        assert torch.equal(model(x).argmax(1), model.network.graph(x).argmax(1))


def test_the_card_says_what_the_bundle_is(tmp_path: Path) -> None:
    threshold = Threshold(0.25, 0.4, 0.01, 0.0042, 0.5, 0.753, 0.95, 1234, 1)
    made = replace(tiny_bundle(), threshold=threshold, provenance={"b": "2", "a": "1"})
    made.save(tmp_path / "bundle")
    card = (tmp_path / "bundle" / "README.md").read_text()
    lines = card.splitlines()
    assert lines[:4] == ["---", "library_name: sinf", "pipeline_tag: image-classification", "---"]
    assert f"# {made.spec.title}, semantic inference" in lines
    assert "6 classes in 3 semantic clusters; cut after `first`." in lines
    table = lines.index("|---|---|")
    assert lines[table - 1] == "| on the calibration images | |"
    assert lines[table + 1 : table + 4] == [
        "| loss against the base model | 0.42 points (limit 1) |",
        "| a subgraph runs | 75.3 % |",
        "| fallback to the full tail | 50.0 % |",
    ]
    assert threshold.promise() in lines
    assert lines.index("- a: 1") + 1 == lines.index("- b: 2")
    assert f"- images: {made.spec.preprocessing.describe()}" in lines
    assert any(line.startswith("- machine: ") and torch.__version__ in line for line in lines)
    code = lines[lines.index("```python") + 1 : lines.index("```")]
    assert code[0] == "import sinf"
    assert any("sinf.from_pretrained" in line for line in code)
    # Every paragraph is apart from the next: Markdown joins neighbouring lines.
    apart = (f"# {made.spec.title}, semantic inference", threshold.promise(), "```", "---")
    assert all(after == "" for line, after in zip(lines, [*lines[1:], ""], strict=True) if line in apart[:3])
    assert lines[table - 2] == "" == lines[table + 4]


def test_the_card_of_a_bundle_that_is_not_calibrated_has_no_losses(tmp_path: Path) -> None:
    replace(tiny_bundle(), threshold=None).save(tmp_path / "bundle")
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "calibration" not in card
    assert "cut after `first`" in card
    assert Bundle.load(tmp_path / "bundle").threshold is None


@pytest.mark.parametrize(
    ("field", "within", "outside"),
    [
        ("value", [0.0, 1.0, 2.0], [-0.01, 2.01]),
        ("early", [0.0, 1.0], [-0.01, 1.01]),
        ("max_loss", [0.0, 1.0], [-0.01, 1.01]),
        ("loss", [-1.0, 1.0], [-1.01, 1.01]),
        ("fallback", [0.0, 1.0], [-0.01, 1.01]),
        ("subgraph_ran", [0.0, 1.0], [-0.01, 1.01]),
        ("images", [1, 1 << 40], [0, (1 << 40) + 1]),
        ("choices", [1, 1 << 40], [0, (1 << 40) + 1]),
    ],
)
def test_a_threshold_out_of_its_range_is_refused(
    tmp_path: Path, field: str, within: list[float], outside: list[float]
) -> None:
    """The ends are within it."""
    folder = tmp_path / "bundle"
    replace(tiny_bundle(), times=()).save(folder)
    record = json.loads((folder / "config.json").read_text())["threshold"]
    for value in within:
        rewrite(folder / "config.json", {"threshold": record | {field: value}})
        assert getattr(Bundle.load(folder).threshold, field) == value
    for value in outside:
        rewrite(folder / "config.json", {"threshold": record | {field: value}})
        with pytest.raises(BundleError, match=field):
            Bundle.load(folder)


def test_the_room_of_answers_is_that_of_the_matrices_made_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are made for one cluster after the other as their subgraphs are asked for; the limit is for all together."""
    made = tiny_bundle(("most", "one"), ((0, 1, 2, 3, 4), (5,)))
    made.save(tmp_path / "bundle")
    matrices = [DeferralHead(made.clusters, cluster, made.deferral).matrix for cluster in range(2)]
    room = sum(matrix.numel() * matrix.element_size() for matrix in matrices)
    monkeypatch.setattr(semantic, "_MOST_ROOM", room)
    assert Bundle.load(tmp_path / "bundle").clusters == made.clusters
    monkeypatch.setattr(semantic, "_MOST_ROOM", room - 1)
    with pytest.raises(BundleError, match="for 2 clusters of up to 5 classes"):
        Bundle.load(tmp_path / "bundle")
    with pytest.raises(BundleError, match="for 2 clusters of up to 5 classes"):
        made.save(tmp_path / "again")


def test_a_loaded_bundle_is_a_constant(built: Path) -> None:
    """Nothing of it is to be trained, and running it keeps nothing for a backward pass."""
    model = SemanticModel.from_pretrained(built)
    of_parts = [*model.network.graph.parameters(), *model.bundle.router.parameters(), *model.extractor.parameters()]
    assert of_parts
    assert not any(parameter.requires_grad for parameter in of_parts)
    assert model.network.graph(images_of(model, 1)).grad_fn is None
    assert not model.bundle.router.training
