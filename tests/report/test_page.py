"""The page of an artefact: well-formed, alone, escaped, and true to what an evaluation of the same images says."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from artefacts import small
from sinf.data.clusters import Clusters
from sinf.data.images import LabelledImages, load_images
from sinf.dynamic.model import DynamicModel
from sinf.dynamic.model import evaluate as evaluate_dynamic
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import ConfigError, DataError, DataWarning
from sinf.load import from_pretrained
from sinf.measure.accuracy import evaluate
from sinf.measure.delivery import ExpectedLoss
from sinf.measure.plain import evaluate as evaluate_plain
from sinf.measure.shares import times_less
from sinf.pipelines import optimize_search as optimizing
from sinf.pipelines.candidates import Promise
from sinf.pipelines.comparison import compare, save
from sinf.pipelines.findings import find
from sinf.pipelines.optimize import OptimizeConfig, Optimized, Row, optimize
from sinf.report.page import write_report
from times import latency, taking

KINDS = ["semantic", "ranks", "cascade", "static", "dynamic"]


@pytest.fixture(scope="session")
def all_folders(folders: dict[str, Path], built_ranks: Path, built_cascade: Path) -> dict[str, Path]:
    return {**folders, "ranks": built_ranks, "cascade": built_cascade}


@pytest.fixture
def images(data: Path) -> LabelledImages:
    return load_images(data, "test")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "report.html"


def parsed(path: Path) -> ElementTree.Element:
    """The page as a tree: it is written so that a strict parser of XML takes it, too."""
    return ElementTree.fromstring(path.read_text(encoding="utf-8"))


def words(element: ElementTree.Element) -> str:
    """What a reader sees."""
    return " ".join(" ".join(element.itertext()).split())


def section(page: ElementTree.Element, name: str) -> ElementTree.Element:
    found = page.find(f".//section[@id='{name}']")
    assert found is not None
    return found


def tiles(page: ElementTree.Element) -> str:
    """Their values and what these are."""
    return " ".join(f"{tile[1].text} {tile[0].text}" for tile in page.findall(".//header/dl/div"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_well_formed_and_loads_nothing(
    kind: str, all_folders: dict[str, Path], images: LabelledImages, out: Path
) -> None:
    model = from_pretrained(all_folders[kind])
    write_report(model, images, out, source=all_folders[kind])  # type: ignore[arg-type]
    page, text = parsed(out), out.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    names = {each.tag for each in page.iter()}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for each in page.iter():
        for name, value in each.attrib.items():
            assert not name.lower().startswith("on"), "no code in attributes"
            if name in ("src", "href", "action", "data", "srcset", "poster"):
                assert value.startswith(("data:image/", "#")), value
    assert not re.search(r"url\(|@import|https?://", text)
    policy = page.find("head/meta[@http-equiv='Content-Security-Policy']")
    assert policy is not None
    assert policy.get("content", "").startswith("default-src 'none'")
    assert all(each.get("alt") for each in page.iter("img"))
    assert all(each.get("aria-label") or each.get("aria-hidden") for each in page.iter("svg"))
    assert all(table.findall(".//th") for table in page.iter("table"))
    anchors = {each.get("href") for each in page.iter("a")}
    assert anchors == {f"#{each.get('id')}" for each in page.iter("section")}


@pytest.mark.parametrize("kind", ["semantic", "ranks", "cascade"])
def test_a_page_of_a_bundle_has_the_numbers_of_an_evaluation(
    kind: str, all_folders: dict[str, Path], images: LabelledImages, out: Path
) -> None:
    model = SemanticModel.from_pretrained(all_folders[kind])
    model.threshold = 0.0
    confidence = model.route(images.inputs(model.preprocessing)[:]).confidence
    model.threshold = float(confidence.median())  # some stop, some fall back
    expected = evaluate(model, images)
    assert 0.1 < expected.fallback < 0.9
    found = write_report(model, images, out, source=all_folders[kind])
    assert found.loss is not None
    assert found.loss.points == pytest.approx(expected.loss)
    assert found.macs == pytest.approx(expected.macs)
    assert found.parameters == pytest.approx(expected.parameters_active)
    page = parsed(out)
    top = words(page.find(".//header"))  # type: ignore[arg-type]
    assert f"{expected.loss:.2f}" in top
    assert f"top-1 {100 * expected.top1:.2f} % instead of {100 * expected.base_top1:.2f} %" in top
    assert f"{expected.base_macs / expected.macs:.2f} times" in top
    assert f"{100 * (1 - expected.fallback):.0f} %" in top
    stops = words(section(page, "stops"))
    assert f"{100 * (1 - expected.fallback):.1f} % stop at" in stops
    after = expected.subgraph_ran - (1 - expected.fallback)
    assert (f"{100 * after:.1f} % fall back after" in stops) == (after > 0)
    if kind == "cascade":
        assert page.find(".//section[@id='clusters']") is None
    else:
        clusters = words(section(page, "clusters"))
        assert f"{100 * expected.route_accuracy:.1f} % of the images take the route" in clusters
        for each in expected.clusters:
            assert f"top-1 {100 * each.base_top1:.1f} % → {100 * each.top1:.1f} %" in clusters
            assert f"own route {100 * each.route_accuracy:.1f} %, fall back {100 * each.fallback:.1f} %" in clusters


def test_a_page_of_a_plain_model_alone_and_beside_its_base(
    folders: dict[str, Path], images: LabelledImages, out: Path
) -> None:
    model, base = from_pretrained(folders["static"]), small("vgg11", 0.125)
    write_report(model, images, out, source=folders["static"])  # type: ignore[arg-type]
    expected = evaluate_plain(model, images)  # type: ignore[arg-type]
    assert f"{100 * expected.top1:.2f} %" in words(parsed(out))
    assert "was not given" in words(parsed(out))
    write_report(model, images, out, source=folders["static"], base=base)  # type: ignore[arg-type]
    expected = evaluate_plain(model, images, base)  # type: ignore[arg-type]
    text = words(parsed(out))
    assert expected.base is not None
    assert expected.base_size is not None
    assert f"top-1 {100 * expected.top1:.2f} % instead of {100 * expected.base.top1:.2f} %" in text
    assert f"{expected.base_size.macs / expected.macs:.2f} times" in text


def test_a_page_of_a_dynamic_bundle(folders: dict[str, Path], images: LabelledImages, out: Path) -> None:
    model = DynamicModel.from_pretrained(folders["dynamic"])
    write_report(model, images, out, source=folders["dynamic"])
    expected = evaluate_dynamic(model, images)
    text = words(parsed(out))
    assert f"top-1 {100 * expected.top1:.2f} % instead of {100 * expected.base_top1:.2f} %" in text
    assert f"{1 / (1 - expected.macs_saved):.2f} times" in text
    site, share = next(iter(expected.remaining.items()))
    row = next(row for row in section(parsed(out), "layers").iter("tr") if words(row).startswith(site + " "))
    count, of = re.search(r"([\d.]+) of (\d+)", words(row)).groups()  # type: ignore[union-attr]
    assert float(count) == pytest.approx(int(of) * share, abs=0.051)


@pytest.mark.parametrize("kind", ["semantic", "cascade", "static"])
def test_the_promise_stands_word_by_word(
    kind: str, all_folders: dict[str, Path], images: LabelledImages, out: Path
) -> None:
    model = from_pretrained(all_folders[kind])
    if isinstance(model, SemanticModel):
        assert model.bundle.threshold is not None
        sure = replace(model.bundle.threshold, confidence=0.95, engine="onnxruntime", precision="int8")
        model = SemanticModel(replace(model.bundle, threshold=sure))
        promise = sure.promise(None, "onnxruntime", "int8")
    else:
        promise = model.provenance["promise"] = "With confidence 0.9 <all> is well."  # type: ignore[union-attr]
    write_report(model, images, out, source=all_folders[kind])  # type: ignore[arg-type]
    quote = parsed(out).find(".//blockquote")
    assert quote is not None
    assert words(quote) == promise
    assert "kept" in (quote.get("class") or "")


def test_another_threshold_has_no_promise(built: Path, images: LabelledImages, out: Path) -> None:
    model = SemanticModel.from_pretrained(built)
    model.threshold = 2.0
    write_report(model, images, out, source=built)
    text = words(parsed(out))
    assert "No promise: the threshold is 2 instead of" in text
    assert "100.0 % go to the full tail at once" in text


def test_names_of_others_are_text(built: Path, images: LabelledImages, tmp_path: Path, out: Path) -> None:
    """Of classes, clusters, folders and images; and what no page may hold is replaced."""
    evil = '<script>alert("1")</script>'
    bundle = SemanticModel.from_pretrained(built).bundle
    names = (evil, "a & b", "'single\"", "\x01control", "]]>", "<!--")
    clusters = Clusters((evil + "c", "<img src=x>", "{{ 7 * 7 }}"), bundle.clusters.members)
    place = tmp_path / "<b>bundle & co"
    replace(bundle, class_names=names, clusters=clusters).save(place)
    model = SemanticModel.from_pretrained(place)
    given = images.relabelled(list(range(6)), list(names))
    given.name = "<i>data</i>"
    write_report(model, given, out, source=place, command="sinf report '<u>'")
    page, text = parsed(out), out.read_text(encoding="utf-8")
    assert evil not in text
    assert "<img src=x" not in text
    assert "<i>data" not in text
    assert "\x01" not in text
    assert evil in words(page)
    assert "{{ 7 * 7 }}" in words(page)
    assert "�control" in words(page)
    assert any(each.get("alt", "").startswith(evil) for each in page.iter("img"))
    assert words(page.find(".//h1")) == "<b>bundle & co"  # type: ignore[arg-type]
    assert "sinf report '<u>'" in words(section(page, "origin"))


# ---- what was measured


def row(name: str, points: float, ms: float, accepted: bool | None, kind: str = "static") -> Row:
    return Row(
        name,
        kind,
        "int8",
        ExpectedLoss(points, points - 0.5, points + 0.5, 0.0, 0.7, 2500),
        latency(ms, off=0.02),
        accepted,
    )


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return written(tmp_path / "optimize.json")


def written(path: Path, confidence: float | None = 0.95) -> Path:
    """As ``sinf optimize --json`` writes it."""
    rows = (
        row("wild <one>", 25.0, 1.0, None), row("ranks, 30 %", 1.4, 2.0, False),
        row("cascade", 0.8, 2.5, True, "cascade"), row("ranks, 60 %", 0.3, 6.0, True),
    )  # fmt: skip
    promise = Promise(0.01, confidence, 0.006, 2500, "onnxruntime", "int8")
    made = Optimized(rows[2], promise, rows, latency(20.0, off=0.02), ("cascade at 30 %: too few images",))
    path.write_text(json.dumps({"folder": "fast", **made.to_json()}))
    return path


@pytest.fixture
def chosen(built_cascade: Path) -> SemanticModel:
    """The one that these results chose."""
    bundle = SemanticModel.from_pretrained(built_cascade).bundle
    assert bundle.threshold is not None
    told = replace(bundle.threshold, loss=0.006, images=2500, engine="onnxruntime", precision="int8")
    return SemanticModel(replace(bundle, threshold=told))


def test_candidates_of_optimize_are_drawn_and_listed(
    built_cascade: Path, chosen: SemanticModel, images: LabelledImages, results: Path, out: Path
) -> None:
    found = write_report(chosen, images, out, source=built_cascade, results=results)
    lost = [words(tile) for tile in parsed(out).findall(".//header/dl/div") if "points lost" in words(tile)]
    assert [tile.split(" 95 %")[0] for tile in lost] == [
        "points lost in onnxruntime int8 0.80", f"points lost in torch f32 {found.loss.points:.2f}",  # type: ignore[union-attr]
    ]  # fmt: skip
    page = parsed(out)
    top = words(page.find(".//header"))  # type: ignore[arg-type]
    assert "8.0 times less time than your model as loaded (20.00 ms)" in tiles(page)
    assert "75.0 % saved (73.0 .. 77.0)" in top
    assert "onnxruntime int8, batch 1, 1 thread" in top
    part = section(page, "front")
    body = part.find(".//tbody")
    assert body is not None
    cells = [[words(cell) for cell in line] for line in body]
    assert [line[1] for line in cells] == ["wild <one>", "ranks, 30 %", "cascade", "ranks, 60 %"]
    assert [line[-1] for line in cells] == ["not tested", "refused", "chosen", "holds"]
    assert cells[2] == ["3", "cascade", "int8", "0.80", "0.3 .. 1.3", "2.50", "10", "75.0 %", "chosen"]
    assert "1 that lose more than the drawing shows" in words(part)
    points = [each.get("class") for each in part.iter("g")]
    assert points == ["point refused", "point holds", "point chosen"], "the chosen one lies on top"
    assert "cascade at 30 %: too few images" in words(part)
    assert "limit: 1 points" in words(part)


@pytest.mark.parametrize(
    ("confidence", "said", "unsaid"),
    [
        (0.95, "tested on other images, which chose nothing: from the safest up", "the fastest first"),
        (None, "tested on other images, which chose nothing: the fastest first", "from the safest up"),
    ],
)
def test_a_page_says_in_which_order_candidates_were_tested(
    confidence: float | None, said: str, unsaid: str,
    built_cascade: Path, chosen: SemanticModel, images: LabelledImages, tmp_path: Path, out: Path,
) -> None:  # fmt: skip
    results = written(tmp_path / "optimize.json", confidence)
    write_report(chosen, images, out, source=built_cascade, results=results)
    text = words(section(parsed(out), "front"))
    assert said in text
    assert unsaid not in text
    assert "in one run or several" in text


def test_results_of_another_artefact_are_said_to_be_so(
    built_cascade: Path, images: LabelledImages, results: Path, out: Path
) -> None:
    with pytest.warns(DataWarning, match="another artefact"):
        write_report(SemanticModel.from_pretrained(built_cascade), images, out, source=built_cascade, results=results)
    text = words(parsed(out))
    assert "Times were not given" in text
    assert "8.0 times" not in text


def test_times_of_bench_and_of_the_folder(
    folders: dict[str, Path], images: LabelledImages, tmp_path: Path, out: Path
) -> None:
    model = from_pretrained(folders["static"])
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"engine": "openvino int8", "latency": [asdict(latency(4.0, off=0.02))]}))
    write_report(model, images, out, source=folders["static"], results=path)  # type: ignore[arg-type]
    assert "10.00 ms → 4.00 ms in openvino int8, batch 1, 1 thread; 60.0 % saved" in words(parsed(out))
    assert "Times were not given" not in words(parsed(out))
    path.write_text(json.dumps({"latency": [{"batch": 1, "mean": 4.0}]}))  # timed alone
    write_report(model, images, out, source=folders["static"], results=path)  # type: ignore[arg-type]
    assert "Times were not given" in words(parsed(out))


def test_what_prune_measured_stands_in_for_the_base_model(
    folders: dict[str, Path], images: LabelledImages, tmp_path: Path, out: Path
) -> None:
    model, base = from_pretrained(folders["static"]).base_model(), small("vgg11", 0.125)
    compared = compare(base, model, images, batches=(1,), pairs=2)
    made = save(model, tmp_path / "pruned", images.class_names, comparison=compared)
    write_report(made, images, out, source=tmp_path / "pruned")
    text = words(parsed(out))
    assert f"{compared.loss:.2f}" in text
    assert f"top-1 {100 * compared.top1:.2f} % instead of {100 * compared.base_top1:.2f} %" in text
    assert f"{compared.base.macs / compared.pruned.macs:.2f} times" in text
    share = (1 - compared.times[0].time_saved) / (1 - compared.own_times[0].time_saved)
    assert " ".join(times_less(share)) in tiles(parsed(out))


@pytest.mark.parametrize("quick", ["ranks", "cascade"])
def test_what_optimize_wrote_is_what_a_report_reads(
    quick: str, tiny_images: LabelledImages, images: LabelledImages, tmp_path: Path, out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """From end to end; times are made up, so that one kind is chosen."""

    monkeypatch.setattr(optimizing, "interleaved", taking(lambda name: 4.0 if name.startswith(quick) else 9.0))
    config = OptimizeConfig(
        engine="torch", images=24, methods=("ranks",), budgets=(0.6,), cuts=(0.3,), tails=(0.95,), max_loss=0.5,
        by_time=False, compiled=False,
    )  # fmt: skip
    made = optimize(small("vgg11", 0.125), tiny_images, images, config, tmp_path / "fast")
    path = tmp_path / "optimize.json"
    record = {**made.to_json(), "compiled": made.own.to_json()}
    path.write_text(json.dumps({"folder": "fast", **record}))
    model = from_pretrained(tmp_path / "fast")
    write_report(model, images, out, source=tmp_path / "fast", results=path)  # type: ignore[arg-type]
    page = parsed(out)
    body = section(page, "front").find(".//tbody")
    assert body is not None
    assert len(body) == len(made.rows)
    assert [words(line[1]) for line in body if line.get("class") == "chosen"] == [made.chosen.name]
    assert "60.0 % saved" in words(page)
    assert "your model by torch.compile: 9.00 ms" in words(page)
    if quick == "ranks":
        assert words(page.find(".//blockquote")) == str(made.promise)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "list"),
        ("{", "JSON"),
        ('{"images": 3}', "candidates or times"),
        ('{"rows": [{"name": "a"}]}', "loss"),
        ('{"rows": 3}', "as sinf wrote it"),
        ('{"times": [{"batch": 1, "base_mean": 2.0, "mean": 0.0, "time_saved": 1.0}]}', "time_saved is 1"),
    ],
)
def test_results_of_something_else_are_refused(
    content: str, says: str, built: Path, images: LabelledImages, tmp_path: Path, out: Path
) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=re.escape(says)):
        write_report(SemanticModel.from_pretrained(built), images, out, source=built, results=path)
    assert not out.exists()


# ---- folders, and what does not go together


def test_only_a_report_is_replaced(built: Path, images: LabelledImages, tmp_path: Path, out: Path) -> None:
    model = SemanticModel.from_pretrained(built)
    write_report(model, images, out, source=built)
    write_report(model, images, out, source=built)
    out.write_text("<html><body>mine</body></html>")
    with pytest.raises(ConfigError, match="only a report may be replaced"):
        write_report(model, images, out, source=built)
    assert "mine" in out.read_text()
    with pytest.raises(ConfigError, match=r"ends in \.html"):
        write_report(model, images, tmp_path / "report.pdf", source=built)
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ConfigError, match="a report is a file"):
        write_report(model, images, tmp_path / "folder.html", source=built)


def test_a_bundle_takes_no_other_base_and_images_need_labels(
    built: Path, folders: dict[str, Path], images: LabelledImages
) -> None:
    base = small("vgg11", 0.125)
    with pytest.raises(ConfigError, match="holds its base model"):
        find(SemanticModel.from_pretrained(built), images, base)
    images.labelled = False
    with pytest.raises(DataError, match="labels"):
        find(SemanticModel.from_pretrained(built), images)


def test_provenance_and_hashes_are_those_of_the_folder(built: Path, images: LabelledImages, out: Path) -> None:
    model = SemanticModel.from_pretrained(built)
    write_report(model, images, out, source=built)
    config = json.loads((built / "config.json").read_text())
    text = words(section(parsed(out), "origin"))
    for value in (*config["sha256"].values(), config["digest"], *config["provenance"].values(), images.fingerprint()):
        assert " ".join(value.split()) in text
    assert torch.__version__ in text


def test_classes_without_images_are_said_to_be_missing(built: Path, images: LabelledImages, out: Path) -> None:
    few = images.select(torch.nonzero(images.labels < 4).flatten())
    with pytest.warns(UserWarning, match="no image"):
        write_report(SemanticModel.from_pretrained(built), few, out, source=built)
    assert "2 of 6 classes have no image here" in words(parsed(out))
