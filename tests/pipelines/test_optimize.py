"""From a limit of the loss to the fastest network that keeps it. Times are made up; what they choose is tested."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import sinf as public
from program import Program
from sinf.bundle.semantic import Bundle
from sinf.data.clusters import Clusters, one_cluster
from sinf.data.images import LabelledImages
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import ConfigError, DataError, DependencyError, DoesNotPayError
from sinf.graph.price import LayerTimes
from sinf.load import from_pretrained
from sinf.measure.delivery import ExpectedLoss, answers_of
from sinf.measure.in_engine import TailAnswers, tail_answers
from sinf.measure.timing import Latency
from sinf.models import BaseModel, ModelSpec, load_model
from sinf.pipelines import confirm as confirming
from sinf.pipelines import optimize_choice as choice
from sinf.pipelines import optimize_search as module
from sinf.pipelines.build import BuildConfig, Images, make_bundle
from sinf.pipelines.candidates import Candidate, Delivery, Promise, Routed, Static, least_thresholds
from sinf.pipelines.optimize import OptimizeConfig, Optimized, optimize, parted
from sinf.pipelines.optimize_choice import LOST, Row, contenders, front, likely_loss
from sinf.pipelines.optimize_search import OWN, place_of
from sinf.pipelines.place import Place, Running
from sinf.routing.paired_test import p_value
from sinf.routing.threshold import NEVER
from sinf.storage.steps import StepStore
from times import latency, like_macs, taking
from tiny import coloured_images

SMALL: dict[str, Any] = {
    "engine": "torch",
    "images": 24,
    "methods": ("ranks",),
    "budgets": (0.6,),
    "cuts": (0.3,),
    "tails": (0.95,),
    "max_loss": 0.5,
    "by_time": False,
    "compiled": False,
}


def row(points: float, ms: float, name: str = "") -> Row:
    loss = ExpectedLoss(points, points, points, abs(points) / 100, 0.5, 100)
    return Row(name or f"{points} {ms}", "static", "f32", loss, latency(ms))


@pytest.fixture(scope="module")
def base() -> BaseModel:
    torch.manual_seed(0)
    return load_model("vgg11", classes=6, options={"width": 0.125})


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    return coloured_images(tmp_path_factory.mktemp("calibration"), 80, seed=1)


@dataclass(frozen=True)
class Optimizer:
    """optimize() for one base model and its images. Calls share a work folder and, by engine, a place: what is made
    from the scoring images, and opened, is the same for all."""

    base: BaseModel
    scoring: LabelledImages
    calibration: LabelledImages
    work: Path
    opened: dict[str, Place]

    def place(self, engine: str) -> Place:
        if engine not in self.opened:
            config = OptimizeConfig(**{**SMALL, "engine": engine})
            self.opened[engine] = place_of(config, self.scoring, self.base.spec.preprocessing)
        return self.opened[engine]

    def __call__(self, folder: Path, **options: Any) -> Optimized:
        config = OptimizeConfig(**{**SMALL, **options})
        place = self.place(config.engine)
        return optimize(self.base, self.scoring, self.calibration, config, folder, work=self.work, place=place)


@pytest.fixture(scope="module")
def optimized(
    base: BaseModel, tiny_images: LabelledImages, calibration: LabelledImages, tmp_path_factory: pytest.TempPathFactory
) -> Optimizer:
    return Optimizer(base, tiny_images, calibration, tmp_path_factory.mktemp("work"), {})


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, float]], None]:
    """Candidates whose name begins with a key take so many milliseconds, all others nine; the base model takes ten."""
    taken: dict[str, float] = {}

    def timed(base: Any, candidates: Mapping[str, Any], images: Any, **options: Any) -> dict[str, Latency]:
        for run in candidates.values():
            run(images[:1])
        return taking(milliseconds)(base, candidates, images, **options)

    def milliseconds(name: str) -> float:
        return next((ms for start, ms in taken.items() if name.startswith(start)), 9.0)

    monkeypatch.setattr(module, "interleaved", timed)
    return taken.update


# ---- what is chosen


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(1, 20)), max_size=12))
def test_nothing_beats_the_front(values: list[tuple[float, float]]) -> None:
    rows = [row(*value, name=str(number)) for number, value in enumerate(values)]
    best = front(rows, 0.02)
    assert all(each.loss.points <= 2 for each in best)
    assert [each.loss.disagreement for each in best] == sorted(each.loss.disagreement for each in best)
    assert [each.share for each in best] == sorted((each.share for each in best), reverse=True)
    for each in rows:
        if each.loss.points <= 2:
            safety = each.loss.disagreement
            assert any(b.loss.disagreement <= safety and b.share <= each.share for b in best)


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(1, 20)), max_size=12), st.floats(0, 0.2))
def test_what_may_win_is_timed_again(values: list[tuple[float, float]], off: float) -> None:
    """Whatever the times turn out to be within their intervals, the front is of those that may win."""
    rows = [row(*value, name=str(number)) for number, value in enumerate(values)]
    rough = [
        replace(each, time=replace(each.time, low=1 - each.share - off, high=1 - each.share + off)) for each in rows
    ]
    names = {each.name for each in contenders(rough, 0.02)}
    assert {each.name for each in front(rows, 0.02)} <= names
    for each in rows:
        if each.loss.points <= 2 and each.name not in names:
            assert any(
                other.loss.disagreement <= each.loss.disagreement and other.share < each.share - 2 * off
                for other in rows
                if other.name in names
            )


def test_parts_are_drawn_at_random_and_share_nothing(calibration: LabelledImages) -> None:
    one, two = parted(calibration, 0.25, 0)
    assert (len(one), len(two)) == (20, 60)
    assert set(one.digests()).isdisjoint(two.digests())
    assert parted(calibration, 0.25, 0)[0].fingerprint() == one.fingerprint()
    assert parted(calibration, 0.25, 1)[0].fingerprint() != one.fingerprint()
    with pytest.raises(ConfigError, match="two are needed"):
        parted(calibration.select([0]), 0.25, 0)


@pytest.mark.parametrize(("quick", "kind"), [("ranks", "PlainModel"), ("cascade", "SemanticModel")])
def test_the_fastest_is_written_and_loads(
    quick: str, kind: str, optimized: Optimizer, fast: Callable[[Mapping[str, float]], None], tmp_path: Path
) -> None:
    fast({quick: 4.0})
    found = optimized(tmp_path / "fast")
    assert found.chosen.name.startswith(quick)
    assert found.chosen.accepted is True
    assert {each.kind for each in found.rows} == {"static", "cascade"}
    assert (found.own.mean, found.compiled) == (9.0, None)
    model = from_pretrained(tmp_path / "fast")
    assert type(model).__name__ == kind
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 6)


def test_the_model_by_torch_compile_is_timed_beside_them(
    optimized: Optimizer, fast: Callable[[Mapping[str, float]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[torch.Size] = []

    def opened(network: nn.Module, size: tuple[int, int, int], engine: str) -> Callable[[Tensor], Tensor]:
        assert (network, engine) == (optimized.base.module, "torch-compile")
        return lambda x: (ran.append(x.shape), network(x))[1]

    monkeypatch.setattr(module, "open_network", opened)
    fast({"ranks": 4.0, module.COMPILED: 7.0})
    found = optimized(tmp_path / "fast", compiled=True, batch=2)
    assert ran[0] == (2, 3, 32, 32)  # compiled before anything is timed, for batches as they will be
    assert found.compiled is not None
    assert (found.compiled.mean, found.own.mean) == (7.0, 9.0)


@pytest.mark.parametrize("engine", ["torch", "torch-compile"])
def test_what_cannot_be_compiled_is_left_out(
    engine: str, optimized: Optimizer, fast: Callable[[Mapping[str, float]], None], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Without a C++ compiler; in the engine that compiles, the base model there is what it would be."""

    def refuse(*network: Any) -> None:
        raise DependencyError("torch.compile needs a C++ compiler", remedy="install g++")

    monkeypatch.setattr(module, "open_network", refuse)
    fast({"ranks": 4.0})
    found = optimized(tmp_path / "fast", compiled=True, engine=engine)
    assert found.compiled is None
    assert (f"{module.COMPILED}: torch.compile needs a C++ compiler: install g++" in found.left_out) == (
        engine == "torch"
    ), found.left_out


