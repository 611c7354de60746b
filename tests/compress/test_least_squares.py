"""Ridge regression: the right solution, in whatever pieces rows come, with as much damping as validation asks for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sinf.compress.least_squares import NormalEquations


def rows(count: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x (count, 12), y (count, 3), and the matrix behind them."""
    draw = torch.Generator().manual_seed(seed)
    matrix = torch.randn(3, 12, generator=draw)
    x = torch.randn(count, 12, generator=draw)
    return x, x @ matrix.T + noise * torch.randn(count, 3, generator=draw), matrix


def summed(x: Tensor, y: Tensor, held_out: float = 0.25, pieces: int = 1) -> NormalEquations:
    sums = NormalEquations(x.shape[1], y.shape[1])
    fitting = len(x) - int(held_out * len(x))
    for part, out in ((slice(None, fitting), False), (slice(fitting, None), True)):
        for a, b in zip(x[part].chunk(pieces), y[part].chunk(pieces), strict=True):
            sums.add(a, b, held_out=out)
    return sums


def test_hardly_damped_it_is_ordinary_least_squares_of_all_rows() -> None:
    x, y, _ = rows(200, 0.5)
    expected = torch.linalg.lstsq(x.double(), y.double()).solution.T.float()
    torch.testing.assert_close(summed(x, y).solve(torch.zeros(3, 12), 1e-12), expected, rtol=1e-4, atol=1e-5)


def test_pieces_do_not_matter() -> None:
    x, y, _ = rows(200, 0.5)
    whole, apart = (summed(x, y, pieces=pieces).solve(torch.zeros(3, 12)) for pieces in (1, 10))
    torch.testing.assert_close(whole, apart, rtol=1e-5, atol=1e-5)


