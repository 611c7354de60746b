"""Low rank: a convolution becomes two, with fewer channels between them than it has outputs.

    channels    W (O, C, kh, kw)  ->  reduce (r, C, kh, kw), then expand (O, r, 1, 1)
    separable   W (O, C, kh, kw)  ->  reduce (r, C, 1, kw),  then expand (O, r, kh, 1)

Layers read and write far fewer directions than channels, even where no channel can go, because any channel may be a mix
of a few. Which directions matter is said by both sides of the layer: by the covariance of its values there, and by the
Fisher information F of the softened answer of what it writes. So what a rank loses is known in nats, to second order,
layers and forms compare, and a budget buys the forms and ranks that lose least all together.

    metric.py      what a rank of either form loses
    choose.py      ranks within a budget
    solve.py       the two layers: each on its own, or one after the other from what the network so far makes
    compressor.py  all of it, for a network or a part of one

No gradient training. The network is put together by :mod:`sinf.graph.apply`.

Response reconstruction by principal components is Zhang et al., Accelerating Very Deep
Convolutional Networks for Classification and Detection (arXiv 1505.06798), which takes F = 1 and a rank by layer from
energies; separable filters are Jaderberg et al., Speeding up Convolutional Neural Networks with Low Rank Expansions
(arXiv 1405.3866), which fits them by iterations; reduced-rank regression is Izenman's (1975).
"""

from sinf.compress.low_rank.choose import Rank, choose_ranks, choose_ranks_together
from sinf.compress.low_rank.compressor import LowRank
from sinf.compress.low_rank.metric import Metric, metrics
from sinf.compress.low_rank.solve import factor, reconstruct_ranks

__all__ = [
    "LowRank",
    "Metric",
    "Rank",
    "choose_ranks",
    "choose_ranks_together",
    "factor",
    "metrics",
    "reconstruct_ranks",
]
