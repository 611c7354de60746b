"""An exact test of how much a network loses against another one on the same images.

An image is lost (the base model is right, the network wrong), won, or neither. How many of n independent images are
lost and won is trinomial, with two unknowns: the expected loss, and the share of images that are either. The p-value is
summed up from that distribution, without an approximation, and is the largest over such shares as the data leave
possible (Berger & Boos, P values maximized over a confidence set for the nuisance parameter, JASA 1994): over a hundred
of them, so close that what lies between is larger by a thousandth of it at most (measured).

Outcomes are ordered by the loss beyond the limit in standard errors, as in the exact tests of noninferiority for paired
data (Hsueh, Liu & Chen, Biometrics 2001). The order of the images does not matter.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from torch import Tensor

_OUTSIDE = 1e-5  # probability that the share of changed images is not where it is looked for
_UNLIKELY = 1e-9  # of counts of changed images that are not summed up
_SHARES = 100  # are tried

Numbers = npt.NDArray[np.float64]


def p_value(losses: Tensor, limit: float) -> float:
    """Of "the expected loss is ``limit`` (a fraction) or more", by losses (N,) in {-1, 0, 1} of independent draws.

    Small values speak against it: where it holds, the p-value is at most a with a probability of at most a, whatever
    the expected loss and the share of changed images are.
    """
    return _p_value(len(losses), int((losses > 0).sum()), int((losses < 0).sum()), limit)


@lru_cache(maxsize=10_000)  # simulations come to the same counts again and again
def _p_value(n: int, lost: int, won: int, limit: float) -> float:
    from scipy.special import betainc, betaincinv, gammaln, xlog1py, xlogy  # takes a quarter of a second

    changed = lost + won
    low = betaincinv(changed, n - changed + 1, _OUTSIDE / 2) if changed else 0.0  # Clopper & Pearson
    high = betaincinv(changed + 1, n - changed, 1 - _OUTSIDE / 2) if changed < n else 1.0
    low, high = max(low, limit), max(high, limit)  # as many change as are lost, at least
    shares = np.linspace(low, high, _SHARES)[:, None]
    least, greatest = max(0, int(n * low - _far(n, low))), min(n, int(n * high + _far(n, high)) + 1)
    counts = np.arange(least, greatest + 1, dtype=np.float64)
    # Of so many changed images, the most lost ones that speak as much against a large loss as those observed.
    observed = (lost - won - n * limit) / _spread(np.array(float(changed)), n, limit)
    most = np.floor((counts + n * limit + observed * _spread(counts, n, limit)) / 2 + 1e-9)
    most = np.clip(most, -1, counts)
    # Of those with one number of changed images, the likeliest are at the limit itself: more loss loses more of them.
    to_lose = np.minimum(1.0, (1 + limit / np.maximum(shares, 1e-300)) / 2)
    within = betainc(np.maximum(counts - most, 1), most + 1, 1 - to_lose)  # the binomial distribution's
    as_good = np.where(most < 0, 0.0, np.where(most == counts, 1.0, within))
    ways = gammaln(n + 1) - gammaln(counts + 1) - gammaln(n - counts + 1)
    likely = np.exp(ways + xlogy(counts, shares) + xlog1py(n - counts, -shares))
    return min(1.0, float((likely * as_good).sum(1).max()) + _UNLIKELY + _OUTSIDE)


def _spread(changed: Numbers, n: int, limit: float) -> Numbers:
    """The standard deviation of lost minus won at the limit, by how many images changed: no fewer than are lost."""
    return np.sqrt(np.maximum(np.maximum(changed, n * limit) - n * limit**2, 1e-3))


def _far(n: int, share: float) -> float:
    """From the mean: a binomial count is hardly ever so far (Bernstein's bound)."""
    much = math.log(2 / _UNLIKELY)
    return much / 3 + math.sqrt(much**2 / 9 + 2 * n * share * (1 - share) * much)
