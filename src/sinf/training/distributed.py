"""Several processes that train as one: the total batch is parted, sums over it are sums over all processes.

Batch norms, Gram matrices and gradients then are those of the total batch, so the result is that of one process within
rounding. Started by torchrun; one process needs none of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sinf.errors import ConfigError


class Group:
    """This process among ``world``; every operation does nothing where there is one alone."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    def share(self, batch: Tensor) -> Tensor:
        """This process's rows of a total batch (B, ...)."""
        each = len(batch) // self.world
        return batch[self.rank * each : (self.rank + 1) * each]

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes, with its gradient."""
        if self.world == 1:
            return value
        from torch.distributed.nn.functional import all_reduce

        return all_reduce(value)

    def rows(self, mine: Tensor) -> Tensor:
        """The rows of all processes in order, with their gradient: (B / world, ...) -> (B, ...)."""
        if self.world == 1:
            return mine
        before, after = self.rank * len(mine), (self.world - self.rank - 1) * len(mine)
        shape = mine.shape[1:]
        return self.total(torch.cat([mine.new_zeros(before, *shape), mine, mine.new_zeros(after, *shape)]))

    @torch.no_grad()
    def add_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Sum the gradients of all processes."""
        if self.world == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def joined(device: str = "cpu") -> Iterator[Group]:
    """The group that torchrun made of this process and others, or this process alone.

    Raises:
        ConfigError: the processes cannot find each other.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Group()
        return
    backend = "gloo" if torch.device(device).type == "cpu" else "nccl"
    try:
        dist.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError("processes must be started by torchrun", got=reason, remedy="use torchrun") from error
    try:
        yield Group(dist.get_rank(), world)
    finally:
        dist.destroy_process_group()


@contextmanager
def shared_statistics(model: nn.Module, group: Group) -> Iterator[None]:
    """While inside, batch norms take their statistics from the total batch.

    Raises:
        ConfigError: a batch norm of another library computes something of its own.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] if group.world > 1 else []
    for norm in norms:
        if not (type(norm).forward.__module__ or "").startswith("torch."):
            got = type(norm).__qualname__
            raise ConfigError("several processes need torch's own batch norms", got=got, remedy="train in one process")
    for norm in norms:
        norm.forward = partial(_normalise, norm, group)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _normalise(norm: Any, group: Group, x: Tensor) -> Tensor:
    """Batch norm (B, C, ...) over the total batch, as :class:`torch.nn.BatchNorm2d` does in training."""
    if not (norm.training or norm.running_mean is None):
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    dims = [d for d in range(x.ndim) if d != 1]
    shape = [1, -1, *([1] * (x.ndim - 2))]
    count = group.world * x.numel() / x.shape[1]
    mean = group.total(x.sum(dims)) / count
    centred = x - mean.view(shape)
    variance = group.total(centred.square().sum(dims)) / count
    if norm.training and norm.track_running_stats:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            rate = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
            norm.running_mean.lerp_(mean.detach(), rate)
            norm.running_var.lerp_(variance.detach() * count / (count - 1), rate)
    result = centred * (variance + norm.eps).rsqrt().view(shape)
    return result if norm.weight is None else result * norm.weight.view(shape) + norm.bias.view(shape)
