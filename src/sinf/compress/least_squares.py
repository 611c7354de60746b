"""Ridge regression in one pass: normal equations are summed row by row, and the damping is found on held-out rows.

Rows that are fewer than the unknowns are kept instead: the same solution is a combination of them, and the equations of
its weights are smaller.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_FIRST, _STEP, _LEAST, _MOST = 3e-3, 3.0, 1e-4, 1.0
_BLOCKS, _LEAST_BLOCK = 8, 256
_WAITING = 1 << 22  # numbers of rows that wait, so that the float64 sums are touched once for many
_FEW = 0.75  # rows for each unknown: so many or less are not summed
_SAYING = 128  # outputs, or up to twice as many, that say how much damping there should be


#: The solution (o, k) by its damping, and the error on held-out rows, up to a constant, of that of the others.
_Fit = tuple[Callable[[float], Tensor], Callable[[float], float]]


class NormalEquations:
    """Sums over rows ``x`` (k) and ``y`` (o) for the M (o, k) of least E||y - M x||^2 + damping * level * ||M - P||^2.

    The level is the mean second moment of x; the prior P is what M is held near.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        # Of rows that fit, and of held-out ones. A gram matrix is symmetric: only blocks on and below its diagonal are
        # summed, which is little more than half of the work.
        self._shape = outputs, inputs
        self._sums: tuple[Tensor, Tensor] | None = None
        self._waiting: tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]] = ([], [])
        self.rows = [0, 0]

    @property
    def gram(self) -> Tensor:
        """``(2, k, k)`` float64, on and below the diagonal: sums of x x' over rows that fit, and over held-out ones."""
        return self._summed()[0]

    @property
    def cross(self) -> Tensor:
        """``(2, o, k)`` float64: sums of y x' over rows that fit, and over held-out ones."""
        return self._summed()[1]

    def add(self, x: Tensor, y: Tensor, *, held_out: bool = False) -> None:
        """Add ``x`` (rows, k) and ``y`` (rows, o), which must not change before the sums are read."""
        part = int(held_out)
        self._waiting[part].append((x, y))
        self.rows[part] += len(x)
        waits = sum(len(rows) for rows, _ in self._waiting[part]) * (x.shape[1] + y.shape[1])
        if waits >= _WAITING and not self._are_few:
            self._sum(part)

    @property
    def _are_few(self) -> bool:
        return self._sums is None and 0 < sum(self.rows) <= _FEW * self._shape[1]

    def _summed(self) -> tuple[Tensor, Tensor]:
        """Sums of all rows, of which none waits any more."""
        for part, waiting in enumerate(self._waiting):
            if waiting:
                self._sum(part)
        return self._sums or self._zeros()

    def _zeros(self) -> tuple[Tensor, Tensor]:
        outputs, inputs = self._shape
        gram, cross = (torch.zeros(2, rows, inputs, dtype=torch.float64) for rows in (inputs, outputs))
        self._sums = gram, cross
        return self._sums

    def _sum(self, part: int) -> None:
        gram, cross = self._sums or self._zeros()
        waiting = self._waiting[part]
        x, y = waiting[0] if len(waiting) == 1 else (torch.cat(each) for each in zip(*waiting, strict=True))
        waiting.clear()
        size = x.shape[1]
        block = max(_LEAST_BLOCK, -(-size // _BLOCKS))
        for first in range(0, size, block):
            last = min(first + block, size)
            gram[part, first:last, :last] += x[:, first:last].T @ x[:, :last]
        cross[part] += y.T @ x

    def moments_of(self, m: Tensor) -> Tensor:
        """``(o, o)`` float64: mean of (m x)(m x)' over all rows, of a matrix ``m`` (o, k)."""
        m = m.double()
        if self._are_few:
            written = self._rows()[0] @ m.T
            total = written.T @ written
        else:
            total = m @ _mirrored(self.gram.sum(0)) @ m.T
        return total / max(1, sum(self.rows))

    def solve(self, prior: Tensor, damping: float | None = None) -> Tensor:
        """``(o, k)`` from all rows, near ``prior`` (o, k). ``damping`` None: the one with the least error on held-out
        rows, when the others alone are fitted; of many outputs some, evenly spread, say which."""
        solution, error = (self._by_rows if self._are_few else self._by_sums)(prior.double())
        if damping is None:
            damping = _least(error) if all(self.rows) else _FIRST
        return solution(damping).float()

    def _by_sums(self, prior: Tensor) -> _Fit:
        gram, cross = self.gram, self.cross
        held_out, few, near = _mirrored(gram[1]), cross[:, self._some], prior[self._some]

        def error(damping: float) -> float:
            m = _ridge(gram[0], few[0], near, damping)
            return float(((m @ held_out - 2 * few[1]) * m).sum())

        return lambda damping: _ridge(gram.sum(0), cross.sum(0), prior, damping), error

    def _by_rows(self, prior: Tensor) -> _Fit:
        """The same from products of rows with each other: P + (y - x P')' (x x' + level I)^-1 x, in which there are as
        many equations as rows."""
        x, y = self._rows()
        products, rest, first = x @ x.T, y - x @ prior.T, self.rows[0]

        few = rest[:, self._some]

        def weights(right: Tensor, damping: float) -> Tensor:
            system = products[: len(right), : len(right)].clone()
            level = torch.diagonal(system).sum() / x.shape[1]
            system.diagonal().add_(damping * level.clamp(min=1e-12))
            return _solved(system, right)

        def error(damping: float) -> float:
            return float((products[first:, :first] @ weights(few[:first], damping) - few[first:]).square().sum())

        return lambda damping: prior + weights(rest, damping).T @ x, error

    @property
    def _some(self) -> slice:
        """Outputs that say how much damping there should be."""
        return slice(None, None, max(1, self._shape[0] // _SAYING))

    def _rows(self) -> tuple[Tensor, Tensor]:
        """``(n, k)`` and ``(n, o)`` float64: rows that were not summed, held-out ones last."""
        x, y = zip(*self._waiting[0], *self._waiting[1], strict=True)
        return torch.cat(x).double(), torch.cat(y).double()


def _least(error: Callable[[float], float]) -> float:
    """The damping with the least error: walk from a usual one, up or down, as long as the error falls."""
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
    return _solved(system, (cross + level * prior).T).T


def _solved(system: Tensor, right: Tensor) -> Tensor:
    """Of a symmetric system, which is read on and below its diagonal."""
    factor, failed = torch.linalg.cholesky_ex(system)
    # Hardly damped, rounding can leave a system of dependent channels just below positive definite.
    return torch.linalg.solve(_mirrored(system), right) if int(failed) else torch.cholesky_solve(right, factor)


def _mirrored(lower: Tensor) -> Tensor:
    """The symmetric matrix of what is on and below the diagonal."""
    return lower.tril() + lower.tril(-1).T
