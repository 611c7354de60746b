"""A criterion from outside the package, examples/distinct.py, goes where those of the package go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import distinct
import sinf as library
from outsider import outside_criterion
from program import Program
from sinf.criteria import make_criterion
from sinf.data.images import LabelledImages
from sinf.errors import ConfigError
from sinf.models import BaseModel, load_model
from sinf.statistics import SecondMoments, SiteStatistics

LINES = 40


@pytest.fixture
def outside() -> Iterator[str]:
    with outside_criterion() as name:
        yield name


def test_it_is_one_small_file() -> None:
    assert len(Path(distinct.__file__).read_text().splitlines()) <= LINES


def scores(x: Tensor) -> Tensor:
    gram = SecondMoments(x.T @ x, torch.tensor(len(x)))
    return distinct.Distinct().score_channels(SiteStatistics("site", torch.ones(1, x.shape[1], 1), len(x), [gram]))


def test_it_follows_its_formula() -> None:
    """Against least squares by every stronger channel."""
    x = torch.randn(200, 5).double() @ torch.randn(5, 5).double()
    squares = x.square().mean(0)
    expected = squares.clone()
    for j in range(5):
        for i in range(5):
            if squares[i] > squares[j]:
                fit = torch.linalg.lstsq(x[:, [i]], x[:, [j]]).solution
                expected[j] = min(expected[j], (x[:, [j]] - x[:, [i]] @ fit).square().mean())
    torch.testing.assert_close(scores(x), expected / expected.sum())


def test_of_twins_one_is_worth_nothing_and_so_is_what_never_fires() -> None:
    x = torch.randn(100, 4).double()
    x[:, 3] = 2 * x[:, 1]
    x[:, 2] = 0
    made = scores(x)
    assert made[[1, 2]].abs().max() < 1e-12
    assert made[[0, 3]].min() > 0.1


def with_twins() -> BaseModel:
    """The first two filters are the same, and larger than the others, so that no criterion of weights takes them."""
    torch.manual_seed(0)
    base = load_model("vgg11", classes=6, options={"width": 0.125})
    first = base.module.get_submodule("features.0")
    with torch.no_grad():
        first.weight[1].copy_(first.weight[0].mul_(5))
        first.bias[1].copy_(first.bias[0])
    return base


def first_filters(made: BaseModel) -> Tensor:
    return made.module.state_dict()["features.0.weight"]


@pytest.mark.parametrize("criterion", ["distinct", "l1"])
def test_it_prunes(outside: str, criterion: str, tiny_images: LabelledImages, tmp_path: Path) -> None:
    """An eighth of the channels goes, one of eight of the first layer: a twin, which the norm of filters would keep."""
    config = library.PruneConfig(
        library.Amount(ratio=0.125), "channels", limits=None, criterion=criterion, reconstruct=False, round_to=1
    )
    made = first_filters(library.prune(with_twins(), tiny_images, config, tmp_path))
    assert len(made) == 7
    assert len(made.unique(dim=0)) == (7 if criterion == outside else 6)


def test_the_command_line_and_the_card_name_it(
    outside: str, sinf: Program, data: Path, weights: Path, tmp_path: Path
) -> None:
    sinf(
        "prune", "vgg11", "--weights", weights, "--data", data, "--test", "test", "--ratio", 0.25, "--images", 36,
        "--criterion", outside, "--pairs", 3, "--keep-anyway", "--out", tmp_path / "out",
    )  # fmt: skip
    assert f"criterion: {outside}" in (tmp_path / "out" / "README.md").read_text()


def test_where_it_is_not_imported_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no such criterion \(got distinct\)"):
        make_criterion("distinct")
