"""A criterion of one's own: what a channel says that no stronger channel says already.

    import distinct                        # registers it
    sinf.prune(model, images, sinf.PruneConfig(sinf.Amount(macs=0.6), criterion="distinct"), "work")

    s_j = min_i min_a E (x_j - a x_i)^2,   over the channels i whose mean square is larger than that of channel j

With G the (C, C) second moments over images and positions this is G_jj - max_i G_ij^2 / G_ii. Of two channels that are
alike one is worth its mean square and the other nothing.
"""

from __future__ import annotations

from torch import Tensor

from sinf.criteria import SiteCriterion, register
from sinf.criteria.base import share
from sinf.statistics import SecondMoments, SiteStatistics


class Distinct(SiteCriterion):
    """Relative to the sum over all channels of the layer, so that layers compare; needs no labels."""

    name = "distinct"
    needs = (SecondMoments,)

    def score_channels(self, site: SiteStatistics) -> Tensor:
        gram = site[SecondMoments].gram.double()
        order = gram.diagonal().argsort(descending=True, stable=True)
        gram = gram[order][:, order]
        squares = gram.diagonal()
        explained = (gram.square() / squares.clamp(min=1e-30)).tril(-1).amax(1)  # by the channels before it
        return share((squares - explained).clamp(min=0)[order.argsort()])


register(Distinct)
