"""Before a smaller network is believed: it must compute what the base network computes with the removed channels masked."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from sinf.errors import VerificationError
from sinf.subgraph.coupling import Coupling, Slot
from sinf.subgraph.slice import Masked

# Sums of thousands of float32 products in another order differ by this much of the largest value.
TOLERANCE = 1e-4


class _Recorder(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.seen[n.name] = value.clone()  # a later layer may work in place
        return value


class _MaskedRecorder(Masked, _Recorder):
    def __init__(self, graph: fx.GraphModule, coupling: Coupling, keep: Tensor) -> None:
        Masked.__init__(self, graph, coupling, keep)
        self.seen = {}


@torch.no_grad()
def verify(
    base: fx.GraphModule,
    coupling: Coupling,
    keep: Tensor,
    smaller: fx.GraphModule,
    inputs: Tensor,
    input_slot: Slot | None = None,
) -> float:
    """Compare ``smaller`` with the masked ``base`` on ``inputs`` (of the base's width) and return the largest difference of
    the outputs, relative to their largest value. ``input_slot`` tells the units of the inputs where ``base`` is a part of the
    graph that ``coupling`` was made from.

    Raises:
        VerificationError: they differ by more than rounding; the message names the first layer where they do.
    """
    slot = coupling.input if input_slot is None else input_slot
    narrow = inputs if slot is None else inputs.index_select(1, slot.index(keep))
    try:
        return _compare(base, coupling, keep, smaller, inputs, narrow)
    except VerificationError:  # rounding adds up in deep networks: judge such a case in double precision
        return _compare(_double(base), coupling, keep, _double(smaller), inputs.double(), narrow.double())


def _compare(
    base: nn.Module, coupling: Coupling, keep: Tensor, smaller: nn.Module, inputs: Tensor, narrow: Tensor
) -> float:
    masked, sliced = _MaskedRecorder(base, coupling, keep), _Recorder(smaller)
    masked.run(inputs.clone())
    try:
        sliced.run(narrow.clone())
    except RuntimeError as error:
        raise VerificationError("a sliced network must run", got=str(error).splitlines()[0]) from error
    final = 0.0
    for node in base.graph.nodes:
        if node.op in ("get_attr", "placeholder") or node.name not in masked.seen or node.name not in sliced.seen:
            continue
        slot = coupling.values.get(node.name)
        if node.op == "output":
            slot = coupling.output
        expected = masked.seen[node.name]
        if slot is not None:
            expected = expected.index_select(slot.dim, slot.index(keep))
        found = sliced.seen[node.name]
        where = str(node.target) if node.op == "call_module" else node.name
        if found.shape != expected.shape:
            raise VerificationError(
                f"the sliced network differs from the masked base model at {where}",
                got=f"shape {tuple(found.shape)} instead of {tuple(expected.shape)}",
                remedy="exclude this layer from cutting and report it",
            )
        final = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
        if not final <= TOLERANCE:
            raise VerificationError(
                f"the sliced network differs from the masked base model at {where}",
                got=f"a relative difference of {final:.2g}, more than {TOLERANCE:g}",
                remedy="exclude this layer from cutting and report it",
            )
    return final


def _double(graph: nn.Module) -> nn.Module:
    return copy.deepcopy(graph).double()
