"""Ridge regression in one pass: normal equations are summed row by row, and the damping is found on held-out rows."""

from __future__ import annotations

import torch
from torch import Tensor

_FIRST, _STEP, _LEAST, _MOST = 3e-3, 3.0, 1e-4, 1.0
_BLOCKS, _LEAST_BLOCK = 8, 256
_WAITING = 1 << 22  # numbers of rows that wait, so that the float64 sums are touched once for many


class NormalEquations:
    """Sums over rows ``x`` (k) and ``y`` (o) for the M (o, k) of least E||y - M x||^2 + damping * level * ||M - P||^2.

    The level is the mean second moment of x; the prior P is what M is held near.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        # Of rows that fit, and of held-out ones. A gram matrix is symmetric: only blocks on and below its diagonal are
        # summed, which is little more than half of the work.
        self._gram = torch.zeros(2, inputs, inputs, dtype=torch.float64)
        self._cross = torch.zeros(2, outputs, inputs, dtype=torch.float64)
        self._waiting: tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]] = ([], [])
        self.rows = [0, 0]

    @property
    def gram(self) -> Tensor:
        """``(2, k, k)`` float64, on and below the diagonal: sums of x x' over rows that fit, and over held-out ones."""
        self._sum_waiting()
        return self._gram

    @property
    def cross(self) -> Tensor:
        """``(2, o, k)`` float64: sums of y x' over rows that fit, and over held-out ones."""
        self._sum_waiting()
        return self._cross

    def add(self, x: Tensor, y: Tensor, *, held_out: bool = False) -> None:
        """Add ``x`` (rows, k) and ``y`` (rows, o), which must not change before the sums are read."""
        part = int(held_out)
        self._waiting[part].append((x, y))
        self.rows[part] += len(x)
        if sum(len(rows) for rows, _ in self._waiting[part]) * (x.shape[1] + y.shape[1]) >= _WAITING:
            self._sum(part)

    def _sum_waiting(self) -> None:
        for part, waiting in enumerate(self._waiting):
            if waiting:
                self._sum(part)

    def _sum(self, part: int) -> None:
        waiting = self._waiting[part]
        x, y = waiting[0] if len(waiting) == 1 else (torch.cat(each) for each in zip(*waiting, strict=True))
        waiting.clear()
        size = x.shape[1]
        block = max(_LEAST_BLOCK, -(-size // _BLOCKS))
        for first in range(0, size, block):
            last = min(first + block, size)
            self._gram[part, first:last, :last] += x[:, first:last].T @ x[:, :last]
        self._cross[part] += y.T @ x

    def moments(self) -> Tensor:
        """``(k, k)``: mean of x x' over all rows."""
        return _mirrored(self.gram.sum(0)) / max(1, sum(self.rows))

    def solve(self, prior: Tensor, damping: float | None = None) -> Tensor:
        """``(o, k)`` from all rows, near ``prior`` (o, k). ``damping`` None: the one with the least error on held-out
        rows, when the others alone are fitted."""
        if damping is None:
            damping = self._cross_validated(prior.double()) if all(self.rows) else _FIRST
        return _ridge(self.gram.sum(0), self.cross.sum(0), prior.double(), damping).float()

    def _cross_validated(self, prior: Tensor) -> float:
        """Walk from a usual value, up or down, as long as the held-out error falls."""
        held_out = _mirrored(self.gram[1])

        def error(damping: float) -> float:
            m = _ridge(self.gram[0], self.cross[0], prior, damping)
            return float(((m @ held_out - 2 * self.cross[1]) * m).sum())

        best, least = _FIRST, error(_FIRST)
        for factor in (_STEP, 1 / _STEP):
            damping = best * factor
            while _LEAST <= damping <= _MOST and (reached := error(damping)) < least:
                best, least = damping, reached
                damping *= factor
            if best != _FIRST:
                break
        return best


def _ridge(gram: Tensor, cross: Tensor, prior: Tensor, damping: float) -> Tensor:
    """``gram`` is read on and below its diagonal."""
    level = damping * torch.diagonal(gram).mean().clamp(min=1e-12)
    system = gram.clone()
    system.diagonal().add_(level)
    right = (cross + level * prior).T
    factor, failed = torch.linalg.cholesky_ex(system)
    # Hardly damped, rounding can leave a system of dependent channels just below positive definite.
    return (torch.linalg.solve(_mirrored(system), right) if int(failed) else torch.cholesky_solve(right, factor)).T


def _mirrored(lower: Tensor) -> Tensor:
    """The symmetric matrix of what is on and below the diagonal."""
    return lower.tril() + lower.tril(-1).T
