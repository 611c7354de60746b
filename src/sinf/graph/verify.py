"""Before a smaller network is accepted: it must compute what the base network computes with the removed channels
masked."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from sinf.errors import VerificationError
from sinf.graph.coupling import Coupling, Slot
from sinf.graph.slice import Masked

# Sums of thousands of float32 products in another order differ by this much of the largest value.
TOLERANCE = 1e-4


class _Recorder(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.values: dict[str, Tensor] = {}
        self.now: fx.Node | None = None

    def run_node(self, n: fx.Node) -> object:
        self.now = n
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.values[n.name] = value.clone()  # a later layer may work in place
        return value


class _MaskedRecorder(Masked, _Recorder):
    def __init__(self, graph: fx.GraphModule, coupling: Coupling, keep: Tensor) -> None:
        Masked.__init__(self, graph, coupling, keep)
        self.values = {}
        self.now = None


@torch.no_grad()
def verify(
    base: fx.GraphModule,
    coupling: Coupling,
    keep: Tensor,
    smaller: fx.GraphModule,
    inputs: Tensor,
    input_slot: Slot | None = None,
) -> float:
    """Compare ``smaller`` with the masked ``base`` on ``inputs`` (of the base's width) and return the largest
    difference of the outputs, relative to their largest value. ``input_slot`` tells the units of the inputs where
    ``base`` is a part of the graph that ``coupling`` was made from.

    Raises:
        VerificationError: they differ by more than rounding; the message names the first layer where they do.
    """
    slot = coupling.input if input_slot is None else input_slot
    narrow = inputs if slot is None else _kept(inputs, Slot(1, slot.units, slot.repeat), keep)
    try:
        return _compare(base, coupling, keep, smaller, inputs, narrow)
    except VerificationError as error:  # rounding adds up in deep networks: decide such a case in double precision
        try:
            return _compare(_double(base), coupling, keep, _double(smaller), inputs.double(), narrow.double())
        except VerificationError:
            raise
        except Exception:  # a network that names a precision does not run in another one
            raise error from None


def _compare(
    base: nn.Module, coupling: Coupling, keep: Tensor, smaller: nn.Module, inputs: Tensor, narrow: Tensor
) -> float:
    masked, sliced = _MaskedRecorder(base, coupling, keep), _Recorder(smaller)
    masked.run(inputs.clone())
    try:
        sliced.run(narrow.clone())
    except Exception as error:  # a layer of any library meets widths it was not made for
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise VerificationError(
            f"a sliced network must run, and this one fails at {_where(sliced.now)}",
            got=reason,
            remedy="exclude this layer from cutting and report it",
        ) from error
    final = 0.0
    for node in base.graph.nodes:
        if node.op in ("get_attr", "placeholder") or node.name not in masked.values or node.name not in sliced.values:
            continue
        slot = coupling.output if node.op == "output" else coupling.values.get(node.name)
        expected, actual = masked.values[node.name], sliced.values[node.name]
        if slot is not None:
            expected = _kept(expected, slot, keep)
        if actual.shape != expected.shape:
            raise VerificationError(
                f"the sliced network differs from the masked base model at {_where(node)}",
                got=f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}",
                remedy="exclude this layer from cutting and report it",
            )
        final = _difference(actual, expected)
        if not final <= TOLERANCE:
            raise VerificationError(
                f"the sliced network differs from the masked base model at {_where(node)}",
                got=f"a relative difference of {final:.2g}, more than {TOLERANCE:g}",
                remedy="exclude this layer from cutting and report it",
            )
    return final


def _kept(value: Tensor, slot: Slot, keep: Tensor) -> Tensor:
    """The channels that stay; a value that loses none is left alone (its channels may lie where batches differ)."""
    return value if bool(keep[slot.units].all()) else value.index_select(slot.dim, slot.index(keep))


def _difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference relative to the largest value; of masks and numbers of rows too, and of nothing at all."""
    if actual.numel() == 0:
        return 0.0
    if not actual.is_floating_point():
        actual, expected = actual.double(), expected.double()
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-6))


def _where(node: fx.Node | None) -> str:
    if node is None:
        return "its input"
    return str(node.target) if node.op == "call_module" else node.name


def _double(graph: nn.Module) -> nn.Module:
    return copy.deepcopy(graph).double()
