"""What is left of every layer adds up to what parts cost, and names the ranks that layers were given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from artefacts import small
from sinf.dynamic.model import DynamicModel
from sinf.engine.torch_engine import SemanticModel
from sinf.graph.delta import Factors
from sinf.graph.network import Part
from sinf.load import from_pretrained
from sinf.measure.accuracy import Costs
from sinf.measure.plain import Size
from sinf.pipelines.kept import kept_of_bundle, kept_of_dynamic, kept_of_plain


@pytest.mark.parametrize("kind", ["built", "built_ranks", "built_cascade", "built_depth", "built_sparse"])
def test_layers_add_up_to_their_part(kind: str, request: pytest.FixtureRequest) -> None:
    model = SemanticModel.from_pretrained(request.getfixturevalue(kind))
    costs, names = Costs.of(model).macs, model.bundle.clusters.names
    parts = kept_of_bundle(model.bundle, model.network)
    assert [part.name for part in parts] == ["extractor", "full tail", *names]
    expected = [value for name, value in costs.items() if name != "router"]
    assert [sum(layer.macs or 0 for layer in part.layers) for part in parts] == expected
    assert [part.subgraph for part in parts] == [False, False, *[True] * len(names)]
    base = [sum(layer.base_macs or 0 for layer in part.layers) for part in parts[:2]]
    assert sum(base) == costs_of_base(model)


def costs_of_base(model: SemanticModel) -> int:
    return model.network.macs.total()


def test_ranks_are_those_of_the_factors(built_ranks: Path) -> None:
    model = SemanticModel.from_pretrained(built_ranks)
    parts = {part.name: part for part in kept_of_bundle(model.bundle, model.network)}
    factors = {name: d for name, d in model.bundle.parts["full_tail"].layers.items() if isinstance(d, Factors)}
    assert factors
    ranks = {layer.name: layer.rank for layer in parts["full tail"].layers if layer.rank is not None}
    assert ranks == {name: len(each.reduce) for name, each in factors.items()}
    assert all(layer.rank <= layer.full_rank for part in parts.values() for layer in part.layers if layer.rank)  # type: ignore[operator]


def test_channels_are_those_that_stay(built: Path) -> None:
    model = SemanticModel.from_pretrained(built)
    part, network = model.bundle.parts["cluster000"], model.network
    shown = kept_of_bundle(model.bundle, network)[2]
    assert any(layer.width is not None and layer.width < 1 for layer in shown.layers)
    for layer in shown.layers:
        assert layer.channels == len(network.coupling.writes[layer.name].index(part.keep))
        assert layer.base_channels == len(network.coupling.writes[layer.name].units)


def test_nothing_removed_is_all_kept(built: Path) -> None:
    from dataclasses import replace

    model = SemanticModel.from_pretrained(built)
    whole = Part(model.network.coupling.keep_all())
    parts = kept_of_bundle(replace(model.bundle, parts={**model.bundle.parts, "full_tail": whole}), model.network)
    assert parts[1].cost == 1
    assert {layer.cost for layer in parts[1].layers} == {1.0}


def test_a_plain_network_beside_its_base_by_name(folders: dict[str, Path]) -> None:
    model = from_pretrained(folders["static"]).base_model()
    base = small("vgg11", 0.125)
    (alone,), (beside,) = kept_of_plain(model, None), kept_of_plain(model, base)
    assert alone.cost is None
    assert sum(layer.macs or 0 for layer in alone.layers) == Size.of(model).macs
    assert beside.cost == pytest.approx(Size.of(model).macs / Size.of(base).macs)
    assert all(layer.base_channels is not None for layer in beside.layers)


def test_gates_keep_shares_of_channels(folders: dict[str, Path]) -> None:
    network = DynamicModel.from_pretrained(folders["dynamic"]).network
    (part,) = kept_of_dynamic(network, torch.full((len(network.sites),), 0.25))
    assert [layer.width for layer in part.layers] == [0.25] * len(network.sites)
    assert part.cost is None
