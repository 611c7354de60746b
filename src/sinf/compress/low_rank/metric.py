"""What a rank loses, in nats of the answer of an image, for both forms of two layers.

Through **channels**: with C the covariance of what the layer writes, dropping all but the r largest eigenvectors of
F^1/2 C F^1/2 costs half of the sum of the other eigenvalues.

**Separable**: what the layer writes is a sum over the rows i of its kernel, ``y = sum_i W_i u_i``, where row i reads
``u_i`` (C kw). What rows read has one covariance S for all of them; their correlation T (kh, kh) depends on their
distance alone, so the covariance of all rows together is taken as the Kronecker product of T and S. Then with ``A``
(kh O, C kw) the rows ``sum_i (T^1/2)_ki F^1/2 W_i S^1/2``, keeping r of the right singular vectors V of A costs half of
the sum of the other squared singular values; what rows read is reduced by ``V' S^-1/2``. On VGG16 that is within 15 per
cent of the cost by the covariance of whole patches.

In 8-bit integers what passes between the two layers is rounded as well. It is mixed
(:mod:`sinf.compress.low_rank.solve`) so that all of its channels vary equally; then rounding adds a share of that
variance to each (:attr:`sinf.graph.price.LayerTimes.rounding`). Through channels this costs that share of all that is
kept. Separable it costs more: neighbouring rows of an image are similar and what is rounded off them is not, so that a
kernel which tells differences between rows hears the rounding far better than the image; the first layers do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sinf.statistics import Fisher, KernelRows, OutputMoments, SiteStatistics, Statistics

_FLOOR = 1e-2  # of the mean of F's diagonal: what the answer hardly feels still counts a little
_FLAT = 1e-6  # of the mean variance: inputs that hardly change


@dataclass(frozen=True)
class Metric:
    """How the answer feels what a layer writes.

    Attributes:
        root: ``(O, O)`` F^1/2, and ``inverse`` F^-1/2.
        values: ``(O,)``, falling: the effects of channels, in twice the nats of an image.
        kernel_rows: ``(C kw,)``, falling: those of reduced rows; empty where a layer cannot be separable.
        kernel_row_noise: ``(C kw,)``, in the same order: those of noise as strong as what passes, in every row its own.
        kernel_row_positions: how many rows of the kernel read an image.
    """

    root: Tensor
    inverse: Tensor
    values: Tensor
    kernel_rows: Tensor
    kernel_row_noise: Tensor
    kernel_row_positions: float

    def channels(self, covariance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """``(O, r), (r, O)`` from the covariance of what is written: their product keeps the ``rank`` directions of
        most effect on the answer."""
        vectors = torch.linalg.eigh(self.root @ covariance.double() @ self.root).eigenvectors.flip(1)[:, :rank]
        return self.inverse @ vectors, vectors.T @ self.root

    def separable(self, weight: Tensor, covariance: Tensor, correlation: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """``(O, r, kh), (r, C kw)`` for a weight ``(O, C, kh, kw)``, S and T: two layers that keep the ``rank``
        directions of most effect."""
        half, whiten = _roots(covariance)
        vectors = _kernel_row_effects(weight, self.root, half, correlation)[2][:, :rank]
        rows = weight.double().permute(0, 2, 1, 3).flatten(2)  # (O, kh, C kw)
        return (rows @ (half @ vectors)).transpose(1, 2), vectors.T @ whiten


def metrics(found: Statistics) -> dict[str, Metric]:
    """By target, from sums over images (:class:`sinf.compress.low_rank.LowRank`)."""
    return {target: _metric(site) for target, site in found.items()}


def _metric(site: SiteStatistics) -> Metric:
    fisher = site[Fisher].total.double() / max(1, site.images)  # of an image, all positions together
    level = torch.diagonal(fisher).mean().clamp(min=1e-30)
    values, vectors = torch.linalg.eigh(fisher + _FLOOR * level * torch.eye(len(fisher), dtype=torch.float64))
    values = values.clamp(min=1e-3 * _FLOOR * level)
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T
    inverse = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    effect = torch.linalg.eigvalsh(root @ site[OutputMoments].covariance() @ root).flip(0).clamp(min=0)
    rows_read = site[KernelRows]
    if not rows_read.present:
        return Metric(root, inverse, effect, torch.zeros(0), torch.zeros(0), 0.0)
    half, _ = _roots(rows_read.covariance())
    effects, noise, _ = _kernel_row_effects(rows_read.as_kernel(site.weight), root, half, rows_read.row_correlation())
    return Metric(root, inverse, effect, effects, noise, rows_read.count / max(1, site.images))


def _roots(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """S^1/2 and S^-1/2."""
    values, vectors = torch.linalg.eigh(covariance.double())
    values = values.clamp(min=max(1e-30, _FLAT * float(values.mean())))
    return vectors @ torch.diag(values.sqrt()) @ vectors.T, vectors @ torch.diag(values.rsqrt()) @ vectors.T


def _kernel_row_effects(
    weight: Tensor, root: Tensor, half: Tensor, correlation: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``(C kw,), (C kw,), (C kw, C kw)``: squared singular values of A, falling, what they would be if no two rows of
    an image were similar (T = 1), and A's right singular vectors as columns."""
    values, vectors = torch.linalg.eigh(correlation.double())
    across = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T  # T^1/2
    sensitivity = torch.einsum("po,ocil->ipcl", root, weight.double()).flatten(2)  # (kh, O, C kw)
    a = torch.einsum("ki,ipc->kpc", across, sensitivity).flatten(0, 1) @ half
    values, vectors = torch.linalg.eigh(a.T @ a)
    vectors = vectors.flip(1)
    noise = (sensitivity.flatten(0, 1) @ (half @ vectors)).square().sum(0)
    return values.flip(0).clamp(min=0), noise, vectors
