"""The program as a person meets it: every verb on tiny data, and bad input as one clear line with exit code 2."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tiny
from program import Program, build_words
from sinf.cli.models import log_epoch
from sinf.criteria import NAMES
from sinf.errors import ConfigError
from sinf.export.page import RUNTIME
from sinf.measure.timing import summary
from sinf.models import load_model
from sinf.pipelines.build import BuildConfig
from sinf.training.loop import EpochReport


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    path.write_bytes(tiny.picture(size=(40, 32)))
    return path


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Path:
    return built


def test_help_names_every_verb(sinf: Program) -> None:
    text = sinf("--help")
    for verb in ("profile", "train", "prune", "build", "eval", "predict", "bench", "results", "export", "demo"):
        assert verb in text


def test_help_of_build_lists_all_criteria(sinf: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    text = sinf("build", "--help-all")
    for name in NAMES:
        assert f"{name}," in text or f"{name}." in text


def test_profile_lists_layers_groups_and_cut_points(sinf: Program, weights: Path, tmp_path: Path) -> None:
    text = sinf("profile", "vgg11", "--weights", weights, "--json", tmp_path / "profile.json")
    for word in ("features.0", "Coupled groups", "Cut points", "MACs before"):
        assert word in text
    record = json.loads((tmp_path / "profile.json").read_text())
    assert record["macs"] == sum(layer["macs"] for layer in record["layers"])


def test_train_writes_weights_that_build_takes(sinf: Program, data: Path, tmp_path: Path) -> None:
    sinf(
        "train",
        "vgg11",
        "--width",
        0.125,
        "--data",
        data,
        "--out",
        tmp_path / "run",
        "--epochs",
        1,
        "--batch",
        30,
        "--half",
    )
    half = tmp_path / "run" / "model-half.safetensors"
    assert load_model("vgg11", weights=half).spec.options == {"width": 0.125}
    assert half.stat().st_size < 0.6 * (tmp_path / "run" / "model.safetensors").stat().st_size


def test_train_starts_from_weights_of_a_shallower_network(sinf: Program, data: Path, tmp_path: Path) -> None:
    """It says what is random, and resumes: what is random is the same then."""
    shallow = load_model("vgg11", classes=6, options={"width": 0.125})
    save_file(shallow.module.state_dict(), tmp_path / "vgg11.safetensors")
    words = ["train", "vgg13", "--width", 0.125, "--data", data, "--out", tmp_path / "run", "--epochs", 1]
    words += ["--batch", 30, "--start", tmp_path / "vgg11.safetensors"]
    code, _, err = sinf.call(*words)
    assert code == 0
    assert "at random, since the weights given lack them: features.3, features.4, features.10, features.11" in err
    written = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert (tmp_path / "run" / "epochs.csv").read_text().startswith("epoch,epochs,loss,top1,seconds\n1,1,")
    assert sinf.call(*words)[0] == 0  # nothing is left to do
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == written
    assert "one training run" in sinf.refused(*words[:-2])
    assert "must have a place in vgg13" in sinf.refused(*words[:-2], "--width", 0.25, "--start", words[-1])


def test_epochs_that_were_repeated_take_the_place_of_those_before(tmp_path: Path) -> None:
    for epoch, top1 in ((1, 0.25), (2, 0.5), (3, None), (2, 0.75)):
        log_epoch(EpochReport(epoch, 3, 1 / 3, top1, 7.0), tmp_path / "epochs.csv")
    text = (tmp_path / "epochs.csv").read_text()
    assert text == "epoch,epochs,loss,top1,seconds\n1,3,0.333333,0.25,7\n2,3,0.333333,0.75,7\n"


def test_build_then_eval_predict_and_bench(
    sinf: Program, data: Path, weights: Path, tmp_path: Path, image: Path
) -> None:
    out = tmp_path / "bundle"
    assert "threshold" in sinf(*build_words(data, weights, out)) or out.is_dir()
    assert not out.with_name("bundle.build").exists()
    text = sinf("eval", out, "--data", data, "--split", "test", "--json", tmp_path / "eval.json")
    for word in (
        "top-1",
        "top-5",
        "within the true cluster",
        "mean MACs",
        "active parameters",
        "route accuracy",
        "fallback",
        "warm",
    ):
        assert word in text
    assert json.loads((tmp_path / "eval.json").read_text())["images"] == 60
    assert "No promise for new images: on the 45 images that set the threshold" in " ".join(text.split())
    text = sinf("predict", out, image, image, "--json", tmp_path / "predict.json")
    assert text.count("image.png") == 2
    first = json.loads((tmp_path / "predict.json").read_text())["predictions"][0]
    assert first["milliseconds"] > 0
    assert len(first["classes"]) == 3
    words = ["bench", out, "--data", data, "--split", "test", "--pairs", 4, "--batch", 1, "--batch", 8]
    text = sinf(*words, "--no-energy", "--results", tmp_path / "runs")
    for word in (
        "base median", "p95", "peak memory", "bundle", "loaded in", "router.safetensors", "route predictor",
        "deferral head", "glue", "Routes", "energy: not available",
    ):  # fmt: skip
        assert word in text
    sinf(*words, "--no-energy", "--no-stages", "--results", tmp_path / "runs")
    text = sinf("results", tmp_path / "runs", "--batch", 8, "--json", tmp_path / "runs.json")
    assert text.count(" 8 ") == text.count(" torch ") == 2
    first, second = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert {first["stages"] is None, second["stages"] is None} == {True, False}
    assert first["bundle"] == "bundle"


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_bench_in_another_engine(sinf: Program, bundle: Path, data: Path, tmp_path: Path, engine: str) -> None:
    words = [
        "bench",
        bundle,
        "--data",
        data,
        "--split",
        "test",
        "--pairs",
        4,
        "--batch",
        2,
        "--engine",
        engine,
        "--no-stages",
    ]
    assert engine in sinf(*words, "--json", tmp_path / "bench.json")
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["engine"] == engine
    assert record["latency"][0]["batch"] == 2


def test_tune_stores_what_later_verbs_use(sinf: Program, bundle: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    text = sinf("tune", tmp_path / "bundle", "--turns", 1)
    assert "the full tail" in text
    assert json.loads((tmp_path / "bundle" / "times.json").read_text())["tails"][0]["engine"] == "torch"
    sinf("eval", tmp_path / "bundle", "--data", data, "--split", "test")
    int8 = ("tune", tmp_path / "bundle", "--precision", "int8", "--engine", "onnxruntime", "--turns", 1)
    assert "--data" in sinf.refused(*int8)
    assert "--data" in sinf.refused("tune", tmp_path / "bundle", "--data", data)
    sinf(*int8, "--data", data, "--calibrate", "test")
    tails = json.loads((tmp_path / "bundle" / "times.json").read_text())["tails"]
    assert [(each["engine"], each["precision"]) for each in tails] == [("torch", "f32"), ("onnxruntime", "int8")]
    assert "no/such" in sinf.refused("tune", "no/such")


def test_energy_where_the_machine_counts_it(
    sinf: Program, bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sinf.measure import energy
    from sinf.measure.energy import Energy, Meter

    rows = [Energy("fake", 2, 5.0, 0.004, 0.003, 0.25)]
    monkeypatch.setattr(energy, "find_meters", lambda: ([Meter("fake", lambda: 0.0)], ["NVML: none"]))
    monkeypatch.setattr(energy, "energy", lambda *given, **options: rows)
    words = ["bench", bundle, "--data", data, "--split", "test", "--pairs", 2, "--batch", 2, "--no-stages"]
    text = sinf(*words, "--json", tmp_path / "bench.json")
    assert "millijoules" in text
    assert "25.0 %" in text
    assert json.loads((tmp_path / "bench.json").read_text())["energy"] == [rows[0].to_json()]


def test_an_engine_that_nobody_knows(sinf: Program, bundle: Path, data: Path) -> None:
    assert "onnxruntime" in sinf.refused("bench", bundle, "--data", data, "--split", "test", "--engine", "tflite")


def test_a_build_that_is_interrupted_anywhere_ends_with_the_same_bundle(
    sinf: Program, data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    sinf(*build_words(data, weights, whole))
    from sinf.storage import steps

    write, stops = steps.write_checked, 0
    for _ in range(20):
        written = []

        def once(tensors: dict, path: Path, written: list[Path] = written) -> None:
            if written:
                raise KeyboardInterrupt  # as a kill while the second step of this run is being stored
            written.append(path)
            write(tensors, path)

        monkeypatch.setattr(steps, "write_checked", once)
        code, _, _ = sinf.call(*build_words(data, weights, tmp_path / "resumed"))
        if code == 0:
            break
        assert code == 130
        stops += 1
    assert code == 0
    assert stops >= 4
    for path in whole.iterdir():
        assert (tmp_path / "resumed" / path.name).read_bytes() == path.read_bytes()


def test_weights_of_another_architecture(sinf: Program, data: Path, weights: Path, tmp_path: Path) -> None:
    words = build_words(data, weights, tmp_path / "out")
    words[1] = "resnet20"
    line = sinf.refused(*words)
    assert "resnet20" in line
    assert "features.0" in line
    assert not (tmp_path / "out").exists()


def test_weights_that_are_no_safetensors(sinf: Program, data: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"\x80\x04K\x01.")
    assert "safetensors" in sinf.refused(*build_words(data, tmp_path / "weights.pt", tmp_path / "out"))


@pytest.mark.parametrize(
    ("clusters", "says"),
    [
        ({"warm": ["red", "orange"], "leaf": ["green", "teal"], "cold": ["blue"]}, "violet"),
        ({"warm": ["red", "orange", "blue"], "cold": ["green", "teal", "blue", "violet"]}, "blue"),
        ({"warm": ["red", "pink"]}, "pink"),
    ],
)
def test_a_cluster_file_that_is_no_partition(
    sinf: Program, data: Path, weights: Path, tmp_path: Path, clusters: dict, says: str
) -> None:
    (tmp_path / "clusters.json").write_text(json.dumps(clusters))
    line = sinf.refused(*build_words(data, weights, tmp_path / "out"), "--clusters", tmp_path / "clusters.json")
    assert says in line


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--score", "train[:0]", "split"),
        ("--calibrate", "nothing", "nothing"),
        ("--calibrate", "train", "calibration images"),
        ("--criterion", "magic", "criterion"),
        ("--macs", "1.5", "budget"),
        ("--ratios", "0.1,1.0", "ratio"),
        ("--ratios", "a", "--ratios"),
        ("--cut", "nowhere", "features"),
        ("--max-loss", "-1", "max_loss"),
        ("--confidence", "1.5", "confidence"),
        ("--label-column", "nothing", "nothing"),
        ("--cluster-column", "nothing", "nothing"),
        ("--extractor", "0", "budget"),
        ("--size", "4,32,32", "channel"),
    ],
)
def test_bad_options_of_build(
    sinf: Program, data: Path, weights: Path, tmp_path: Path, option: str, value: str, says: str
) -> None:
    line = sinf.refused(*build_words(data, weights, tmp_path / "out"), option, value)
    assert says in line
    assert not (tmp_path / "out").exists()


def test_every_option_of_build_reaches_it(
    sinf: Program, data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked for is what is built: each option, given a value of its own, changes its field and no other."""
    configs: list[BuildConfig] = []

    def stop(*given: object, **options: object) -> None:
        configs.extend(each for each in given if isinstance(each, BuildConfig))
        raise ConfigError("stopped")

    monkeypatch.setattr("sinf.pipelines.build.build", stop)
    words = build_words(data, weights, tmp_path / "out")
    changes = {
        "cut": ("--cut", "features.3"), "criterion": ("--criterion", "l2"), "macs": ("--macs", 0.7),
        "ratios": ("--ratios", "0.1,0.4"), "weight_cost": ("--weight-cost", 8), "time_in": ("--time-in", "onnxruntime"),
        "across_clusters": ("--across-clusters",), "extractor": ("--extractor", 0.6), "full_tail": ("--full-tail", 0.6),
        "route_draws": ("--route-draws", 17), "round_to": ("--round-to", 4), "reconstruct": ("--no-reconstruct",),
        "max_loss": ("--max-loss", 2.5), "confidence": ("--confidence", 0.95), "choices": ("--choices", 3),
        "seed": ("--seed", 5),
    }  # fmt: skip
    sinf.refused(*words)
    for field, change in changes.items():
        sinf.refused(*words, *change)
        assert getattr(configs[-1], field) != getattr(configs[0], field)
        assert replace(configs[-1], **{field: getattr(configs[0], field)}) == configs[0]
    for ours in (configs[i] for i, field in enumerate(changes, 1) if field == "confidence"):
        assert (ours.confidence, ours.max_loss) == (0.95, 0.9)


