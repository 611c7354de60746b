"""What scoring images say about every layer: one pass of a part of the network, sums that add up.

A *site* is a layer where channels meet (a convolution or a linear layer). The pass adds up, for each site, what was
asked for by name and nothing else: what every criterion, budget and reconstruction needs is computed from such sums,
so the cost is linear in images, memory does not grow with them, and it does not matter how often the sums are used.

:mod:`~sinf.statistics.sums` says what can be asked for, :mod:`~sinf.statistics.site` holds it,
:mod:`~sinf.statistics.maps` finds the feature maps of a site, and :mod:`~sinf.statistics.one_pass` runs the images.
"""

from __future__ import annotations

from sinf.statistics.one_pass import DEFAULT, TEMPERATURE, collect, weights_of
from sinf.statistics.site import Sample, SiteStatistics, Statistics

__all__ = ["DEFAULT", "TEMPERATURE", "Sample", "SiteStatistics", "Statistics", "collect", "weights_of"]
