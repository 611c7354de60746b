"""Multiply-accumulates of what torch runs, operation by operation, by the formulas of torch's own counter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._ops import OpOverload
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten

# MACs of products that torch's counter leaves out, by what comes out and what goes in.
_MORE: dict[Any, Callable[..., int]] = {
    _aten.dot: lambda out, a, b: a.numel(),
    _aten.mv: lambda out, a, b: a.numel(),
    _aten.addmv: lambda out, added, a, b: a.numel(),
    _aten.addbmm: lambda out, added, a, b: a.numel() * b.shape[-1],
    # queries by keys, and what that makes by values; heads of keys and values may be fewer
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda out, query, key, value, *more: (
        key.shape[-2] * (query.numel() + out[0].numel())
    ),
    # (steps, B, C) of a recurrent layer, its weights by inputs and by the step before
    _aten.mkldnn_rnn_layer: lambda out, x, by_input, by_last, *more: (
        x.shape[0] * x.shape[1] * (by_input.numel() + by_last.numel())
    ),
}


class Operations(TorchDispatchMode):
    """``macs``: of all operations of this thread that ran since it was entered.

    It is what ``FlopCounterMode`` does, without the hooks on modules by which that tells them apart: these would be on
    the modules of all threads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, operation = kwargs or {}, func.overloadpacket
        if operation not in flop_registry and operation not in _MORE:
            with self:  # in inference mode, operations that are made of others arrive here as one
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if operation in _MORE:
            self.macs += _MORE[operation](out, *args)
        elif operation in flop_registry:
            self.macs += flop_registry[operation](*args, **kwargs, out_val=out) // 2
        return out


@contextmanager
def counted() -> Iterator[Operations]:
    """Counts what runs inside. Attention layers of torch have one operation for all that they do, which none counts;
    they leave it alone where functions are overridden, even by a mode that changes nothing."""
    with BaseTorchFunctionMode(), Operations() as operations:
        yield operations
