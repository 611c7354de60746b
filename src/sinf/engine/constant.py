"""What a loaded bundle is to torch: a constant function in float32 on the processor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from sinf.errors import ConfigError

Own = TypeVar("Own", bound="ConstantModule")


class ConstantModule(nn.Module):
    """Base of loaded bundles: a module with nothing for torch to train, move or store.

    What it holds is not registered with torch, because no part of it may change without the others: thresholds hold
    for these weights in this arithmetic. So a module of one's own may hold it: ``train()``, ``state_dict()``,
    ``parameters()`` and ``load_state_dict()`` of that module pass it by, and it stays in eval mode. What is asked of
    it itself is done where it changes nothing (``eval()``, ``to("cpu")``, ``float()``, ``parameters()`` to count or
    to look at, all of them without gradients); all else is a ``ConfigError``.
    """

    def held(self) -> dict[str, nn.Module]:
        """The modules whose parameters and buffers are those of this one, by a prefix of their names."""
        raise NotImplementedError

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def train(self: Own, mode: bool = True) -> Own:
        """Stay in eval mode, whatever ``mode`` is: a module that holds this one may be trained."""
        return self

    def requires_grad_(self: Own, requires_grad: bool = True) -> Own:
        if requires_grad:
            _refuse("is not trained", "requires_grad_(True)", "train the base model, and build again")
        return self

    def _apply(self: Own, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Own:
        try:
            probe = fn(torch.zeros(1, 1, 1, 1))
        except Exception as error:  # a device that is not there: torch raises what it likes
            got = str(error).strip().splitlines()[0]
        else:
            if (probe.dtype, probe.device.type) == (torch.float32, "cpu"):
                return self
            got = f"{probe.dtype} on {probe.device}"
        _refuse("computes in float32 on the processor", got, "take sinf.engine.engines.open_engine with a precision")

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Frozen, and in parts of this module: there is none without ``recurse``."""
        yield from self._named("named_parameters", prefix, recurse, remove_duplicate)

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """As :meth:`named_parameters`."""
        yield from self._named("named_buffers", prefix, recurse, remove_duplicate)

    def _named(self, what: str, prefix: str, recurse: bool, remove_duplicate: bool) -> Iterator[tuple[str, Any]]:
        ids: set[int] = set()  # parts may share tensors
        for name, module in self.held().items() if recurse else ():
            inner = f"{prefix}.{name}" if prefix else name
            for path, tensor in getattr(module, what)(inner, remove_duplicate=remove_duplicate):
                if not remove_duplicate or id(tensor) not in ids:
                    ids.add(id(tensor))
                    yield path, tensor

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Of a module that holds this one: without anything of this one.

        Raises:
            ConfigError: it is asked of this module itself.
        """
        if destination is None and not args:
            _refuse("is stored as a folder", "state_dict()", "call save_pretrained")
        return args[0] if args else destination

    def load_state_dict(self, *args: Any, **options: Any) -> NoReturn:
        _refuse("is loaded from a folder", "load_state_dict()", "call from_pretrained")


def _refuse(rule: str, got: str, remedy: str) -> NoReturn:
    raise ConfigError(f"a bundle {rule}", got=got, remedy=remedy)
