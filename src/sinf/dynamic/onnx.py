"""A dynamically pruned network in ONNX Runtime: weights are computed from what gates keep.

    images (1, C, H, W) -> logits (1, classes)

Plain operators: a gate becomes what it writes (:class:`sinf.dynamic.gates.Gate`), for the paper's ``ReduceMean`` and
two products, and then ``NonZero``; the convolutions at both ends of a site read ``Gather`` of their weights. The batch
is one image, because the kept channels are those of one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, fx, nn

from sinf.dynamic.model import DynamicModel
from sinf.dynamic.operators import Operators
from sinf.engine.engines import runtime_of
from sinf.engine.onnx_parts import graph_to_onnx
from sinf.engine.runtime import Network, Setting
from sinf.errors import ConfigError, ModelError, VerificationError
from sinf.graph.prepare import prepare
from sinf.graph.trace import trace
from sinf.models import fit_state, load_spec
from sinf.storage.files import replacing

if TYPE_CHECKING:
    import onnx

_SAMPLES, _TOLERANCE = 8, 1e-3


def open_engine(model: DynamicModel, engine: str, threads: int) -> tuple[Network, Network]:
    """Base model and bundle as functions of normalised images, in the same engine; of one image each, but in those that
    run networks as they are written (:func:`largest_batch`).

    Raises:
        ConfigError: there is no such engine, or it runs no dynamic networks.
        DependencyError: its package is missing.
        ModelError: the model has a layer that an ONNX graph cannot hold.
    """
    runtime, setting, size = runtime_of(engine), Setting(threads), model.bundle.spec.preprocessing.size
    if runtime.eager:
        return runtime.open_network(model.base, size, setting), runtime.open_network(model, size, setting)
    base = runtime.open_graph(lambda: graph_to_onnx(model.base, size, 1), setting)
    return base, runtime.open_graph(lambda: to_onnx(model), setting)


def largest_batch(engine: str) -> int | None:
    """How many images at once :func:`open_engine` runs there, None for any number."""
    return None if runtime_of(engine).eager else 1


def export(model: DynamicModel, path: str | Path) -> None:
    """Write a bundle as one file.

    Raises:
        ConfigError: the name does not end in .onnx.
        ModelError: the model has a layer that this form cannot hold.
        VerificationError: the file does not answer as the bundle does.
        StorageError: it cannot be written; what was there stays.
    """
    path = Path(path)
    if path.suffix != ".onnx" or path.is_dir():
        raise ConfigError("a dynamic bundle is exported to one file that ends in .onnx", got=path)
    graph = to_onnx(model)
    run = runtime_of("onnxruntime").open_graph(lambda: graph, Setting())
    images = torch.randn(_SAMPLES, *model.bundle.spec.preprocessing.size, generator=torch.Generator().manual_seed(0))
    for image in images:
        wanted = model(image[None]).numpy()
        gap = float((np.abs(run(image[None].numpy()) - wanted) / (1 + np.abs(wanted))).max())
        if not gap <= _TOLERANCE:
            got = f"a difference of {gap:.2g}"
            remedy = "report it; of gates of your own, compare what write_pool, write_saliency and write_keep write"
            raise VerificationError("the export must answer as the bundle does", got=got, remedy=remedy)
    with replacing(path) as partial:
        partial.write_bytes(graph.SerializeToString())


def to_onnx(model: DynamicModel) -> onnx.ModelProto:
    """The graph of :func:`export`."""
    state = {key[6:]: value for key, value in model.bundle.state.items() if key.startswith("model.")}
    module = load_spec(model.bundle.spec, state)
    fit_state(module, state, model.bundle.spec.name)
    size = model.bundle.spec.preprocessing.size
    graph = prepare(trace(module.requires_grad_(False), model.bundle.spec.preprocessing))
    followers = _followers(model, graph)
    _write_means(graph)
    made = graph_to_onnx(graph, size, 1)
    _Rewriter(model, made.graph, followers).run()
    return made


def _write_means(graph: fx.GraphModule) -> None:
    """Pooling to one position is a mean: torch writes the pool with the number of channels in it."""
    one = (1, (1, 1), [1, 1])
    for name, layer in list(graph.named_modules()):
        if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in one:
            graph.set_submodule(name, _Mean())
    for node in graph.graph.nodes:
        pools = node.op == "call_function" and node.target is nn.functional.adaptive_avg_pool2d
        if pools and (node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size")) in one:
            node.target, node.args, node.kwargs = _mean, node.args[:1], {}
    graph.recompile()


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _mean(x)


def _followers(model: DynamicModel, graph: fx.GraphModule) -> dict[str, int]:
    """Layers that make units of a site beside its own convolution, by name: depthwise convolutions, and the last layer
    of squeeze and excite. Whatever the rewriting below does not know is refused by name."""
    network = model.network
    layers = {str(node.target) for node in graph.graph.nodes if node.op in ("call_module", "get_attr")}
    modules = dict(graph.named_modules())
    followers: dict[str, int] = {}
    for index, site in enumerate(network.sites):
        left = [
            target for target in site.branch[1:] if target in layers and not isinstance(modules[target], nn.Identity)
        ]
        if left:
            _refuse(left[0], modules[left[0]])  # a norm that was not folded
        for target, slot in network.coupling.writes.items():
            if target in layers and target != site.name and bool(torch.isin(slot.units, site.units).any()):
                followers[target] = index
        mine = [target for target, of in followers.items() if of == index]
        for target in (site.name, *site.consumers, *mine):
            if target not in modules:
                continue  # a tensor, as of a norm that was not folded
            layer = modules[target]
            slots = [s for s in (network.coupling.reads.get(target), network.coupling.writes.get(target)) if s]
            mixed = any(0 < int(torch.isin(s.units, site.units).sum()) < len(s.units) or s.repeat > 1 for s in slots)
            grouped = getattr(layer, "groups", 1) not in ((1, slots[0].units.numel()) if target in mine else (1,))
            if mixed or grouped or not isinstance(layer, (nn.Linear, nn.Conv2d)):
                _refuse(target, layer)
    return followers


def _refuse(target: str, layer: nn.Module) -> None:
    raise ModelError(
        "dynamic ONNX graphs hold gates of convolutions whose channels plain, depthwise and linear layers read",
        got=f"{type(layer).__name__} at {target}",
        remedy="gate others (--site), or run the bundle in torch",
    )


class _Rewriter(Operators):
    """Puts gates and gathered weights into the graph of the base model."""

    def __init__(self, model: DynamicModel, graph: onnx.GraphProto, followers: dict[str, int]) -> None:
        super().__init__()
        self.network, self.graph, self.followers = model.network, graph, followers
        self.names = {tensor.name for tensor in graph.initializer}
        self.index: dict[int, str] = {}  # by site: (k,) kept channels
        self.scale: dict[int, str] = {}  # by site: (1, k)
        self.produced = {site.name: i for i, site in enumerate(self.network.sites)}
        self.read = {t: i for i, site in enumerate(self.network.sites) for t in site.consumers}

    def run(self) -> None:
        for node in list(self.graph.node):
            target = self._target(node)
            if node.op_type == "Reshape":
                self._free(node)
            if target in self.followers and _grouped(node):
                self._depthwise(node, self.followers[target])
                continue
            if target is not None:
                self._layer(node, target)
                site = self.produced.get(target)
                if site is not None and self.network.sites[site].branch:
                    self._branch(node, site)
                    continue
            elif node.op_type == "BatchNormalization":
                self._norm(node)
            self.nodes.append(node)
        missing = self.produced.keys() - {self.network.sites[i].name for i in self.index}
        if missing:
            raise ModelError("gated layers must be in the exported graph", got=sorted(missing)[0])
        used = {name for node in self.nodes for name in node.input}
        left = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.node[:], self.graph.value_info[:], self.graph.initializer[:]
        self.graph.initializer.extend(left)
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend(self.constants)

    def _target(self, node: onnx.NodeProto) -> str | None:
        """The layer that a node computes, if it is at one end of a site."""
        for name in node.input[1:2]:
            target = name.removesuffix(".weight")
            at_site = target in self.produced or target in self.read or target in self.followers
            if name in self.names and target != name and at_site:
                return target
        return None

    def _free(self, node: onnx.NodeProto) -> None:
        """Flattening keeps the image and takes whatever is there."""
        from onnx import numpy_helper

        for tensor in self.graph.initializer:
            if tensor.name == node.input[1]:
                shape = numpy_helper.to_array(tensor)
                if len(shape) == 2 and shape[0] == 1:
                    node.input[1] = self.integers(1, -1)

    def _layer(self, node: onnx.NodeProto, target: str) -> None:
        into, out = self.read.get(target), self.produced.get(target)
        made = self.followers.get(target, out)
        weight = node.input[1]
        if into is not None:
            factor = self.scale[into]
            if node.op_type == "Conv":
                factor = self.op("Unsqueeze", [factor, self.integers(2, 3)])
            node.input[0] = self.op("Mul", [node.input[0], factor])
        if out is not None:
            self._gate(out, node.input[0], into)
        if made is not None:
            weight = self.op("Gather", [weight, self.index[made]], axis=0)
            if len(node.input) > 2:
                node.input[2] = self.op("Gather", [node.input[2], self.index[made]], axis=0)
        if into is not None:
            across = 1 if node.op_type == "Conv" or _transposed(node) else 0
            weight = self.op("Gather", [weight, self.index[into]], axis=across)
        node.input[1] = weight

    def _norm(self, node: onnx.NodeProto) -> None:
        for place, name in enumerate(node.input):
            if name in self.followers:
                node.input[place] = self.op("Gather", [name, self.index[self.followers[name]]], axis=0)

    def _depthwise(self, node: onnx.NodeProto, site: int) -> None:
        """All channels go through, because the number of groups is a constant in ONNX: zeros where none is kept."""
        from onnx import helper

        name = node.output[0]
        node.input[0], node.output[0] = self._whole(node.input[0], site), f"{name}/all"
        self.nodes.append(node)
        kept = helper.make_node("Gather", [node.output[0], self.index[site]], [name], name=f"{name}/kept", axis=1)
        self.nodes.append(kept)

    def _branch(self, node: onnx.NodeProto, site: int) -> None:
        """Kept channels scaled, zeros where the others were, for the sum that follows."""
        from onnx import helper

        name = node.output[0]
        node.output[0] = f"{name}/kept"
        self.nodes.append(node)
        scaled = self.op("Mul", [node.output[0], self.op("Unsqueeze", [self.scale[site], self.integers(2, 3)])])
        whole = self._whole(scaled, site)
        self.nodes.append(helper.make_node("Identity", [whole], [name], name=f"{name}/whole"))

    def _whole(self, x: str, site: int) -> str:
        """``(1, k, H, W) -> (1, C, H, W)``: kept channels where they belong among zeros."""
        first, column = self.integers(0), self.integers(1)
        image = self.op("Squeeze", [x, first])
        extent = self.op("Slice", [self.op("Shape", [image]), column, self.integers(3)])
        size = self.integers(self.network.sites[site].size)
        zeros = self.op("ConstantOfShape", [self.op("Concat", [size, extent], axis=0)])
        positions = self.op("Unsqueeze", [self.index[site], column])
        return self.op("Unsqueeze", [self.op("ScatterND", [zeros, positions, image]), first])

    def _gate(self, site: int, x: str, into: int | None) -> None:
        gate, blocks = self.network.gate(site), self.network.blocks[site].numpy()
        if (fixed := gate.fixed()) is not None:
            self._fixed(site, gate.mask(fixed[None])[0].detach().cpu().numpy()[blocks])
            return
        saliency = gate.write_saliency(self, gate.write_pool(self, x), None if into is None else self.index[into])
        keep = gate.write_keep(self, saliency)
        if len(set(blocks.tolist())) < len(blocks):
            spread = self.integers(*blocks.tolist())
            saliency, keep = (self.op("Gather", [value, spread], axis=1) for value in (saliency, keep))
        best = self.op("ArgMax", [saliency], axis=1, keepdims=1)
        positions = self.constant(np.arange(len(blocks), dtype=np.int64)[None])
        either = self.op("Or", [keep, self.op("Equal", [positions, best])])  # one channel at least
        self.index[site] = self.op(
            "Gather", [self.op("NonZero", [either]), self.constant(np.array(1, np.int64))], axis=0
        )
        if gate.binary:
            mask = self.op("Cast", [keep], to=1)
        else:
            mask = self.op("Where", [keep, saliency, self.constant(np.zeros(1, np.float32))])
        self.scale[site] = self.op("Gather", [mask, self.index[site]], axis=1)

    def _fixed(self, site: int, mask: np.ndarray) -> None:
        """The same channels for every input, one at least."""
        kept = np.flatnonzero(mask > 0) if mask.any() else np.zeros(1, np.int64)
        self.index[site], self.scale[site] = self.integers(*kept), self.constant(mask[None, kept])


def _grouped(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)


def _transposed(node: onnx.NodeProto) -> bool:
    return node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
