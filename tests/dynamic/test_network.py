"""Gates on any network by one call: where they stand, what they do to the input of layers, and what blocks others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from gated import DEEP, cut, gated, gated_as_it_is
from sinf.dynamic.network import GatedNetwork, attach
from sinf.errors import ConfigError, CutError
from sinf.graph.slice import Masked
from sinf.models import BaseModel, ModelSpec, load_model
from tiny import (
    CLASSES,
    COLOUR,
    NETWORKS,
    AllShuffled,
    Chain,
    Concat,
    Depthwise,
    Grouped,
    HalfShuffled,
    Mixed,
    Residual,
    Shared,
    Windows,
    conv,
    randomise,
)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (Chain, ["second.0"]),
        (Residual, ["inner.0.0", "inner.1"]),
        (Depthwise, ["project.0"]),
        (Concat, ["join.0"]),
        (Grouped, []),
        (HalfShuffled, ["free.0", "last.0"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_sites(module: type[nn.Module], names: list[str]) -> None:
    if not names:
        with pytest.raises(CutError, match="images"):
            gated(module())
    else:
        assert [site.name for site in gated(module()).sites] == names


class MaskedBranches(Masked):
    """The masked base model, ends of residual branches too."""

    def __init__(self, network: GatedNetwork, keep: Tensor) -> None:
        super().__init__(network.graph, network.coupling, keep)
        self.ends = {site.branch[-1]: keep[site.units] for site in network.sites if site.branch}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        keep = self.ends.get(str(n.target))
        return value if keep is None else value * keep[:, None, None]


@pytest.mark.parametrize("binary", [False, True], ids=["scaled", "binary"])
@torch.no_grad()
def test_one_input_sees_the_base_model_without_its_channels(binary: bool) -> None:
    """With binary masks a gated network is the masked base model of each input: the law of all subgraphs."""
    network = cut(gated(Mixed(DEEP), mask="binary" if binary else "scaled"))
    x = torch.randn(6, *COLOUR.size)
    logits, seen = network.observe(x)
    keep = network.keep(seen)
    assert 0 < int((~keep).sum()) < keep.numel()
    assert len({tuple(row.tolist()) for row in keep}) > 1
    network.enabled = False
    equal = [
        torch.allclose(MaskedBranches(network, k).run(image[None])[0], ours, atol=1e-4)
        for k, image, ours in zip(keep, x, logits, strict=True)
    ]
    assert all(equal) if binary else not any(equal)


@torch.no_grad()
def test_a_scaled_mask_multiplies_what_the_next_layer_reads() -> None:
    network = cut(gated(Chain()))
    module, x = network.model, torch.randn(4, *COLOUR.size)
    ours, seen = network.observe(x)
    network.enabled = False
    first = module.first(x)
    gate = network.gate(0)
    saliency = gate.excite(gate.squeeze(first.mean((2, 3))).relu()).relu()
    mask = saliency * (saliency >= gate.threshold)
    second = module.pool(module.second(first)) * mask[:, :, None, None]
    assert torch.allclose(seen.masks[0], mask, atol=1e-5)
    assert torch.allclose(module.head(second.flatten(1)), ours, atol=1e-5)


@torch.no_grad()
def test_features_are_those_before_the_mask() -> None:
    network = cut(gated(Residual()))
    network.wants_features = True
    x = torch.randn(4, *COLOUR.size)
    _, seen = network.observe(x)
    network.enabled = False
    expected = network.model.inner[0](network.model.stem(x)).mean((2, 3))
    assert torch.allclose(seen.features[0], expected, atol=1e-5)


@torch.no_grad()
def test_without_gates_it_is_the_base_model_again() -> None:
    module = randomise(Mixed(DEEP))
    x = torch.randn(4, *COLOUR.size)
    expected = module(x)
    network = cut(attach(BaseModel(module, ModelSpec("tiny", CLASSES, COLOUR))))
    assert not torch.allclose(network(x), expected, atol=1e-3)
    network.enabled = False
    assert torch.equal(network(x), expected)
    network.enabled = True
    assert torch.equal(network.detach()(x), expected)


@torch.no_grad()
def test_macs_are_those_of_the_smaller_network() -> None:
    network = cut(gated(Mixed(DEEP)))
    _, seen = network.observe(torch.randn(5, *COLOUR.size))
    keep = network.keep(seen)
    assert network.macs_of(keep).tolist() == [network._count.total(k) + network.gate_macs() for k in keep]


def test_neighbours_of_a_block_stay_or_go_together() -> None:
    network = cut(gated(Mixed(["plain", "plain"], width=8), block=2))
    _, seen = network.observe(torch.randn(6, *COLOUR.size))
    assert [s.shape[1] for s in seen.saliencies] == [5, 4, 5, 4]  # of 5 and 8 channels: blocks must fit
    keep = network.keep(seen)
    for site in network.sites:
        if site.size == 8:
            assert torch.equal(keep[:, site.units[::2]], keep[:, site.units[1::2]])


@torch.no_grad()
def test_training_starts_from_the_base_model() -> None:
    module = randomise(Mixed(DEEP))
    x = torch.randn(3, *COLOUR.size)
    before = module.eval()(x)
    assert torch.equal(gated_as_it_is(module)(x), before)


def test_the_end_of_a_branch_is_masked_before_the_sum() -> None:
    network = cut(gated(Residual()))
    branch = network.sites[1]
    assert branch.branch == ("inner.1",)
    x = torch.randn(4, *COLOUR.size)
    made: list[Tensor] = []
    network.model.inner[1].register_forward_hook(lambda module, args, out: made.append(out))
    with torch.no_grad():
        _, seen = network.observe(x)
    gone = ~network.keep(seen)[:, branch.units]
    assert 0 < int(gone.sum()) < gone.numel()
    assert float(made[0][gone].abs().max()) == 0.0
    count = network._count.by_layer(network.keep(seen)[0])
    kept = [int(network.keep(seen)[0][site.units].sum()) for site in network.sites]
    assert count["inner.1"] == 64 * kept[0] * kept[1]


def test_saliencies_that_grow_do_not_stand_around_a_sum() -> None:
    assert [site.name for site in gated(Residual(), kind="fbs").sites] == ["inner.0.0"]


def test_sites_can_be_named() -> None:
    network = gated(Mixed(["plain", "plain"]), sites=("pieces.1.body.0.0",))
    assert [site.name for site in network.sites] == ["pieces.1.body.0.0"]


@pytest.mark.parametrize(
    ("module", "name", "reason"),
    [
        (Residual(), "stem.0", "summed"),
        (Mixed(["plain"]), "stem.0", "images"),
        (Mixed(["plain"]), "nothing", "no convolution of that name"),
        (HalfShuffled(), "moved.0", "view"),
        (Mixed(["plain", "gate"]), "pieces.1.body.0", "one position"),
        (nn.Sequential(Mixed(["plain"])), "0.stem.0", "images"),
        (nn.Sequential(conv(3, 4), conv(4, 3), Windows()), "2.local.0.0", "windows"),
    ],
    ids=["sum", "stem", "unknown", "shuffle", "squeeze", "nested", "windows"],
)
def test_what_is_blocked_is_named(module: nn.Module, name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        gated(module, sites=(name,))


@pytest.mark.parametrize("module", [AllShuffled, Shared], ids=["shuffled", "called twice"])
def test_a_network_without_a_place_for_a_gate_is_refused(module: type[nn.Module]) -> None:
    with pytest.raises(CutError, match="can be gated"):
        gated(module())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_tiny_network_runs_with_gates_or_says_why_not(name: str) -> None:
    if name in ("Grouped", "Scaled", "Shared", "Spatial", "ChannelsLast"):  # one layer on the images, sums, two calls
        with pytest.raises(CutError, match="can be gated"):
            gated(NETWORKS[name]())
    else:
        assert gated(NETWORKS[name]())(torch.randn(2, *COLOUR.size)).shape == (2, CLASSES)


@pytest.mark.parametrize(
    "name",
    [
        "vgg11", "resnet20", "resnet50", "torchvision:resnet18", "torchvision:mobilenet_v2", "timm:resnet18",
        "torchvision:mobilenet_v3_small", "timm:mobilenetv2_050", "timm:mobilenetv3_small_050",
    ],
)  # fmt: skip
def test_published_networks_train_with_gates(name: str) -> None:
    """Gates get a gradient in the model's own training mode, and nobody edited the model."""
    small = {"options": {"width": 0.25}} if ":" not in name else {"size": (3, 64, 64)}
    base = load_model(name, pretrained=False, classes=5, **small)
    network = attach(base).train()
    logits, seen = network.observe(torch.randn(2, *base.spec.preprocessing.size))
    (logits.square().sum() + sum(s.sum() for s in seen.saliencies)).backward()
    missing = [n for n, p in network.gates.named_parameters() if p.grad is None]
    assert missing == []
    assert len(network.sites) >= 5


def test_a_gate_stands_before_what_it_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate of a layer reads that layer's own, already masked, input."""
    network = cut(gated(Mixed(["plain", "plain"])))
    read: list[Tensor] = []
    index = next(i for i, site in enumerate(network.sites) if site.name == "pieces.0.body.1")
    gate = network.gate(index)
    monkeypatch.setattr(gate, "forward", lambda x: read.append(x) or gate.saliency(gate.pool(x)))
    _, seen = network.observe(torch.randn(3, *COLOUR.size))
    gone = seen.masks[index - 1] == 0
    assert bool(gone.any())
    assert float(read[0].detach().mean((2, 3))[gone].abs().max()) == 0
