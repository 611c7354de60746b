"""The exact test of a loss: valid for whatever is lost and won, counted out, and not weaker than it need be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, multinomial, norm

from sinf.routing.paired_test import p_value


def losses_of(n: int, lost: int, won: int) -> torch.Tensor:
    return torch.tensor([1.0] * lost + [-1.0] * won + [0.0] * (n - lost - won))


@pytest.mark.parametrize(("n", "limit"), [(12, 0.0), (25, 0.04), (30, 0.2), (18, 0.6)])
def test_it_is_valid_for_every_loss_at_or_above_the_limit(n: int, limit: float) -> None:
    """All outcomes of so many images are counted out: the p-value is at most a with a probability of at most a."""
    counts = [(lost, won) for lost in range(n + 1) for won in range(n + 1 - lost)]
    found = np.array([p_value(losses_of(n, *each), limit) for each in counts])
    outcomes = np.array([(lost, won, n - lost - won) for lost, won in counts])
    for loss in {limit, min(1.0, limit + 0.05), min(1.0, limit + 0.3)}:
        for won in np.linspace(0, (1 - loss) / 2, 41):
            rest = max(0.0, 1 - loss - 2 * won)
            likely = multinomial.pmf(outcomes, n, [loss + won, won, rest])
            for level in (0.01, 0.05, 0.1, 0.3):
                assert likely[found <= level].sum() <= level + 1e-9


def slow(n: int, lost: int, won: int, limit: float, shares: np.ndarray) -> float:
    """The largest probability, over some shares of changed images, of what is as far below the limit or farther, in
    standard errors: outcome by outcome."""

    def errors(lost: int, won: int) -> float:
        return (lost - won - n * limit) / math.sqrt(max(lost + won, n * limit) - n * limit**2)

    far = [
        (a, b, n - a - b) for a in range(n + 1) for b in range(n + 1 - a) if errors(a, b) <= errors(lost, won) + 1e-9
    ]
    each = ([(share + limit) / 2, (share - limit) / 2, 1 - share] for share in shares)
    return max(float(multinomial.pmf(np.array(far), n, chances).sum()) for chances in each)


@pytest.mark.parametrize(
    ("n", "lost", "won", "limit"),
    [(30, 1, 3, 0.1), (40, 0, 0, 0.1), (25, 6, 9, 0.05), (35, 3, 2, 0.2), (59, 0, 0, 0.2), (20, 0, 20, 0.3)],
)
def test_it_is_what_the_outcomes_sum_up_to(n: int, lost: int, won: int, limit: float) -> None:
    within = binomtest(lost + won, n).proportion_ci(1 - 1e-5)
    least, most = max(limit, within.low), max(limit, within.high)
    largest = slow(n, lost, won, limit, np.linspace(least, most, 400))
    assert p_value(losses_of(n, lost, won), limit) == pytest.approx(largest, rel=0.003, abs=2e-5)


@pytest.mark.parametrize(("lost", "won"), [(60, 50), (20, 15), (700, 650), (0, 3)])
def test_of_many_images_nothing_that_counts_is_left_out(lost: int, won: int) -> None:
    """Every number of changed images, from none to all, and of each how many of them are lost."""
    n, limit, changed = 4000, 0.01, lost + won
    within = binomtest(changed, n).proportion_ci(1 - 1e-5)
    shares = np.linspace(max(limit, within.low), max(limit, within.high), 100)
    counts = np.arange(n + 1)
    errors = (lost - won - n * limit) / math.sqrt(max(changed, n * limit) - n * limit**2)
    most = (counts + n * limit + errors * np.sqrt(np.maximum(counts, n * limit) - n * limit**2)) / 2
    summed = [binom.pmf(counts, n, share) @ binom.cdf(most + 1e-9, counts, (1 + limit / share) / 2) for share in shares]
    assert p_value(losses_of(n, lost, won), limit) == pytest.approx(max(summed) + 1e-5, abs=1e-8)


@pytest.mark.parametrize(("lost", "won"), [(60, 50), (45, 40), (90, 60), (20, 15)])
def test_of_many_images_it_is_what_a_normal_distribution_says(lost: int, won: int) -> None:
    n, limit = 4000, 0.01
    z = (lost - won - n * limit) / math.sqrt(lost + won)
    assert p_value(losses_of(n, lost, won), limit) == pytest.approx(norm.cdf(z), rel=0.35, abs=0.003)


@settings(max_examples=30)
@given(
    n=st.integers(1, 400), shares=st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)),
    limit=st.sampled_from([0.0, 0.01, 0.3, 0.99]), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_loss_for_a_gain_is_more_and_the_order_is_nothing(
    n: int, shares: tuple[float, float], limit: float, seed: int
) -> None:
    lost, won = (int(share * n) for share in shares)
    losses = losses_of(n, lost, won)
    found = p_value(losses, limit)
    assert 0 < found <= 1
    assert p_value(losses[torch.randperm(n, generator=torch.Generator().manual_seed(seed))], limit) == found
    if won:
        assert p_value(losses_of(n, lost + 1, won - 1), limit) >= found - 1e-6
    assert p_value(losses, min(0.999, limit + 0.05)) <= found + 1e-6


def test_where_fewer_images_change_than_must_be_lost_no_doubt_is_left() -> None:
    assert p_value(losses_of(2000, 2, 0), 0.2) < 1e-4


def test_without_a_change_there_is_nothing_against_a_loss_of_nothing() -> None:
    assert p_value(torch.zeros(500), 0.0) == 1


def test_a_limit_near_the_largest_loss_has_a_p_value() -> None:
    for limit in (0.99, 1 - 1e-12):
        assert 0 <= p_value(losses_of(51, 1, 50), limit) <= 1


# ---- drawn


def losses_with_mean(mean: float, count: int, draw: torch.Generator, gains: float = 0.03) -> torch.Tensor:
    """Draws of -1, 0 and 1 whose expectation is ``mean``."""
    u = torch.rand(count, generator=draw)
    return (u < mean + gains).float() - (u > 1 - gains).float()


@pytest.mark.parametrize(("limit", "gains"), [(0.0, 0.1), (0.02, 0.03), (0.02, 0.0), (0.2, 0.05)])
def test_p_value_is_valid(limit: float, gains: float) -> None:
    """A mean loss exactly at the limit is called smaller in at most one case of ten (and in a few more by chance)."""
    draw = torch.Generator().manual_seed(0)
    found = torch.tensor([p_value(losses_with_mean(limit, 500, draw, gains), limit) for _ in range(300)])
    assert float((found <= 0.1).float().mean()) <= 0.1 + 0.05
    assert float((found <= 0.02).float().mean()) <= 0.02 + 0.025
    assert 0 < float(found.min()) <= float(found.max()) <= 1


@pytest.mark.parametrize("limit", [0.02, 0.1])
def test_p_value_finds_a_loss_well_below_the_limit(limit: float) -> None:
    draw = torch.Generator().manual_seed(0)
    found = torch.tensor([p_value(losses_with_mean(limit - 0.06, 1000, draw, 0.05), limit) for _ in range(50)])
    assert float((found <= 0.1).float().mean()) > 0.8


def test_p_value_of_a_loss_above_the_limit_is_large() -> None:
    draw = torch.Generator().manual_seed(0)
    found = [p_value(losses_with_mean(0.1, 500, draw), 0.02) for _ in range(50)]
    assert sum(p <= 0.1 for p in found) <= 2


def test_p_value_shrinks_with_the_limit_and_with_more_images() -> None:
    losses = losses_with_mean(0.0, 800, torch.Generator().manual_seed(0))
    by_limit = [p_value(losses, limit) for limit in (0.0, 0.02, 0.05, 0.1)]
    assert by_limit == sorted(by_limit, reverse=True)
    assert by_limit[-1] < 0.05 < by_limit[0]
    assert p_value(losses, 0.05) < p_value(losses[:100], 0.05)
