"""What remaining channels are worth in measured time: the share of the base model's mean latency that an input takes on
this machine, one image at a time, in torch, with as many threads as torch has now."""

from __future__ import annotations

import torch
from torch import Tensor

from sinf.dynamic.network import GatedNetwork
from sinf.dynamic.sparse import SparseNetwork
from sinf.errors import ConfigError
from sinf.graph.prepare import prepare
from sinf.measure.timing import latency

_PAIRS = 60
_SPREAD = 1e-3  # of saliencies around 1: none is 0, and no two are equal
_RATES = (1.0, 0.8, 0.6, 0.45, 0.3, 0.2, 0.1)


def time_share(network: GatedNetwork, images: Tensor, pairs: int = _PAIRS) -> float:
    """Mean time of ``images`` (N, C, H, W) with the gates as they are now, over the base model's."""
    with network.switched_off():
        base, sparse = prepare(network.graph), SparseNetwork(network)
        threads = torch.get_num_threads()
        return 1 - latency(base, sparse, images, pairs=pairs, threads=threads).time_saved


@torch.no_grad()
def rate_for_latency(network: GatedNetwork, images: Tensor, share: float) -> float:
    """The share of channels that takes ``share`` of the base model's time, between rates that are measured with gates
    that choose by chance (before a training all channels weigh the same).

    Raises:
        ConfigError: no rate is as fast.
    """
    before = {key: value.clone() for key, value in network.state_dict().items()}
    training = network.training
    try:
        network.eval()
        choose_by_chance(network)
        saliencies = [s.mean(0) for s in network.observe(images)[1].saliencies]
        slower: tuple[float, float] | None = None
        taken = 1.0
        for rate in _RATES:
            for index, saliency in enumerate(saliencies):
                network.gate(index).set_remaining(rate, saliency)
            taken = time_share(network, images)
            if taken <= share:
                if slower is None:
                    return rate
                weight = (slower[1] - share) / (slower[1] - taken)
                return slower[0] + weight * (rate - slower[0])
            slower = rate, taken
    finally:
        network.load_state_dict(before)
        network.train(training)
    remedy = "gate fewer convolutions (--site), or decide more channels together (--block 16)"
    got = f"{share:g} of the time; the least that was measured is {taken:.2f}"
    raise ConfigError("the target of time must be within reach", got=got, remedy=remedy)


@torch.no_grad()
def choose_by_chance(network: GatedNetwork, seed: int = 0) -> None:
    """Give gates that were not trained saliencies that differ by channel and input, all near 1."""
    generator = torch.Generator().manual_seed(seed)
    for index in range(len(network.sites)):
        network.gate(index).vary(_SPREAD, generator)
