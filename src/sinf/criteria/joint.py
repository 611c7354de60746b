"""Joint energy: what is lost of the answer when a channel goes with all that went before it, and nothing makes up.

Removing a set of channels R changes what a layer writes by ``sum_{j in R} w_j x_j``, whose effect on the answer is, to
second order, the sum of A over all pairs of R: ``A_jk = G_jk S_jk``, with G the second moments of the channels that the
layer reads and S = W' diag(sensitivity) W how pairs of them act on the answer (the diagonal of Fisher information, as
in :mod:`sinf.criteria.residual`). Channels that cancel each other out go together for little; those that add up become
dearer as the others go. Greedily, the channel that adds least to the sum goes next; its importance is what it adds (at
least that of those before it), so layers compare.

Pairs are what tells it from ``energy``, whose score is the diagonal of A with all outputs equal. Its place is where
the weights that stay are left as they are, or batch norms alone take new statistics; where they are fitted again,
``residual`` knows what they make up for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sinf.criteria.base import Criterion, GroupStatistics, Reader
from sinf.statistics import SecondMoments, Sensitivity


class JointEnergy(Criterion):
    """Of the answer of the cluster's classes alone when a cluster is scored."""

    name = "joint"
    needs = (SecondMoments, Sensitivity)

    def score(self, statistics: GroupStatistics) -> Tensor:
        size = statistics.group.size
        pairs = torch.zeros(size, size, dtype=torch.float64)
        for reader in statistics.readers:
            _add_pairs(pairs, reader)
        importance = torch.zeros(size, dtype=torch.float64)
        costs = torch.diagonal(pairs).clone()
        floor = 0.0
        for _ in range(size if statistics.readers else 0):
            going = int(costs.argmin())
            # What was cheap to keep can only have become dearer: importances never fall in the order of removal.
            floor = max(floor, float(costs[going]))
            importance[going] = floor
            costs += 2 * pairs[going]
            costs[going] = torch.inf
        return importance.float()


def _add_pairs(pairs: Tensor, reader: Reader) -> None:
    """Add A of a site, a unit's channels together."""
    mine = torch.nonzero(reader.unit >= 0).flatten()
    moments = reader.site[SecondMoments]
    each = moments.gram.double() / moments.positions * reader.site.readout.double()
    unit = reader.unit[mine]
    pairs.index_put_((unit[:, None], unit[None, :]), each[mine][:, mine], accumulate=True)
