"""Route predictor: a small classifier from extracted features to the semantic cluster, and its calibration.

It learns from the base model: its targets are the probabilities that the base model gives to the clusters, so that it
doubts where the base model does. Features are computed once and cached; training takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sinf.errors import ConfigError
from sinf.machine.precision import teaching
from sinf.routing.predictor_config import RouterConfig as RouterConfig

_SCALED_BY = 4096  # images
_EPSILON = 1e-5  # of a variance, for channels that are dead


class RoutePredictor(nn.Module):
    """``(B, C, H, W)`` features -> ``(B, clusters)`` logits, divided by the calibrated temperature; ``macs`` an
    input."""

    temperature: Tensor

    def __init__(self, shape: tuple[int, ...], clusters: int, config: RouterConfig) -> None:
        super().__init__()
        channels, height, width = shape
        rows, columns = min(config.side, height), min(config.side, width)
        reduced, padding = min(config.channels, channels), config.kernel // 2
        left = -(-rows // 2) * -(-columns // 2)  # positions
        self.pool = nn.Identity() if (rows, columns) == (height, width) else nn.AdaptiveAvgPool2d((rows, columns))
        self.reduce = nn.Conv2d(channels, reduced, config.kernel, padding=padding)
        self.reduce_norm = nn.BatchNorm2d(reduced)
        self.hidden = nn.Conv2d(reduced, config.hidden, config.kernel, stride=2, padding=padding)
        self.hidden_norm = nn.BatchNorm2d(config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden * left, clusters)
        self.macs = rows * columns * self.reduce.weight.numel() + left * self.hidden.weight.numel()
        self.macs += self.head.weight.numel()
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        x = F.relu(self.reduce_norm(self.reduce(self.pool(features))))
        x = F.relu(self.hidden_norm(self.hidden(x)))
        return self.head(self.dropout(torch.flatten(x, 1))) / self.temperature

    @torch.no_grad()
    def folded(self) -> RoutePredictor:
        """The same function (in eval mode) as it is run, norms and temperature inside the three layers."""
        self.reduce = fuse_conv_bn_eval(self.reduce, self.reduce_norm)
        self.hidden = fuse_conv_bn_eval(self.hidden, self.hidden_norm)
        self.head.weight.div_(self.temperature)
        self.head.bias.div_(self.temperature)
        self.reduce_norm = self.hidden_norm = self.dropout = nn.Identity()
        self.temperature = torch.ones(())
        return self.requires_grad_(False)


class SingleRoute(RoutePredictor):
    """The predictor of one cluster that holds all classes: ``(B, C, H, W)`` features -> ``(B, 1)`` zeros."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.macs = 0
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        return features.new_zeros(features.shape[0], 1)

    def folded(self) -> RoutePredictor:
        return self


def make_predictor(shape: tuple[int, ...], clusters: int, config: RouterConfig) -> RoutePredictor:
    """An untrained predictor of ``clusters`` from features of ``shape`` (C, H, W)."""
    return SingleRoute() if clusters == 1 else RoutePredictor(shape, clusters, config)


def predictor_macs(shape: tuple[int, ...], clusters: int, config: RouterConfig) -> int:
    """MACs of a route predictor that reads features of ``shape`` (C, H, W)."""
    with torch.device("meta"):
        return make_predictor(shape, clusters, config).macs


def train_router(
    features: Tensor,
    targets: Tensor,
    config: RouterConfig,
    progress: Callable[[int, int], None] | None = None,
) -> RoutePredictor:
    """Fit a route predictor to cached ``features`` (N, C, H, W), any float type, and cluster probabilities ``targets``
    (N, clusters)."""
    if len(features) < 2:
        raise ConfigError("a route predictor needs at least two images", got=len(features), remedy="give more")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return _train(features, targets, config, progress)


def _train(
    features: Tensor, targets: Tensor, config: RouterConfig, progress: Callable[[int, int], None] | None
) -> RoutePredictor:
    generator = torch.Generator().manual_seed(config.seed)
    router = RoutePredictor(tuple(features.shape[1:]), targets.shape[1], config)
    scale = _scale(features, router, generator)
    batch = min(config.batch, len(features))
    steps = len(features) // batch
    optimizer = torch.optim.AdamW(router.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.epochs * steps + 1, pct_start=0.2
    )
    router.train()
    for epoch in range(config.epochs):
        order = torch.randperm(len(features), generator=generator)
        for step in range(steps):
            rows = order[step * batch : (step + 1) * batch]
            with teaching():
                logits = router(features[rows].float() * scale)
            loss = F.cross_entropy(logits.float(), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(epoch * steps + step + 1, config.epochs * steps)
    router.eval().requires_grad_(False)
    router.reduce.weight.mul_(scale)
    return router


def _scale(features: Tensor, router: RoutePredictor, generator: torch.Generator) -> Tensor:
    """``(C, 1, 1)`` with which channels have a variance of one. Their means are left to the norm after the convolution:
    taken away before, they would have to be taken from its padding too, and could not be folded into it."""
    sample = torch.randperm(len(features), generator=generator)[:_SCALED_BY]
    variance = router.pool(features[sample].float()).var((0, 2, 3), correction=0)
    return (variance + _EPSILON).rsqrt()[:, None, None]


@torch.no_grad()
def calibrate(router: RoutePredictor, features: Tensor, clusters: Tensor) -> float:
    """Set the temperature that gives calibration images (N, C, H, W) of true ``clusters`` (N,) the largest likelihood
    (Guo et al., On Calibration of Modern Neural Networks, ICML 2017), and return it."""
    logits = torch.cat([router(part.float()) for part in features.split(512)]) * router.temperature
    grid = torch.logspace(-1, 1, 201)
    losses = torch.stack([F.cross_entropy(logits / t, clusters) for t in grid])
    router.temperature.fill_(float(grid[losses.argmin()]))
    return float(router.temperature)
