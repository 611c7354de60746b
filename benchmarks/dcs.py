"""Why DCS loses, part by part: variants between DCS and residual energy, at equal MACs.

    python benchmarks/dcs.py vgg16 WEIGHTS CIFAR100

All on the same statistics and images as benchmarks/criteria.py, the same share of channels in every layer:

    dcs               the paper's: the norm of a channel's weights in a linear classifier of the classes
    dcs-elimination   what that classifier loses when the channel goes and the others are fitted again: redundancy
    dcs-energy        geometric mean of its share and the share of the energy that reaches the next layer: reach
    reach             what the next layer's outputs lose when it goes and the others make up for it
    reach-dcs         the same, each output counting by its own DCS: what discriminates, and reaches the consumer
    residual          the same, each output counting by how strongly the answer depends on it
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from criteria import CLUSTER, SCORES, STATIC, Job, Side, published, run
from sinf.compress.channels import importances
from sinf.criteria import make_criterion
from sinf.criteria.base import SiteCriterion, share
from sinf.criteria.dcs import DCS
from sinf.statistics import PooledGram, Sensitivity, SiteStatistics, Statistics, SumsByClass

NAMES = ("dcs", "dcs-elimination", "dcs-energy", "reach", "reach-dcs", "residual")
STEPS = 64


class Elimination(SiteCriterion):
    """Backward elimination from DCS's own classifier: with A = R + ridge I of standardised features and W = A^-1 B,
    removing feature j and fitting again costs ||W_j||^2 / (A^-1)_jj. A channel's importance is its cost when it
    goes."""

    name = "dcs-elimination"
    needs = DCS().needs

    def score_channels(self, site: SiteStatistics) -> Tensor:
        rule = DCS()
        by_class = site[SumsByClass]
        present = by_class.counts > 0
        images = float(by_class.counts.sum())
        sums = by_class.sums[present].double()
        mean = sums.sum(0) / images
        covariance = site[PooledGram].gram.double() / images - torch.outer(mean, mean)
        deviation = torch.diagonal(covariance).clamp(min=0).sqrt()
        scale = torch.where(deviation > 1e-8 * deviation.max(), 1 / deviation.clamp(min=1e-30), 0.0)
        system = covariance * torch.outer(scale, scale) + rule.ridge * torch.eye(len(scale), dtype=torch.float64)
        inverse = torch.linalg.inv(system)
        weights = inverse @ ((sums - by_class.counts[present].double()[:, None] * mean) * scale / images).T
        alive = torch.ones(len(scale), dtype=torch.bool)
        cost, floor = torch.zeros(len(scale), dtype=torch.float64), 0.0
        block = max(1, len(scale) // STEPS)
        while alive.any():
            now = weights.square().sum(1) / torch.diagonal(inverse).clamp(min=1e-30)
            now[~alive] = torch.inf
            going = torch.argsort(now, stable=True)[: min(block, int(alive.sum()))]
            cost[going] = now[going].clamp(min=floor)
            floor = float(cost[going].max())
            alive[going] = False
            across = torch.linalg.solve(inverse[going][:, going], torch.cat([inverse[going], weights[going]], 1))
            weights = weights - inverse[:, going] @ across[:, len(scale) :]
            inverse = inverse - inverse[:, going] @ across[:, : len(scale)]
            inverse[going], inverse[:, going], weights[going] = 0, 0, 0
            inverse[going, going] = 1
        return share(cost)


def elimination(side: Side, job: Job) -> dict[str, Tensor]:
    return importances(Elimination(), side.network.graph, side.network.coupling, side.groups, side.sites)


def dcs_energy(side: Side, job: Job) -> dict[str, Tensor]:
    dcs, energy = (published(side, job._replace(criterion=name)) for name in ("dcs", "energy"))
    return {name: (dcs[name] * energy[name]).sqrt() for name in dcs}


def reach(side: Side, job: Job, by_dcs: bool = False) -> dict[str, Tensor]:
    """Residual energy with another sensitivity of what layers write."""
    coupling = side.network.coupling
    of_unit = torch.ones(coupling.units)
    if by_dcs:
        for name, scores in published(side, job._replace(criterion="dcs")).items():
            of_unit[coupling.groups[name].units] = scores * len(scores)  # 1 on average, as what is not scored
    sites = Statistics()
    sites.images, sites.units = side.sites.images, side.sites.units
    for target, site in side.sites.items():
        weight = of_unit[coupling.writes[target].units] * site.images
        sites[target] = site.but(Sensitivity(weight))
    return importances(make_criterion("residual"), side.network.graph, side.network.coupling, side.groups, sites)


SCORES |= {
    "dcs-elimination": elimination,
    "dcs-energy": dcs_energy,
    "reach": reach,
    "reach-dcs": lambda side, job: reach(side, job, by_dcs=True),
}


def plan() -> list[Job]:
    jobs = [
        *product((STATIC,), NAMES, ("uniform",), (0.5,), ("reconstructed", "recalibrated"), (0,)),
        *product((CLUSTER,), NAMES, ("uniform",), (0.5,), ("reconstructed", "recalibrated"), (0,)),
        *product((STATIC, CLUSTER), NAMES, ("uniform",), (0.3,), ("reconstructed",), (0,)),
        *product((STATIC,), NAMES, ("budget",), (0.5,), ("reconstructed",), (0,)),
        *product((STATIC,), NAMES, ("uniform",), (0.5, 0.3), ("reconstructed",), (1, 2)),
    ]
    return [Job(*job) for job in jobs]


def main(
    name: str,
    weights: Path,
    data: Path,
    rows: Annotated[int, typer.Option(help="How many images of test[50%:] to report on.")] = 2000,
    minutes: Annotated[float, typer.Option(help="Begin no row after this time.")] = 1e9,
    keep: Annotated[bool, typer.Option(help="Leave out rows that are in the file.")] = False,
) -> None:
    run(f"dcs_{name}.csv", plan(), name, weights, data, rows, minutes, keep)


if __name__ == "__main__":
    typer.run(main)