@pytest.mark.parametrize(
    ("quick", "engine"),
    [("ranks", "torch"), ("cascade", "torch"), ("ranks", "onnxruntime"), ("cascade", "openvino")],
)
def test_what_was_delivered_is_confirmed_as_a_user_opens_it(
    quick: str, engine: str, base: BaseModel, optimized: Optimizer, fast: Callable[[Mapping[str, float]], None],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    """Its loss on new images is that of the folder as it is opened; what a user would run instead is beside it."""
    fast({quick: 4.0})
    monkeypatch.setattr(confirming, "interleaved", module.interleaved)
    found = optimized(tmp_path / "fast", engine=engine, cuts=(0.3,) if quick == "cascade" else ())
    (tmp_path / "new").mkdir()
    new = coloured_images(tmp_path / "new", 40, seed=7)
    confirmed = confirming.confirm(base, {"ours": tmp_path / "fast"}, new, optimized.place(engine))
    assert set(confirmed.losses) == set(confirmed.times)
    assert (confirming.INT8 in confirmed.losses) == (engine != "torch")
    assert confirmed.losses[OWN].disagreement == 0  # the base model in its engine, as it was loaded
    run = confirming.open_delivered(tmp_path / "fast", engine, 1)
    expected, answers = (answers_of(each, new, base.spec.preprocessing) for each in (base.module, run))
    assert confirmed.losses["ours"].points == pytest.approx(ExpectedLoss.of(expected, answers, new.labels).points)
    assert found.chosen.name.startswith(quick)


def test_what_is_slower_is_not_delivered(
    optimized: Optimizer, fast: Callable[[Mapping[str, float]], None], tmp_path: Path
) -> None:
    fast({"": 11.0})
    with pytest.raises(DoesNotPayError, match="faster than the base model") as refused:
        optimized(tmp_path / "fast")
    assert refused.value.numbers
    assert not (tmp_path / "fast").exists()


class Blocked(nn.Module):
    """Nothing of it can be removed, whatever the method."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, 4, 1), nn.Parameter(torch.randn(8, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bc,ck->bk", self.conv(x).relu().mean((2, 3)), self.head)


def test_what_no_method_can_make_smaller_is_left_out_and_said(
    optimized: Optimizer, fast: Callable[[Mapping[str, float]], None], tmp_path: Path
) -> None:
    fast({})
    spec = ModelSpec("tests.own:blocked", 6, optimized.base.spec.preprocessing)
    blocked = replace(optimized, base=BaseModel(Blocked().eval(), spec), work=tmp_path / "work", opened={})
    with pytest.raises(DoesNotPayError, match=r"none of 0 candidates .* left out: channels: "):
        blocked(tmp_path / "fast", methods=("channels", "ranks"))


def test_what_the_calibration_images_refuse_is_not_delivered(
    optimized: Optimizer, fast: Callable[[Mapping[str, float]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names what was refused, what it lost, and how many images would do."""
    fast({"ranks": 4.0})
    monkeypatch.setattr(choice, "p_value", lambda losses, limit: 1.0)
    with pytest.raises(DoesNotPayError, match=r"lost -?\d.\d\d points on 53 images that test") as refused:
        optimized(tmp_path / "fast", confidence=0.9)
    assert "such images would do" in str(refused.value)
    assert not (tmp_path / "fast").exists()


def test_too_few_images_for_a_confidence_are_refused_before_anything_is_made(
    optimized: Optimizer, tmp_path: Path
) -> None:
    """A third of them choose, so that half a point with confidence 0.95 takes half as many again as are tested."""
    few = replace(optimized, work=tmp_path / "work")
    with pytest.raises(ConfigError, match=r"take 1,\d\d\d calibration images, even if .* \(got 80\)") as told:
        few(tmp_path / "fast", max_loss=0.005, confidence=0.95)
    assert not any(tmp_path.iterdir())
    (number,) = re.findall(r"1,\d\d\d", str(told.value))
    tested = round(int(number.replace(",", "")) * (1 - OptimizeConfig().selection))
    assert p_value(torch.zeros(tested), 0.005) <= 0.05 < p_value(torch.zeros(tested - 20), 0.005)


@pytest.mark.parametrize("shared", ["scoring", "selection"])
def test_images_that_test_made_and_chose_nothing(shared: str, optimized: Optimizer, tmp_path: Path) -> None:
    config, calibration = OptimizeConfig(**SMALL), optimized.calibration
    scoring = calibration if shared == "scoring" else optimized.scoring
    selection = calibration.select(range(20)) if shared == "selection" else None
    with pytest.raises(DataError, match=f"calibration images must not be among the {shared} images"):
        optimize(optimized.base, scoring, calibration, config, tmp_path / "fast", selection=selection)
    with pytest.raises(DataError, match="selection images must not be among the scoring images"):
        optimize(
            optimized.base, optimized.scoring, calibration, config, tmp_path / "fast",
            selection=optimized.scoring.select(range(20)),
        )  # fmt: skip
    assert not any(tmp_path.iterdir())


def test_a_place_of_another_engine_is_refused(optimized: Optimizer, tmp_path: Path) -> None:
    """The promise would name an engine in which nothing ran."""
    config, place = OptimizeConfig(**{**SMALL, "threads": 2}), optimized.place("torch")
    with pytest.raises(ConfigError, match=r"in torch with 2 thread\(s\)"):
        optimize(optimized.base, optimized.scoring, optimized.calibration, config, tmp_path / "fast", place=place)


def test_the_test_goes_from_the_safest_up_and_stops(
    optimized: Optimizer, fast: Callable[[Mapping[str, float]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a confidence, what comes after a refusal is not looked at."""
    asked: list[float] = []

    def refusing(losses: torch.Tensor, limit: float) -> float:
        asked.append(limit)
        return 0.01 if len(asked) == 1 else 0.5

    monkeypatch.setattr(choice, "p_value", refusing)
    monkeypatch.setattr(choice, "front", lambda rows, limit: sorted(rows, key=lambda each: each.name))
    fast({"": 5.0})
    found = optimized(tmp_path / "fast", confidence=0.9)
    assert len(asked) == 2
    assert found.chosen.name == min(each.name for each in found.rows)
    assert [each.accepted for each in sorted(found.rows, key=lambda each: each.name)][:2] == [True, False]
    assert "With confidence 0.9" in str(found.promise)


def test_without_a_promise_the_fastest_that_holds_is_looked_for(
    optimized: Optimizer, fast: Callable[[Mapping[str, float]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fastest loses too much on the calibration images; after the next, which does not, nothing is tested."""
    fast({"ranks": 4.0, "cascade": 5.0})
    tested: list[str] = []
    answers_of_the_candidate = module.Search._answers

    def answers(search: module.Search, candidate: Candidate, images: LabelledImages) -> torch.Tensor:
        if len(images) < 40:  # the images that choose
            return answers_of_the_candidate(search, candidate, images)
        tested.append(candidate.name.split()[0])
        return images.labels + 1 if candidate.name.startswith("ranks") else images.labels

    monkeypatch.setattr(module.Search, "_answers", answers)
    found = optimized(tmp_path / "fast", max_loss=0.3)
    assert tested == ["base", "ranks,", "cascade"]
    assert found.chosen.kind == "cascade"
    assert found.promise.likely is not None
    assert found.promise.likely <= 0.3
    assert sorted(str(each.accepted) for each in found.rows if each.accepted is not None) == ["False", "True"]


def test_a_tail_that_cannot_be_so_small_is_as_small_as_can_be(
    optimized: Optimizer, fast: Callable[[Mapping[str, float]], None], tmp_path: Path
) -> None:
    fast({"cascade": 2.0})
    found = optimized(tmp_path / "fast", tails=(0.1,))
    assert not any("within reach" in line for line in found.left_out)
    kept = {float(re.findall(r": ([\d.]+) % of the tail", row.name)[0]) for row in found.rows if row.kind == "cascade"}
    assert len(kept) == 1
    assert 10 < kept.pop() < 100


def test_int8_is_a_candidate_too_and_what_cannot_win_is_timed_in_few_rounds(
    optimized: Optimizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The base model in int8 is timed beside those that may win in any case: it is what they are compared with."""
    runs: list[tuple[int, set[str]]] = []

    def timed(base: Any, candidates: Mapping[str, Any], images: Any, *, pairs: int, **options: Any) -> Any:
        runs.append((pairs, set(candidates)))
        made = taking(lambda name: 2.0 if name == "ranks, 60 %, int8" else 9.0)
        return made(base, candidates, images, pairs=pairs, **options)

    monkeypatch.setattr(module, "interleaved", timed)
    safe = ExpectedLoss(0.0, 0.0, 0.0, 0.0, 0.5, 30)
    monkeypatch.setattr(module.ExpectedLoss, "of", lambda *answers: safe)
    found = optimized(tmp_path / "fast", engine="onnxruntime", precisions=("f32", "int8"), cuts=(), pairs=50)
    assert runs == [
        (10, {OWN, "base model, int8", "ranks, 60 %, f32", "ranks, 60 %, int8"}),
        (50, {OWN, "base model, int8", "ranks, 60 %, int8"}),
    ]
    assert {(each.name, each.precision): each.time.pairs for each in found.rows} == {
        ("base model", "int8"): 50, ("ranks, 60 %", "f32"): 10, ("ranks, 60 %", "int8"): 50
    }  # fmt: skip
    assert (found.chosen.name, found.chosen.precision) == ("ranks, 60 %", "int8")
    assert "onnxruntime int8" in str(from_pretrained(tmp_path / "fast").provenance)


def test_a_work_folder_goes_on(
    base: BaseModel, tiny_images: LabelledImages, calibration: LabelledImages,
    fast: Callable[[Mapping[str, float]], None], tmp_path: Path,
) -> None:  # fmt: skip
    fast({"cascade": 4.0})

    def made(out: str) -> str:
        config = OptimizeConfig(**SMALL)
        return optimize(base, tiny_images, calibration, config, tmp_path / out, work=tmp_path / "work").chosen.name

    first = made("one")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.safetensors")}
    assert made("two") == first
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.safetensors")}


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_loss": 2.0}, {"confidence": 1.5}, {"engine": "abacus"}, {"precisions": ("bf16",)}, {"precisions": ()},
        {"batch": 0}, {"threads": 0}, {"images": 0}, {"cuts": (1.5,)}, {"tails": (0.0,)}, {"pairs": 1},
        {"selection": 1.0}, {"methods": ("magic",)}, {"methods": ()}, {"budgets": (0.3, 0.5)},
    ],
    ids=str,
)  # fmt: skip
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        OptimizeConfig(**wrong)


def test_a_promise_says_what_it_is() -> None:
    sure = Promise(0.005, 0.95, 0.001, 2500, "onnxruntime", "int8")
    assert "at most 0.5 points in onnxruntime int8, on images drawn as the 2,500 calibration images" in str(sure)
    said = str(replace(sure, confidence=None, likely=0.0042))
    assert said.startswith("No promise for new images: on the 2,500 calibration images that tested it 0.10 points were")
    assert "it likely loses at most 0.42" in said


def test_the_command(
    sinf: Program, weights: Path, data: Path, tmp_path: Path, fast: Callable[[Mapping[str, float]], None]
) -> None:
    fast({"ranks": 4.0, OWN: 20.0})
    words: list[object] = ["optimize", "vgg11", "--weights", weights, "--data", data, "--score", "train"]
    words += ["--calibrate", "test", "--images", 24, "--max-loss", 90, "--engine", "torch", "--no-cascades"]
    words += ["--minutes", 0.001]  # the first smaller network only
    said = sinf(*words, "--out", tmp_path / "fast", "--json", tmp_path / "found.json", "--threads", 1)
    assert "5.0 times less time than your model as loaded" in " ".join(said.split())
    assert "chosen" in said
    assert "No promise for new images" in " ".join(said.split())
    assert sinf("eval", tmp_path / "fast", "--data", data, "--split", "test")
    assert (tmp_path / "found.json").exists()
    assert not (tmp_path / "fast.optimize").exists()


def test_it_is_public() -> None:
    assert public.optimize is optimize


@pytest.mark.parametrize(("budget", "methods"), [(0.5, {"ranks"}), (0.8, {"ranks", "channels"})])
def test_another_method_is_tried_where_the_first_does_not_do_well(
    budget: float, methods: set[str], optimized: Optimizer, fast: Callable[[Mapping[str, float]], None], tmp_path: Path
) -> None:
    found = optimized(tmp_path / "fast", methods=("ranks", "channels"), budgets=(budget,), cuts=(), max_loss=0.99)
    assert {each.name.split(",")[0] for each in found.rows} == methods
    assert ("channels: not tried, since ranks do well" in found.left_out) == (len(methods) == 1)


# ---- bundles


def test_clusters_are_candidates_too(
    optimized: Optimizer, fast: Callable[[Mapping[str, float]], None], tmp_path: Path
) -> None:
    fast({"2 clusters": 2.0})
    clusters = Clusters(("warm", "cold"), ((0, 2, 4), (1, 3, 5)))
    found = optimized(tmp_path / "fast", clusters=clusters, routed_cuts=(0.5,))
    assert found.chosen.kind == "semantic"
    saved = SemanticModel.from_pretrained(tmp_path / "fast").bundle
    assert saved.clusters == clusters
    assert saved.threshold is not None
    assert (saved.threshold.engine, saved.threshold.precision) == ("torch", "f32")


def answers(confidence: list[float], right: list[bool]) -> TailAnswers:
    """A small tail that answers as the full one does, or not."""
    full = torch.zeros(len(right), dtype=torch.int64)
    return TailAnswers(torch.tensor([0 if same else 1 for same in right]), full, torch.tensor(confidence), full + 1.0)


@pytest.mark.parametrize(
    ("limit", "kept"),
    [(0.0, 1.0), (0.5, 0.9), (1.0, 0.8), (1.5, 0.7), (2.0, 0.6), (3.0, 0.575), (6.0, 0.5), (9.0, 0.5)],
)
def test_what_is_kept_at_a_limit_is_between_networks_that_were_made(limit: float, kept: float) -> None:
    assert choice.kept_at(limit, {0.6: 2.0, 0.8: 1.0, 0.5: 6.0}) == pytest.approx(kept)
    assert choice.kept_at(limit, {}) == 1.0


def test_the_least_threshold_differs_in_no_more_than_asked() -> None:
    found = answers([0.9, 0.8, 0.7, 0.6], [True, True, False, True])
    none, quarter = least_thresholds(found, [0.0, 0.25])
    assert 0.7 < none <= 0.8
    assert (found.at(none) == found.full).all()
    assert quarter == 0.0
    assert least_thresholds(answers([0.9], [False]), [0.5]) == [NEVER]


@given(st.lists(st.tuples(st.floats(0.01, 1), st.booleans()), min_size=1, max_size=30), st.floats(0, 1))
def test_no_lower_threshold_would_do(rows: list[tuple[float, bool]], differing: float) -> None:
    found = answers(*map(list, zip(*rows, strict=True)))  # type: ignore[arg-type]
    (value,) = least_thresholds(found, [differing])
    assert float((found.at(value) != found.full).double().mean()) <= differing
    assert least_thresholds(found, [0.5 * differing, differing, 1.0])[1] == value


@pytest.fixture(scope="module")
def cascade(
    base: BaseModel, tiny_images: LabelledImages, calibration: LabelledImages, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    config = BuildConfig(
        method="ranks", cut_at=0.3, whole=0.8, macs=0.5, max_loss=0.9, keep_anyway=True, whole_images=24
    )
    images, steps = Images(tiny_images, tiny_images, calibration), StepStore(tmp_path_factory.mktemp("cascade"))
    return make_bundle(base, images, one_cluster(6), config, steps, lambda step, done, total: None)


@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_thresholds_are_set_by_answers_in_the_engine(
    precision: str, cascade: Bundle, tiny_images: LabelledImages, calibration: LabelledImages, tmp_path: Path,
) -> None:  # fmt: skip
    """What the router answers image by image is what was observed of the tails."""
    preprocessing = cascade.spec.preprocessing
    place = Place("onnxruntime", 1, tiny_images.inputs(preprocessing)[:8])
    routed = Routed(cascade, "cascade")
    candidates = routed.open(place, precision, calibration, 0.05, lambda done, total: None)
    assert candidates
    router = place.results[routed.identity, precision].get()
    found = tail_answers(router, "onnxruntime", calibration, preprocessing)
    observed = answers_of(candidates[-1].run, calibration, preprocessing)
    both = (found.subgraph == observed) | (found.full == observed)
    assert both.float().mean() > 0.95  # an engine rounds otherwise in batches of another size
    promise = Promise(0.05, None, 0.01, 40, "onnxruntime", precision)
    tested_on = calibration.select(range(40))
    candidates[-1].save(tmp_path / "saved", Delivery(promise, tested_on, list("abcdef")))
    saved = SemanticModel.from_pretrained(tmp_path / "saved").bundle.threshold
    assert saved is not None
    assert (saved.engine, saved.precision, saved.images) == ("onnxruntime", precision, 40)
    assert 0 <= saved.value <= 1
    on_these = tail_answers(router, "onnxruntime", tested_on, preprocessing)
    assert saved.fallback == 1 - float(on_these.routed(saved.value, saved.early).double().mean())
    assert "on the 40 images that tested it 1.00 points" in saved.promise(None, "onnxruntime", precision)


def test_a_place_knows_networks_by_what_they_are(base: BaseModel, tiny_images: LabelledImages) -> None:
    """One budget makes other networks of other images, which a place must not take for the same."""
    other = replace(base, module=copy.deepcopy(base.module))
    with torch.no_grad():
        next(iter(other.module.parameters())).add_(1.0)
    place = Place("torch", 1, torch.zeros(0))
    told = [
        Static(model, "ranks, 60 %").open(place, "f32", tiny_images, 0.05, lambda done, total: None)[0]
        for model in (base, other, base)
    ]
    x = tiny_images.inputs(base.spec.preprocessing)[:2]
    first, second, again = (each.run(x) for each in told)
    assert not torch.allclose(first, second)
    assert torch.equal(first, again)
    assert len(place.results) == 4  # each network, and what it answers


def test_budgets_are_of_time_where_it_will_run(
    optimized: Optimizer, fast: Callable[[Mapping[str, float]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers are timed once, in the fastest precision that is allowed, with the machine's table; what was measured is
    kept for later calls, whose choices depend on it."""
    asked: list[tuple[Any, ...]] = []

    monkeypatch.setenv("SINF_CACHE", str(tmp_path / "cache"))

    def times(graph: Any, run: Any, size: Any, engine: str, *, table: Any, progress: Any, **options: Any) -> LayerTimes:
        asked.append((engine, options))
        assert table.folder == tmp_path / "cache" / "layer-times"
        assert run(torch.zeros(2, *size)).shape == (2, 6)
        return replace(like_macs(graph), where="here")

    monkeypatch.setattr("sinf.pipelines.times.layer_times", times)
    fast({"ranks": 1.0})
    place = place_of(OptimizeConfig(**SMALL), optimized.scoring, optimized.base.spec.preprocessing)
    work = tmp_path / "work"
    config = OptimizeConfig(**{**SMALL, "by_time": True, "cuts": (), "threads": 1, "batch": 2})

    def made(place: Place) -> Optimized:
        return optimize(
            optimized.base, optimized.scoring, optimized.calibration, config, tmp_path / "fast", work=work, place=place
        )

    first = made(place)
    assert asked == [("torch", {"precision": "f32", "batch": 2, "threads": 1})]
    again = made(replace(place, results={}))
    assert len(asked) == 1
    assert [row.name for row in again.rows] == [row.name for row in first.rows]
    monkeypatch.setattr("sinf.pipelines.times.FORMAT", 0)  # as a version stored them that timed layers in another way
    made(replace(place, results={}))
    assert len(asked) == 2
    assert "60 % of the time in here kept" in (tmp_path / "fast" / "README.md").read_text()


def test_little_memory_changes_nothing_but_what_is_open(
    optimized: Optimizer, fast: Callable[[Mapping[str, float]], None], tmp_path: Path
) -> None:
    """With room for one network at a time, each is opened when it runs, and losses and what is written are the same."""
    fast({"ranks": 5.0})
    config = OptimizeConfig(**{**SMALL, "engine": "onnxruntime", "precisions": ("f32", "int8")})
    found = []
    for name, memory in (("much", None), ("little", 1)):
        place = replace(optimized.place("onnxruntime"), memory=memory, results={})
        parts = optimized.base, optimized.scoring, optimized.calibration
        found.append(optimize(*parts, config, tmp_path / name, work=optimized.work, place=place))
        running = [each for each in place.results.values() if isinstance(each, Running)]
        assert len(running) >= 6
        assert sum(each.open for each in running) == (len(running) if memory is None else 1)
    much, little = found
    assert [(row.name, row.precision, row.loss) for row in much.rows] == [
        (row.name, row.precision, row.loss) for row in little.rows
    ]
    assert much.chosen == little.chosen
    written = [sorted((tmp_path / name / "onnxruntime").glob("*.onnx")) for name in ("much", "little")]
    assert written[0]
    assert [path.read_bytes() for path in written[0]] == [path.read_bytes() for path in written[1]]


@pytest.mark.parametrize(
    ("points", "differing", "on_others", "within"),
    [
        (0.0, 0.04, 0.0, True),  # half a point is usual for so many answers, and nothing was lost
        (1.2, 0.02, 0.0, True),  # what the first images lost, the others did not
        (0.0, 0.16, 0.004, False),  # so many answers differ that two points are usual
        (0.9, 0.03, 0.009, False),  # all images say so
    ],
)
def test_what_a_network_likely_loses(points: float, differing: float, on_others: float, within: bool) -> None:
    chosen_by = ExpectedLoss(points, points, points, differing, 0.7, 1000)
    losses = torch.zeros(3000)
    losses[: round(3000 * on_others)] = 1.0
    assert (likely_loss(chosen_by, losses) <= 0.005) == within


@given(points=st.floats(-1, 3), differing=st.floats(0, 0.2), images=st.integers(100, 10**5))
def test_many_images_say_what_is_lost(points: float, differing: float, images: int) -> None:
    """Between what was seen and what is usual, or a little more; and what was seen, where images are many."""
    few, many = (likely_loss(ExpectedLoss(points, points, points, differing, 0.7, count)) for count in (images, 10**9))
    low, high = sorted((points / 100, LOST * differing))
    assert low - 1e-12 <= few <= high + 0.5 * LOST * differing + 1e-12
    assert many == pytest.approx(points / 100, abs=1e-4)
