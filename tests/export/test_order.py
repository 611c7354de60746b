"""Clusters of any names in any order: every export answers as the bundle does, and says the clusters in its order."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sealed import tiny_bundle
from sinf import edge
from sinf.engine.torch_engine import SemanticModel
from sinf.export.page import PAGE, export_page, find_runtime
from sinf.export.single import OUTPUTS
from sinf.export.split import export_split

MEMBERS = ((0, 3), (1, 2, 5), (4,))
Partition = list[tuple[str, tuple[int, ...]]]


def stored(clusters: list[dict]) -> Partition:
    return [(each["name"], tuple(each["classes"])) for each in clusters]


#: Names that a JSON object in JavaScript would hold in another order, and names of any script.
NAMES = st.sampled_from(["10", "9", "01", "Äpfel", "zebra", "Ωμέγα", "__proto__"]) | st.text(max_size=6)


def test_exports_keep_the_order_of_clusters(tmp_path: Path, fake_runtime: Path) -> None:
    check_exports(tmp_path, fake_runtime, ["10", "zebra", "9é"], [2, 0, 1])


@pytest.mark.slow  # an export takes seconds
@settings(max_examples=10, phases=[Phase.generate])
@given(names=st.lists(NAMES, min_size=3, max_size=3, unique=True), order=st.permutations(range(3)))
def test_exports_keep_any_order_of_any_names(
    tmp_path_factory: pytest.TempPathFactory, fake_runtime: Path, names: list[str], order: list[int]
) -> None:
    check_exports(tmp_path_factory.mktemp("order"), fake_runtime, names, order)


def check_exports(folder: Path, fake_runtime: Path, names: list[str], order: list[int]) -> None:
    """Split and single export, the edge runtime and the page's files, beside the bundle that they were made from."""
    members = tuple(MEMBERS[place] for place in order)
    bundle = tiny_bundle(tuple(names), members)
    x = torch.randn(16, *bundle.spec.preprocessing.size, generator=torch.Generator().manual_seed(0))
    logits = bundle.router(SemanticModel(bundle).extractor(x))
    bundle.router.head.bias.sub_(logits.mean(0))  # so that not all images take one route
    model = SemanticModel(bundle)
    model.threshold = 0.0  # subgraphs answer
    export_split(model, folder / "split")
    export_page(model, folder / "page", find_runtime(fake_runtime))
    expected = list(zip(names, members, strict=True))

    wanted = model.route(x)
    assert len(set(wanted.route.tolist())) > 1

    light = edge.load(folder / "split")
    assert [(name, tuple(classes)) for name, classes in light.clusters.items()] == expected
    light.threshold = 0.0
    assert light.route(x.numpy()).route.tolist() == wanted.route.tolist()
    np.testing.assert_allclose(light(x.numpy()), wanted.logits, rtol=1e-3, atol=1e-3)

    single = folder / "page" / "model.onnx"  # what export_single writes
    properties = {item.key: item.value for item in onnx.load(single).metadata_props}
    assert stored(json.loads(properties["sinf"])["clusters"]) == expected
    assert stored(json.loads((folder / "page" / "manifest.json").read_text())["clusters"]) == expected
    session = onnxruntime.InferenceSession(single, providers=["CPUExecutionProvider"])
    rows = [session.run(list(OUTPUTS), {"images": image[None].numpy()}) for image in x]
    logits, route = (np.concatenate([row[place] for row in rows]) for place in (0, 1))
    assert route.tolist() == wanted.route.tolist()
    np.testing.assert_allclose(logits, wanted.logits, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here, which runs the page's script by itself")
def test_the_page_names_the_cluster_of_a_route(tmp_path: Path) -> None:
    """Names that JavaScript would sort, were they keys of an object."""
    names = ["10", "9", "zebra", "Äpfel", "1"]
    for path in PAGE.glob("*.js"):
        shutil.copy(path, tmp_path / path.name)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "run.js").write_text(
        'import fs from "node:fs"; import { Model } from "./model.js";'
        "const model = new Model(null, JSON.parse(fs.readFileSync(0)), null, null);"
        "console.log(JSON.stringify(model.clusters));"
    )
    manifest = json.dumps({"clusters": [{"name": name, "classes": [i]} for i, name in enumerate(names)]})
    done = subprocess.run(["node", "run.js"], cwd=tmp_path, input=manifest, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == names
