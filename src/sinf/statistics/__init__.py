"""What scoring images say about every layer: one pass of a part of the network, sums that add up.

A *site* is a layer where channels meet (a convolution or a linear layer). The pass adds up, for each site, the
statistics that were asked for by their type and nothing else: what every criterion, budget and reconstruction needs is
computed from such sums, so the cost is linear in images, memory does not grow with them, and it does not matter how
often they are used. ``site[SecondMoments]`` is what was added up of that type.

:mod:`~sinf.statistics.statistic` says what a statistic is; another one is a class of :class:`Statistic`'s families.
:mod:`~sinf.statistics.site` holds what was added up, :mod:`~sinf.statistics.maps` finds feature maps of a site,
:mod:`~sinf.statistics.patches` what outputs of a convolution read, :mod:`~sinf.statistics.one_pass` runs the images.
"""

from __future__ import annotations

from sinf.statistics.kernel_rows import KernelRows
from sinf.statistics.of_maps import Active, Independence, Magnitude, MapRanks
from sinf.statistics.of_outputs import Fisher, OutputMoments, Sensitivity
from sinf.statistics.of_reads import MomentsByClass, PooledGram, Sample, SecondMoments, SumsByClass
from sinf.statistics.of_units import Change, SquaredChange
from sinf.statistics.one_pass import DEFAULT, TEMPERATURE, collect, weights_of
from sinf.statistics.site import SiteStatistics, Statistics
from sinf.statistics.statistic import OfUnits, Statistic

__all__ = [
    "DEFAULT",
    "TEMPERATURE",
    "Active",
    "Change",
    "Fisher",
    "Independence",
    "KernelRows",
    "Magnitude",
    "MapRanks",
    "MomentsByClass",
    "OfUnits",
    "OutputMoments",
    "PooledGram",
    "Sample",
    "SecondMoments",
    "Sensitivity",
    "SiteStatistics",
    "SquaredChange",
    "Statistic",
    "Statistics",
    "SumsByClass",
    "collect",
    "weights_of",
]
