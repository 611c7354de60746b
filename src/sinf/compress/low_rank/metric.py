"""What a rank loses, in nats of the answer of an image, for both forms of two layers.

Through **channels**: with C the covariance of what the layer writes, dropping all but the r largest eigenvectors of
F^1/2 C F^1/2 costs half of the sum of the other eigenvalues.

**In groups** every group g of a convolution keeps the r largest eigenvectors V of F_g^1/2 C_g F_g^1/2, of its own block
of both matrices, and writes ``sum_k d_k z_k`` with ``d_k = F_g^-1/2 v_k`` and ``z_k = v_k' F_g^1/2 y_g``. What groups
lose together is half of the sum of ``(d_k' F d_l) Cov(z_k, z_l)`` over all that went, of whatever group.

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

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sinf.statistics import Fisher, KernelRows, OutputMoments, SiteStatistics

_FLOOR = 1e-2  # of the mean of F's diagonal: what the answer hardly feels still counts a little
_FLAT = 1e-6  # of the mean variance: inputs that hardly change
_NUMBERS = {"kernel_row_positions": torch.float64, "groups": torch.int64}  # what is no tensor, and its type as one


@dataclass(frozen=True)
class Losses:
    """What ranks of a layer lose: all that a plan has to know of it, a few numbers a channel.

    Attributes:
        values: ``(O / groups,)``, falling: the effects of channels, in twice the nats of an image; in groups, of the
            first of every group, the second of every group and so on (which may rise here and there).
        kernel_rows: ``(C kw,)``, falling: those of reduced rows; empty where a layer cannot be separable.
        kernel_row_noise: ``(C kw,)``, in the same order: those of noise as strong as what passes, in every row its own.
        kernel_row_positions: how many rows of the kernel read an image.
        groups: of the convolution.
    """

    values: Tensor
    kernel_rows: Tensor
    kernel_row_noise: Tensor
    kernel_row_positions: float
    groups: int


@dataclass(frozen=True)
class Metric(Losses):
    """How the answer feels what a layer writes: decomposed once, for every rank.

    Attributes:
        root: ``(O, O)`` F^1/2, and ``inverse`` F^-1/2; of a convolution in groups, of the blocks of F.
        basis: ``(O, O)`` the eigenvectors of F^1/2 C F^1/2 as columns, in the order of ``values``; in groups, of the
            blocks.
        mean: ``(O,)`` of what is written.
        kernel_row_read: ``(C kw, C kw)`` V' L^-1 and ``kernel_row_write`` L V, where S = L L', in the order of
            ``kernel_rows`` (float32); empty where a layer cannot be separable, as is
        kernel_row_mean: ``(C kw,)`` of what rows read.
    """

    root: Tensor
    inverse: Tensor
    basis: Tensor
    mean: Tensor
    kernel_row_read: Tensor
    kernel_row_write: Tensor
    kernel_row_mean: Tensor

    @property
    def losses(self) -> Losses:
        """Without what only solving reads, which is far larger."""
        return Losses(**{field.name: getattr(self, field.name) for field in fields(Losses)})

    def channels(self, rank: int, group: int = 0, covariance: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(o, r), (r, o)`` of what one ``group`` writes, all where there are none: their product keeps the ``rank``
        directions of most effect on the answer, where what is written has another ``covariance`` (o, o) of that."""
        rows = self.rows_of(group)
        root, inverse, basis = (each[rows, rows] for each in (self.root, self.inverse, self.basis))
        if covariance is not None:
            basis = torch.linalg.eigh(root @ covariance.double() @ root).eigenvectors.flip(1)
        vectors = basis[:, :rank]
        return inverse @ vectors, vectors.T @ root

    def separable(self, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """``(O, r, kh), (r, C kw)`` for a weight ``(O, C, kh, kw)``: two layers that keep the ``rank`` directions of
        most effect."""
        rows = weight.double().permute(0, 2, 1, 3).flatten(2)  # (O, kh, C kw)
        return (rows @ self.kernel_row_write[:, :rank].double()).transpose(1, 2), self.kernel_row_read[:rank].double()

    def rows_of(self, group: int) -> slice:
        """The outputs of a group."""
        size = len(self.root) // self.groups
        return slice(group * size, (group + 1) * size)


def metrics(statistics: Mapping[str, SiteStatistics], groups: Mapping[str, int] | None = None) -> dict[str, Metric]:
    """By target, from sums over images (:class:`sinf.compress.low_rank.LowRank`); ``groups`` are those of convolutions
    that have some."""
    return {target: _metric(site, (groups or {}).get(target, 1)) for target, site in statistics.items()}


def to_tensors(metrics_by_target: Mapping[str, Metric]) -> dict[str, Tensor]:
    """All that metrics hold, by ``FIELD.TARGET``."""
    return {
        f"{field.name}.{target}": torch.as_tensor(getattr(metric, field.name), dtype=_NUMBERS.get(field.name))
        for target, metric in metrics_by_target.items()
        for field in fields(Metric)
    }


def from_tensors(tensors: Mapping[str, Tensor], targets: Iterable[str]) -> dict[str, Metric]:
    """The inverse of :func:`to_tensors`."""

    def value(name: str, target: str) -> Tensor | float:
        tensor = tensors[f"{name}.{target}"]
        return tensor.item() if name in _NUMBERS else tensor

    names = [field.name for field in fields(Metric)]
    return {target: Metric(**{name: value(name, target) for name in names}) for target in targets}  # type: ignore[arg-type]


def _metric(site: SiteStatistics, groups: int) -> Metric:
    outputs, rows_read, none = site[OutputMoments], site[KernelRows], torch.zeros(0)
    fisher = site[Fisher].total.double() / max(1, site.images)  # of an image, all positions together
    level = torch.diagonal(fisher).mean().clamp(min=1e-30)
    fisher = fisher + _FLOOR * level * torch.eye(len(fisher), dtype=torch.float64)
    if groups > 1:
        values, root, inverse, basis = _of_groups(fisher, outputs.covariance(), groups)
        return Metric(values, none, none, 0.0, groups, root, inverse, basis, outputs.mean, none, none, none)
    root, inverse = roots(fisher, 1e-3 * _FLOOR * float(level))
    values, basis = torch.linalg.eigh(root @ outputs.covariance() @ root)
    values, basis = values.flip(0).clamp(min=0), basis.flip(1)
    if not rows_read.present:
        return Metric(values, none, none, 0.0, 1, root, inverse, basis, outputs.mean, none, none, none)
    covariance = rows_read.covariance()
    half, weight = triangular_root(covariance), rows_read.as_kernel(site.weight)
    effects, noise, vectors = _kernel_row_effects(weight, root, half, rows_read.row_correlation())
    read = torch.linalg.solve_triangular(half.T, vectors, upper=True).T
    varies = ((read @ covariance.double()) * read).sum(1).clamp(min=0)  # 1, but for what was added to the covariance
    return Metric(
        values, effects * varies, noise, rows_read.count / max(1, site.images), 1, root, inverse, basis, outputs.mean,
        read.float(), (half @ vectors).float(), rows_read.total / rows_read.count,
    )  # fmt: skip


def _of_groups(fisher: Tensor, covariance: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``values``, ``root``, ``inverse`` and ``basis`` from F and C of all groups."""
    size = len(fisher) // groups
    halves, inverses, vectors = [], [], []
    for first in range(0, len(fisher), size):
        rows = slice(first, first + size)
        block = fisher[rows, rows]
        root, inverse = roots(block, 1e-3 * _FLOOR * float(torch.diagonal(block).mean()))
        halves.append(root)
        inverses.append(inverse)
        vectors.append(torch.linalg.eigh(root @ covariance[rows, rows] @ root).eigenvectors.flip(1))
    root, inverse, basis = (torch.block_diag(*each) for each in (halves, inverses, vectors))
    written, read = inverse @ basis, root @ basis  # columns d_k, and what z_k reads
    both = (written.T @ fisher @ written) * (read.T @ covariance @ read)
    both = both.unflatten(0, (groups, size)).unflatten(2, (groups, size)).sum((0, 2))  # of the k-th of all groups
    lost = both.flip(0, 1).cumsum(0).cumsum(1).diagonal().flip(0)  # what goes with all from the k-th on
    return lost - torch.cat([lost[1:], lost.new_zeros(1)]), root, inverse, basis


def roots(matrix: Tensor, least: float | None = None) -> tuple[Tensor, Tensor]:
    """S^1/2 and S^-1/2 of a symmetric matrix, whose eigenvalues count as the ``least`` at least; without, as a small
    share of their mean."""
    values, vectors = torch.linalg.eigh(matrix.double())
    values = values.clamp(min=max(1e-30, _FLAT * float(values.mean())) if least is None else least)
    return vectors @ torch.diag(values.sqrt()) @ vectors.T, vectors @ torch.diag(values.rsqrt()) @ vectors.T


def triangular_root(matrix: Tensor) -> Tensor:
    """L, lower triangular, of a covariance S = L L', to which a small share of its mean variance is added: what hardly
    varies in some images may vary in others, and dividing by less would make that large. It serves as S^1/2 does, and
    takes a hundredth of the time, unless rounded sums have left S indefinite: then it is made of that."""
    system = matrix.double().clone()
    system.diagonal().add_(_FLAT * torch.diagonal(matrix).mean().clamp(min=1e-30))
    factor, failed = torch.linalg.cholesky_ex(system)
    return torch.linalg.qr(roots(system)[0]).R.T if int(failed) else factor


def _kernel_row_effects(
    weight: Tensor, root: Tensor, half: Tensor, correlation: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``(C kw,), (C kw,), (C kw, C kw)``: squared singular values of A, falling, what they would be if no two rows of
    an image were similar (T = 1), and V, A's right singular vectors as columns, from L (``half``)."""
    values, vectors = torch.linalg.eigh(correlation.double())
    across = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T  # T^1/2
    sensitivity = torch.einsum("po,ocil->ipcl", root, weight.double()).flatten(2)  # (kh, O, C kw)
    a = torch.einsum("ki,ipc->kpc", across, sensitivity).flatten(0, 1) @ half
    values, vectors = torch.linalg.eigh(a.T @ a)
    vectors = vectors.flip(1)
    noise = (sensitivity.flatten(0, 1) @ (half @ vectors)).square().sum(0)
    return values.flip(0).clamp(min=0), noise, vectors