def test_much_damping_leaves_the_prior() -> None:
    x, y, _ = rows(50, 0.5)
    prior = torch.randn(3, 12, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(summed(x, y).solve(prior, 1e9), prior, rtol=1e-4, atol=1e-4)


def test_damping_is_as_the_closed_form_says() -> None:
    x, y, _ = rows(80, 0.5)
    prior = torch.ones(3, 12)
    level = 0.1 * x.square().sum(0).mean()
    expected = torch.linalg.solve(x.T @ x + level * torch.eye(12), x.T @ y + level * prior.T).T
    torch.testing.assert_close(summed(x, y).solve(prior, 0.1), expected, rtol=1e-4, atol=1e-5)


def test_validation_damps_where_rows_are_few_and_noisy() -> None:
    """Near a good prior: held-out rows tell that noise was fitted; many clean rows need no damping."""
    x, y, matrix = rows(20, 3.0)
    errors = {d: float((summed(x, y).solve(matrix, d) - matrix).norm()) for d in (None, 1e-4)}
    assert errors[None] < 0.7 * errors[1e-4]
    x, y, matrix = rows(2000, 0.01)
    wrong = torch.zeros_like(matrix)
    errors = {d: float((summed(x, y).solve(wrong, d) - matrix).norm()) for d in (None, 1.0)}
    assert errors[None] < 0.01 * errors[1.0]


def test_dependent_columns_have_a_solution() -> None:
    x, y, _ = rows(100, 0.0)
    twice = torch.cat([x, x], 1)
    solution = summed(twice, y).solve(torch.zeros(3, 24), 1e-9)
    torch.testing.assert_close(twice @ solution.T, y, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("held_out", [0.0, 1.0])
def test_without_rows_on_either_side_a_usual_damping_is_taken(held_out: float) -> None:
    x, y, _ = rows(100, 0.1)
    sums = summed(x, y, held_out)
    assert torch.equal(sums.solve(torch.zeros(3, 12)), sums.solve(torch.zeros(3, 12), 3e-3))


def test_many_inputs_are_summed_in_blocks() -> None:
    """As the closed form of all of them at once, also where some depend on others."""
    draw = torch.Generator().manual_seed(3)
    x, y = torch.randn(1500, 600, generator=draw), torch.randn(1500, 4, generator=draw)
    level = 0.01 * x.square().sum(0).mean()
    expected = torch.linalg.solve(x.T @ x + level * torch.eye(600), x.T @ y).T
    torch.testing.assert_close(summed(x, y).solve(torch.zeros(4, 600), 0.01), expected, rtol=1e-3, atol=1e-4)
    twice = torch.cat([x, x], 1)
    found = summed(twice, y).solve(torch.zeros(4, 1200), 0.01)
    torch.testing.assert_close(found[:, :600], found[:, 600:], rtol=1e-3, atol=1e-5)


def test_moments_are_those_of_all_rows() -> None:
    x, y, _ = rows(200, 0.5)
    torch.testing.assert_close(
        summed(x, y, pieces=5).moments_of(torch.eye(12)).float(), x.T @ x / 200, rtol=1e-5, atol=1e-5
    )
    assert torch.equal(NormalEquations(12, 3).moments_of(torch.eye(12)), torch.zeros(12, 12, dtype=torch.float64))


def test_a_solution_is_float_and_sums_are_double() -> None:
    """Rows of a large mean: in single precision the sum of many squares loses what tells them apart."""
    x, y, _ = rows(4000, 0.0)
    x = x + 300
    sums = NormalEquations(12, 3)
    for a, b in zip(x.double().split(100), y.double().split(100), strict=True):
        sums.add(a, b)
    assert sums.solve(torch.zeros(3, 12)).dtype == torch.float32
    expected = x.double().T @ x.double()
    assert float((4000 * sums.moments_of(torch.eye(12)) - expected).abs().max() / expected.abs().max()) < 1e-12
    expected = y.double().T @ x.double()
    assert float((sums.cross.sum(0) - expected).abs().max() / expected.abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("count", "noise", "prior", "expected"),
    [
        (2000, 0.01, 0.0, 3e-3 / 27),  # many clean rows: as little as is tried
        (20, 3.0, 1.0, 3e-3 * 243),  # few noisy ones near a good prior: as much as is tried
        (60, 1.0, 0.8, None),
        (200, 1.0, 0.9, None),
        (100, 0.3, 0.5, None),
    ],
)
def test_the_damping_has_the_least_held_out_error_of_its_steps(
    count: int, noise: float, prior: float, expected: float | None
) -> None:
    """Steps of three from 1.1e-4 to 0.73; rows that are held out choose, and then count as the others do."""
    x, y, matrix = rows(count, noise)
    start, fitting = prior * matrix, count - count // 4
    steps = [3e-3 * 3.0**k for k in range(-3, 6)]
    errors = [
        float((y[fitting:] - x[fitting:] @ summed(x[:fitting], y[:fitting], 0.0).solve(start, d).T).square().sum())
        for d in steps
    ]
    best = steps[min(range(9), key=errors.__getitem__)]
    if expected is not None:
        assert best == pytest.approx(expected)
    found, same = summed(x, y).solve(start), summed(x, y).solve(start, best)
    torch.testing.assert_close(found, same, rtol=1e-5, atol=1e-6)
    others = [summed(x, y).solve(start, d) for d in steps if d != best]
    assert all(not torch.allclose(found, other, rtol=1e-5, atol=1e-6) for other in others)


@given(
    rows=st.integers(2, 40),
    unknowns=st.integers(3, 60),
    held_out=st.sampled_from([0.0, 0.25, 0.6]),
    damping=st.sampled_from([None, 1e-3, 0.1]),
    pieces=st.integers(1, 3),
)
def test_few_rows_and_sums_give_one_solution(
    rows: int, unknowns: int, held_out: float, damping: float | None, pieces: int
) -> None:
    """However many rows there are for each unknown, and in whatever pieces they come."""
    draw = torch.Generator().manual_seed(rows + 100 * unknowns)
    x, y = (torch.randn(rows, size, generator=draw, dtype=torch.float64) for size in (unknowns, 2))
    prior = torch.randn(2, unknowns, generator=draw)
    kept = summed(x, y, held_out, min(pieces, rows - int(held_out * rows), int(held_out * rows) or 1))
    sums = summed(x, y, held_out)
    sums.gram  # noqa: B018  from here on nothing is kept but sums
    for each in (kept, sums):
        assert each.rows == [rows - int(held_out * rows), int(held_out * rows)]
    torch.testing.assert_close(kept.solve(prior, damping), sums.solve(prior, damping), rtol=1e-5, atol=1e-5)
    mix = torch.randn(4, unknowns, generator=draw)
    torch.testing.assert_close(kept.moments_of(mix), sums.moments_of(mix))


def test_no_sums_are_made_of_few_rows() -> None:
    """They would take eight times the square of the unknowns in bytes, twice."""
    x, y = torch.randn(100, 600), torch.randn(100, 4)
    sums = summed(x, y, pieces=5)
    sums.solve(torch.zeros(4, 600))
    assert sums._sums is None
    sums.add(torch.randn(10_000, 600), torch.randn(10_000, 4))
    assert sums._sums is not None


def test_inputs_that_are_all_zero_leave_the_prior() -> None:
    prior = torch.ones(3, 12)
    sums = summed(torch.zeros(40, 12), torch.randn(40, 3))
    torch.testing.assert_close(sums.solve(prior, 0.1), prior)


def test_a_system_that_is_not_positive_definite_is_solved_too() -> None:
    """Sums of rows are never such; rounding can make them so."""
    sums = NormalEquations(2, 1)
    sums.gram[0] = torch.tensor([[1.0, 0.0], [2.0, 1.0]])  # read below its diagonal: eigenvalues -1 and 3
    sums.cross[0] = torch.tensor([[4.0, 5.0]])
    torch.testing.assert_close(sums.solve(torch.zeros(1, 2), 1e-12), torch.tensor([[2.0, 1.0]]))


def test_sums_are_those_of_all_rows_however_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, _ = rows(200, 0.5)
    waiting = summed(x, y, pieces=10)
    monkeypatch.setattr("sinf.compress.least_squares._WAITING", 1)
    at_once = summed(x, y, pieces=10)
    for sums in (waiting, at_once):
        assert sums.rows == [150, 50]
        torch.testing.assert_close(sums.moments_of(torch.eye(12)), (x.T @ x / 200).double(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sums.cross.sum(0), (y.T @ x).double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [30, 400])
def test_some_of_many_outputs_say_how_much_damping_there_is(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All outputs have the damping that those say, in sums and in rows."""
    draw = torch.Generator().manual_seed(2)
    x, matrix = torch.randn(count, 60, generator=draw), torch.randn(8, 60, generator=draw)
    y = x @ matrix.T
    y[:, 1::2] += 8 * torch.randn(count, 4, generator=draw)  # these would have more damping
    monkeypatch.setattr("sinf.compress.least_squares._SAYING", 4)
    found, prior = summed(x, y).solve(torch.zeros(8, 60)), torch.zeros(8, 60)
    monkeypatch.setattr("sinf.compress.least_squares._SAYING", 8)
    alone = summed(x, y[:, ::2].contiguous()).solve(prior[::2])
    torch.testing.assert_close(found[::2], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(summed(x, y).solve(prior)[::2], alone, rtol=1e-3, atol=1e-4)
