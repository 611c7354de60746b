"""One artefact of every kind, each of a small network for images of 32 pixels and six classes."""

from __future__ import annotations

from pathlib import Path

import torch

from sinf.data.images import LabelledImages
from sinf.dynamic.bundle import DynamicBundle
from sinf.dynamic.gates import SaliencyGate
from sinf.dynamic.network import GateConfig, attach
from sinf.models import BaseModel, load_model
from sinf.pipelines.comparison import save
from sinf.pipelines.prune import Amount, PruneConfig, prune
from tiny import randomise


def small(name: str, width: float) -> BaseModel:
    torch.manual_seed(0)
    made = load_model(name, classes=6, options={"width": width})
    randomise(made.module)
    return made


def make_static(images: LabelledImages, folder: Path, *, keep_batch_norm: bool = False) -> Path:
    config = PruneConfig(
        amount=Amount(ratio=0.3), method="channels", images=36, round_to=1, reconstruct=False, limits=None
    )
    made = prune(small("vgg11", 0.125), images, config, folder / "work")
    save(made, folder / "static", images.class_names, provenance={"seed": 0}, keep_batch_norm=keep_batch_norm)
    return folder / "static"


def make_dynamic(images: LabelledImages, folder: Path) -> Path:
    base = small("resnet20", 0.5)
    before = {key: value.clone() for key, value in base.module.state_dict().items()}
    network = attach(base, GateConfig()).eval()
    draw = torch.Generator().manual_seed(0)
    for index in range(len(network.sites)):
        gate = network.gate(index)
        assert isinstance(gate, SaliencyGate)
        gate.excite.weight.data += 0.02 * torch.randn(gate.excite.weight.shape, generator=draw)
    _, seen = network.observe(torch.randn(8, 3, 32, 32, generator=draw))
    for index, saliency in enumerate(seen.saliencies):
        network.gate(index).set_remaining(0.7, saliency.mean(0).detach())
    DynamicBundle.of(network, base.spec, before, images.class_names, {"seed": "0"}).save(folder / "dynamic")
    return folder / "dynamic"
