"""Fisher's ratio of a channel alone (Fisher 1936; linear discriminant analysis of one feature).

``s_j = sum_c n_c (m_cj - m_j)^2 / sum_c n_c v_cj``, m and v the means and variances by class of the channel's mean over
positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sinf.criteria.base import SiteCriterion
from sinf.criteria.moments import ClassMoments
from sinf.statistics import MomentsByClass, SiteStatistics


class FisherRatio(SiteCriterion):
    """The ratio itself, which has no unit; 0 where there is but one class. Classes of one image are left out."""

    name = "fisher"
    needs = (MomentsByClass,)

    def score_channels(self, site: SiteStatistics) -> Tensor:
        moments = ClassMoments.of(site)
        if len(moments.counts) < 2:
            return moments.alone()
        mean = (moments.counts * moments.means).sum(0) / moments.counts.sum()
        between = (moments.counts * (moments.means - mean).square()).sum(0)
        within = (moments.counts * moments.variances).sum(0)
        # No ratio is above a million: that of a channel that is the same for all images of a class would be infinite.
        return torch.where(moments.alive, between / (within + 1e-6 * between).clamp(min=1e-300), 0.0)
