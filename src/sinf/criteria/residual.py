"""Residual energy: what is lost of the answer when a channel goes and all that stay make up for it.

Backward elimination in the manner of Optimal Brain Surgeon (Hassibi & Stork, NIPS 1992), for channels: with G the
second moments of the channels a layer reads and S = W' diag(sensitivity) W how they act on the answer, removing channel
j and re-solving for the others costs S_jj / (G^-1)_jj, after which both matrices are updated. The sensitivity is the
diagonal of the Fisher information of what the layer writes, of the cluster's classes alone when a cluster is scored:
channels that do not tell these classes apart cost nothing. Where rows are fewer than four for every channel, G is
shrunk (:mod:`sinf.statistics.shrinkage`): with fewer rows than channels, the others would make up for any channel
exactly. A unit's importance is the cost at the moment when it goes (at least that of those before it), so the sum over
the units that went bounds the loss, and layers compare.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sinf.criteria.base import Criterion, GroupStatistics, Reader
from sinf.errors import ConfigError
from sinf.statistics import SecondMoments, Sensitivity, SiteStatistics
from sinf.statistics.shrinkage import shrunk

_ENOUGH_ROWS = 4  # for every channel: with so many, what channels make up for each other is no chance


class ResidualEnergy(Criterion):
    """``damping`` is added to the diagonal of G, relative to its mean; ``steps`` is how often the costs are renewed."""

    name = "residual"
    needs = (SecondMoments, Sensitivity)

    def __init__(self, damping: float = 1e-3, steps: int = 64) -> None:
        if not damping > 0 or steps < 1:
            raise ConfigError("damping must be positive and steps at least 1", got=(damping, steps))
        self.damping, self.steps = damping, steps

    def score(self, statistics: GroupStatistics) -> Tensor:
        size = statistics.group.size
        importance = torch.zeros(size, dtype=torch.float64)
        states = [_SiteState(reader, self.damping) for reader in statistics.readers]
        alive = torch.ones(size, dtype=torch.bool)
        block = max(1, -(-size // self.steps))
        floor = 0.0
        while alive.any() and states:
            costs = sum((state.costs(size) for state in states), torch.zeros(size, dtype=torch.float64))
            costs[~alive] = torch.inf
            going = torch.argsort(costs, stable=True)[: min(block, int(alive.sum()))]
            # What was cheap to keep can only have become dearer: importances never fall in the order of removal.
            importance[going] = costs[going].clamp(min=floor)
            floor = float(importance[going].max())
            alive[going] = False
            for state in states:
                state.remove(going)
        return importance.float()


class _SiteState:
    """G^-1 and S of a site while channels of one group go: the rows and columns of those of its channels that stay,
    which is all that their costs are made of."""

    def __init__(self, reader: Reader, damping: float) -> None:
        mine = reader.unit >= 0
        self.unit = reader.unit[mine]
        if bool(mine.all()):
            self.inverse, self.action = _inverse(reader.site, damping), reader.site.readout.double()
            return
        place = torch.nonzero(mine).flatten()  # other groups read it too, and want the same matrices
        whole = (
            reader.site.once(f"inverse {damping}", lambda: _inverse(reader.site, damping)),
            reader.site.once("readout", lambda: reader.site.readout.double()),
        )
        self.inverse, self.action = (matrix[place[:, None], place] for matrix in whole)

    def costs(self, units: int) -> Tensor:
        each = torch.diagonal(self.action) / torch.diagonal(self.inverse).clamp(min=1e-30)
        total = torch.zeros(units, dtype=torch.float64)
        return total.index_add_(0, self.unit, each.clamp(min=0))

    def remove(self, units: Tensor) -> None:
        going = torch.isin(self.unit, units)
        if not bool(going.any()):
            return
        gone, stay = torch.nonzero(going), torch.nonzero(~going).flatten()
        # x_gone is predicted from the others by -H_JJ^-1 H_J. , which adds to the weights of those
        rows = self.inverse[gone, stay]  # (J, C - J)
        spread = torch.linalg.solve(self.inverse[gone, gone.T], rows)  # (J, C - J)
        across = self.action[stay[:, None], gone.T] @ spread
        effect = spread.T @ self.action[gone, gone.T] @ spread
        self.action = self.action[stay[:, None], stay].sub_(across).sub_(across.T).add_(effect)
        self.inverse = self.inverse[stay[:, None], stay].sub_(rows.T @ spread)
        self.unit = self.unit[stay]


def _inverse(site: SiteStatistics, damping: float) -> Tensor:
    """``(C, C)`` G^-1."""
    positions = site[SecondMoments].positions
    gram = site[SecondMoments].gram.double() / positions
    if positions < _ENOUGH_ROWS * len(gram):
        gram = shrunk(gram, positions)
    level = torch.diagonal(gram).mean().clamp(min=1e-12)
    eye = torch.eye(len(gram), dtype=torch.float64)
    return torch.cholesky_inverse(torch.linalg.cholesky(gram + damping * level * eye))