def test_one_budget_across_clusters(sinf: Program, data: Path, weights: Path, tmp_path: Path) -> None:
    words = build_words(data, weights, tmp_path / "out")
    assert "across clusters" in sinf.refused(*words, "--across-clusters", "--ratios", "0.1,0.5")
    sinf(*words, "--across-clusters", "--macs", "0.5", "--weight-cost", "32")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "50 % of the MACs kept, a weight counted as 32, one budget for all" in card


@pytest.mark.parametrize("threshold", ["-0.5", "3"])
def test_a_threshold_out_of_range(sinf: Program, bundle: Path, data: Path, threshold: str) -> None:
    assert "threshold" in sinf.refused("eval", bundle, "--data", data, "--split", "test", "--threshold", threshold)


def test_a_damaged_bundle(sinf: Program, bundle: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    path = tmp_path / "bundle" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors" in sinf.refused("eval", tmp_path / "bundle", "--data", data, "--split", "test")


def test_images_that_are_none(sinf: Program, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(tiny.picture()[:40])
    assert "broken.png" in sinf.refused("predict", bundle, tmp_path / "broken.png")
    assert "missing.png" in sinf.refused("predict", bundle, tmp_path / "missing.png")


def test_no_such_data_or_bundle(sinf: Program, bundle: Path, tmp_path: Path) -> None:
    assert "must exist" in sinf.refused("eval", bundle, "--data", tmp_path / "nowhere")
    assert "config.json" in sinf.refused("eval", tmp_path, "--data", tmp_path)


def test_an_unwritable_result_file(sinf: Program, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = sinf.refused("profile", "vgg11", "--weights", weights, "--json", tmp_path / "file" / "out.json")
    assert "cannot be written" in line


def test_a_model_that_nobody_knows(sinf: Program) -> None:
    assert "vgg16" in sinf.refused("profile", "vgg17")
    assert "no factory" in sinf.refused("profile", "no.such.module:factory")


def test_export_in_every_layout(sinf: Program, bundle: Path, tmp_path: Path) -> None:
    assert "answers as the bundle does" in sinf("export", bundle, tmp_path / "split")
    assert (tmp_path / "split" / "manifest.json").is_file()
    sinf("export", bundle, tmp_path / "ir", "--format", "openvino", "--threshold", 0.5)
    assert json.loads((tmp_path / "ir" / "manifest.json").read_text())["thresholds"]["value"] == 0.5
    sinf("export", bundle, tmp_path / "all.onnx", "--layout", "single")
    assert (tmp_path / "all.onnx").stat().st_size > 0


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """A folder that looks like onnxruntime-web's."""
    folder = tmp_path / "onnxruntime-web" / "dist"
    folder.mkdir(parents=True)
    for name in RUNTIME:
        (folder / name).write_text("")
    return folder.parent


def test_export_of_a_page(sinf: Program, bundle: Path, data: Path, tmp_path: Path, runtime: Path) -> None:
    text = sinf("export", bundle, tmp_path / "web", "--format", "web", "--runtime", runtime, "--data", data)
    assert "http.server" in text
    assert (tmp_path / "web" / "index.html").is_file()
    assert len(json.loads((tmp_path / "web" / "manifest.json").read_text())["gallery"]) == 24


def test_demo_serves_a_bundle_that_is_there(
    sinf: Program, bundle: Path, tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is interrupted; without the runtime it does not even begin."""

    def interrupted(server: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("http.server.ThreadingHTTPServer.serve_forever", interrupted)
    monkeypatch.chdir(tmp_path)
    assert "npm install" in sinf.refused("demo", "--web", "--out", tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "bundle").symlink_to(bundle)
    assert "http://127.0.0.1:" in sinf("demo", "--web", "--port", 0, "--runtime", runtime, "--out", tmp_path / "demo")
    assert (tmp_path / "demo" / "web" / "index.html").is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--layout", "double"], "split or single"),
        (["--format", "tflite"], "onnx, openvino or web"),
        (["--format", "web", "--layout", "split"], "leave out --layout"),
        (["--format", "web", "--runtime", "nowhere"], "npm install onnxruntime-web"),
        (["--runtime", "nowhere"], "--runtime is that of a page"),
        (["--precision", "int8"], "--data"),
        (["--precision", "bf16"], "onnxruntime computes in f32 or int8"),
        (["--precision", "int8", "--data", "nowhere", "--layout", "single"], "--layout split"),
        (["--layout", "single", "--format", "openvino"], "ONNX file"),
        (["--layout", "single"], ".onnx"),
        (["--threshold", "3"], "threshold"),
    ],
)
def test_bad_options_of_export(sinf: Program, bundle: Path, tmp_path: Path, words: list[str], says: str) -> None:
    assert says in sinf.refused("export", bundle, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_a_budget_of_the_whole_stands_alone(sinf: Program, data: Path, weights: Path, tmp_path: Path) -> None:
    words = [*build_words(data, weights, tmp_path / "bundle"), "--whole", "0.8", "--extractor", "0.9"]
    assert "whole" in sinf.refused(*words)


def prune_words(data: Path, weights: Path, out: Path) -> list[object]:
    return [
        "prune", "vgg11", "--weights", weights, "--data", data, "--test", "test", "--images", 36, "--pairs", 3,
        "--keep-anyway", "--out", out,
    ]  # fmt: skip


def test_prune_by_low_rank(sinf: Program, data: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "pruned"
    words = [*prune_words(data, weights, out), "--method", "ranks", "--round-to", 1]
    sinf(*words, "--macs", 0.7, "--json", tmp_path / "prune.json")
    record = json.loads((tmp_path / "prune.json").read_text())
    assert record["method"] == "ranks"
    assert record["pruned"]["macs"] <= 0.7 * record["base"]["macs"]
    assert "method: ranks" in (out / "README.md").read_text()
    assert "removes no channels" in sinf.refused(*words, "--ratio", 0.5)
    assert "removes no channels" in sinf.refused(*words, "--macs", 0.5, "--criterion", "l1")


def test_prune_then_profile_build_and_train(sinf: Program, data: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "pruned"
    words = [*prune_words(data, weights, out), "--macs", 0.5, "--finetune", 1, "--batch", 30, "--recalibrate"]
    text = sinf(*words, "--json", tmp_path / "prune.json")
    for word in (
        "epoch 1/1",
        "your model, as loaded",
        "base, prepared",
        "pruned, as saved",
        "top-1",
        "MACs",
        "parameters",
        "batch 1",
        "batch 32",
        "load.py",
    ):
        assert word in text
    record = json.loads((tmp_path / "prune.json").read_text())
    assert record["pruned"]["macs"] <= 0.5 * record["base"]["macs"]
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "load.py", "model.safetensors"]
    assert not out.with_name("pruned.prune").exists()
    assert "Cut points" in sinf("profile", out)
    further = ("train", out, "--data", data, "--out", tmp_path / "run", "--epochs", 1, "--batch", 30)
    sinf(*further)
    assert "its own weights" in sinf.refused(*further, "--start", weights)
    build = [out if word == "vgg11" else word for word in build_words(data, weights, tmp_path / "bundle")]
    del build[build.index("--weights") : build.index("--weights") + 2]
    sinf(*build, "--criterion", "l1")
    assert "top-1" in sinf("eval", tmp_path / "bundle", "--data", data, "--split", "test")
    assert "top-1" in sinf("eval", out, "--data", data, "--split", "test")


def test_what_does_not_pay_is_not_written(
    sinf: Program, data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network of which nothing was removed is not faster; a program reads that from the exit code 3."""
    same = {"ours": (summary(torch.full((2, 9), 10.0).double(), 1, 1),)}
    monkeypatch.setattr("sinf.pipelines.prune.time_beside", lambda *a, **k: same)
    out = tmp_path / "pruned"
    words: list[object] = [word for word in prune_words(data, weights, out) if word != "--keep-anyway"]
    words += ["--ratio", 0, "--max-loss", 100]
    code, _, err = sinf.call(*words, "--json", tmp_path / "refused.json")
    assert code == 3
    refused = json.loads((tmp_path / "refused.json").read_text())
    assert refused["does_not_pay"].startswith("a pruned network must be faster")
    assert refused["expected_loss"]["images"] == 7
    assert refused["config"]["ratio"] == 0
    line = err.splitlines()[-1]
    assert line.startswith("nothing is written: a pruned network must be faster")
    assert "batch 1" in line
    assert "points" in line
    assert not out.exists()
    assert "expected loss 0.0 points" in sinf(*words, "--keep-anyway", "--json", tmp_path / "prune.json")
    record = json.loads((tmp_path / "prune.json").read_text())
    assert record["expected_loss"]["images"] == 7
    assert record["command"].startswith("sinf prune vgg11 --weights ")
    assert "expected loss: 0.0 points" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--macs", 0.5, "--ratio", 0.5], "ratio and macs"),
        (["--ratio", 1.5], "ratio"),
        (["--macs", 0], "budget"),
        (["--macs", 0.0001], "within reach"),
        (["--latency", 1.5], "latency budget"),
        (["--ratio", 0.5, "--weight-cost", 3], "weight_cost counts MACs"),
        (["--latency", 0.5, "--weight-cost", 3], "weight_cost counts MACs"),
        (["--macs", 0.5, "--engine", "onnxruntime"], "where latency is measured"),
        (["--latency", 0.5, "--precision", "int8"], "torch computes in"),
        (["--ratio", 0.5, "--criterion", "magic"], "criterion"),
        (["--ratio", 0.5, "--finetune", 1, "--device", "abacus"], "abacus"),
        (["--ratio", 0.5, "--classes", 7], "7"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_options_of_prune(
    sinf: Program, data: Path, weights: Path, tmp_path: Path, options: list, says: str
) -> None:
    assert says in sinf.refused(*prune_words(data, weights, tmp_path / "out"), *options)
    assert not (tmp_path / "out").exists()


def test_prune_keeps_what_is_not_its_own(sinf: Program, data: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "other files" in sinf.refused(*prune_words(data, weights, tmp_path), "--ratio", 0.5)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_bundle_that_does_not_pay_is_not_written(
    sinf: Program, data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [word for word in build_words(data, weights, tmp_path / "bundle") if word != "--keep-anyway"]
    slower = {"bundle": (summary(torch.tensor([[10.0] * 9, [12.0] * 9]).double(), 1, 1),)}
    monkeypatch.setattr("sinf.measure.delivery.time_beside", lambda *a, **k: slower)
    code, _, err = sinf.call(*words, "--criterion", "l1")
    assert code == 3
    assert "20.0 % slower at batch 1" in err.splitlines()[-1]
    assert not (tmp_path / "bundle").exists()
    text = sinf(*words, "--criterion", "l1", "--keep-anyway", "--json", tmp_path / "build.json")
    assert "20.0 % slower at batch 1" in text
    assert json.loads((tmp_path / "build.json").read_text())["pays"] is False
