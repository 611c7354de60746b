"""Purpose-made tiny networks, each showing one thing that coupling and slicing must handle, and tiny data."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, fx, nn

from sinf.data.images import LabelledImages, Preprocessing, load_images
from sinf.engine import engines
from sinf.graph.coupling import Coupling
from sinf.graph.trace import trace

CLASSES = 6
COLOUR = Preprocessing((3, 8, 8), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
GREY = Preprocessing((1, 8, 8), (0.5,), (0.25,))
#: Every engine; compiling takes minutes.
ENGINES = [pytest.param(name, marks=pytest.mark.slow) if name == "torch-compile" else name for name in engines.RUNTIMES]


def conv(channels: int, out: int, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    """Convolution that keeps the size, batch norm, ReLU."""
    layers = nn.Conv2d(channels, out, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layers, nn.BatchNorm2d(out), nn.ReLU())


class Chain(nn.Module):
    """Plain convolutions; flattened with height and width, so that a channel is 16 neighbouring inputs of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv(3, 6)
        self.second = nn.Sequential(nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(5 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.second(self.first(x))), 1))


class Residual(nn.Module):
    """``stem`` and ``inner.1`` are summed, in place; ``inner.0`` is free."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = conv(3, width)
        self.inner = nn.Sequential(conv(width, 4), nn.Conv2d(4, width, 1))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x.add_(self.inner(x))
        return self.head(F.relu(x).mean((2, 3)))


class Depthwise(nn.Module):
    """A depthwise convolution ties its input and output, and a gate (squeeze and excite) its factor."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = conv(3, 8, 1)
        self.depthwise = conv(8, 8, groups=8)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.excite = nn.Conv2d(4, 8, 1)
        self.project = conv(8, 5, 1)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.expand(x))
        gate = torch.sigmoid(self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(self.project(x * gate).mean((2, 3)))


class Concat(nn.Module):
    """Two branches side by side, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv(3, 4), conv(3, 3)
        self.norm = nn.BatchNorm2d(11)
        self.join = conv(11, 5, 1)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        return self.head(self.join(self.norm(torch.cat([left, right, left], dim=1))).mean((2, 3)))


class Grouped(nn.Module):
    """A convolution in three groups: two inputs and four outputs each, which can only go together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.grouped = conv(6, 12, groups=3)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.grouped(self.stem(x)).mean((2, 3)))


class WideGroups(nn.Module):
    """As in a ResNeXt: between two 1x1 convolutions one in groups of eight channels, and a sum around them."""

    def __init__(self, groups: int = 2) -> None:
        super().__init__()
        self.stem, self.reduce = conv(3, 8), conv(8, 16, 1)
        self.grouped, self.expand = conv(16, 16, groups=groups), conv(16, 8, 1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.expand(self.grouped(self.reduce(x)))).mean((2, 3)))


class Scaled(nn.Module):
    """Parameters of a channel each, and a PReLU; ``(C, 1, 1)`` and ``(1, C, 1, 1)``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.gain = nn.Parameter(torch.rand(6, 1, 1) + 0.5)
        self.shift = nn.Parameter(torch.randn(1, 6, 1, 1))
        self.prelu = nn.PReLU(6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.prelu(self.stem(x) * self.gain + self.shift).mean((2, 3)))


class Shared(nn.Module):
    """One convolution called twice: what it reads and what it writes are the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 5)
        self.twice = nn.Conv2d(5, 5, 3, padding=1)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.twice(self.stem(x)))
        return self.head(self.twice(x).mean((2, 3)))


class Spatial(nn.Module):
    """A map of one channel multiplies all others: it ties nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.map = nn.Conv2d(6, 1, 1)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x * torch.sigmoid(self.map(x))).mean((2, 3)))


class ChannelsLast(nn.Module):
    """A linear layer over the channels of ``(B, H, W, C)``, as in ConvNeXt, without its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.down(F.gelu(self.up(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        return self.head((x + y).mean((2, 3)))


def shuffle(x: Tensor, groups: int) -> Tensor:
    """A channel shuffle written by hand."""
    batch, channels, height, width = x.shape
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(batch, -1, height, width)


class HalfShuffled(nn.Module):
    """What ``moved`` makes is shuffled; ``free`` comes later and is not."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = conv(3, 8)
        self.free = conv(8, 6)
        self.last = conv(6, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.free(shuffle(self.moved(x), 2))).mean((2, 3)))


class AllShuffled(nn.Module):
    """Nothing between input and output that is not shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = conv(3, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(shuffle(self.moved(x), 4).mean((2, 3)))


PIECES = ("plain", "residual", "depthwise", "gate", "grouped", "concat", "pool")


class Attention(nn.Module):
    """Tokens of 2x2 pixels, one block of attention and one of two linear layers: no place to cut, and products of
    values by values."""

    def __init__(self, width: int = 12, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Conv2d(3, width, 2, stride=2)
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.mlp(x)
        return self.head(x.mean(1))


class Windows(nn.Module):
    """Windows of 4x4 pixels in the place of images: convolutions, linear layers and attention run on each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.local = nn.Conv2d(3, 6, 1), nn.Sequential(conv(6, 8), nn.Conv2d(8, 8, 1))
        self.qkv, self.hidden, self.out = nn.Linear(8, 24), nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x.view(-1, 6, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, 6, 4, 4)
        x = self.local(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.out(F.relu(self.hidden(x)))
        return self.head(x.view(-1, 64, 8).mean(1))


class Mixed(nn.Module):
    """A network put together from ``PIECES``, for property tests. ``width`` is a multiple of two."""

    def __init__(self, pieces: Iterable[str], width: int = 4, flat: bool = False) -> None:
        super().__init__()
        self.stem = conv(3, width)
        self.pieces = nn.ModuleList()
        size = 8
        for piece in pieces:
            piece = "plain" if piece == "pool" and size == 1 else piece
            self.pieces.append(_Piece(piece, width))
            width += 4 if piece == "concat" else 0
            size //= 2 if piece == "pool" else 1
        self.flat = flat
        self.head = nn.Linear(width * (size**2 if flat else 1), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for piece in self.pieces:
            x = piece(x)
        return self.head(torch.flatten(x, 1) if self.flat else x.mean((2, 3)))


class _Piece(nn.Module):
    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind = kind
        if kind in ("plain", "residual"):
            self.body = nn.Sequential(conv(width, 5), nn.Conv2d(5, width, 1))
        elif kind == "depthwise":
            self.body = conv(width, width, groups=width)
        elif kind == "grouped":
            self.body = conv(width, width, groups=2)
        elif kind == "concat":
            self.body = conv(width, 4)
        elif kind == "gate":
            self.body = nn.Sequential(nn.Conv2d(width, 3, 1), nn.ReLU(), nn.Conv2d(3, width, 1), nn.Hardsigmoid())

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "residual":
            return F.relu(x + self.body(x))
        if self.kind == "concat":
            return torch.cat([x, self.body(x)], 1)
        if self.kind == "gate":
            return x * self.body(F.adaptive_avg_pool2d(x, 1))
        if self.kind == "pool":
            return F.max_pool2d(x, 2)
        return self.body(x)


NETWORKS = {
    cls.__name__: cls
    for cls in (Chain, Residual, Depthwise, Concat, Grouped, Scaled, Shared, Spatial, ChannelsLast, HalfShuffled)
}


#: One network for each way in which channels are coupled.
COUPLED = {
    "chain": Chain,
    "residual": lambda: Mixed(["residual", "plain"]),
    "depthwise": Depthwise,
    "concat": Concat,
    "grouped": Grouped,
}


def randomise(module: nn.Module) -> nn.Module:
    """Random statistics and scales, so that no channel is zero by accident and no layer is nearly the identity."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2)
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.normal_(0, 0.3)
        for name, parameter in part.named_parameters(recurse=False):
            if "scale" in name or "gamma" in name:  # LayerScale starts at one millionth
                parameter.data.uniform_(0.5, 1.5)
    return module.eval()


class Interrupted(Exception):
    """Raised in the middle of long work."""


def interrupt_at(step: int) -> Callable[[int, int], None]:
    """Progress that breaks off there."""

    def progress(done: int, total: int) -> None:
        if done == step:
            raise Interrupted

    return progress


def traced(module: nn.Module, preprocessing: Preprocessing = COLOUR) -> fx.GraphModule:
    """The module with random statistics, traced."""
    return trace(randomise(module), preprocessing)


def random_keep(coupling: Coupling, fraction: float = 0.6, seed: int = 0) -> Tensor:
    """``(units,)`` bool: about ``fraction`` of the units of every free group; every layer keeps at least one."""
    draw = torch.Generator().manual_seed(seed)
    keep = coupling.keep_all()
    for group in (group for group in coupling.groups.values() if group.blocked is None):
        keep[group.units] = torch.rand(group.size, generator=draw) < fraction
        for units in [group.units, *(coupling.writes[producer].units for producer in group.producers)]:
            if not keep[units].any():
                keep[units[torch.randint(len(units), (1,), generator=draw)]] = True
    return keep


def picture(seed: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB", file_format: str = "PNG") -> bytes:
    """A random image as a file; ``size`` is width and height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, file_format)
    return buffer.getvalue()


def write_parquet(
    folder: Path,
    images: list[bytes | None],
    columns: dict[str, tuple[list[int], list[str] | None]],
    split: str = "train",
    image_column: str = "img",
) -> Path:
    """A parquet shard as the hub stores them: an image column, and labels with or without names.

    Values are written as they are, also those that are out of range.
    """
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = datasets.Features({image_column: datasets.Image()})
    arrays: dict[str, pa.Array] = {
        image_column: pa.array(
            [None if image is None else {"bytes": image, "path": None} for image in images],
            pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        )
    }
    for name, (values, names) in columns.items():
        features[name] = datasets.Value("int64") if names is None else datasets.ClassLabel(names=names)
        arrays[name] = pa.array(values, pa.int64())
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays, schema=features.arrow_schema), folder / f"{split}-00000-of-00001.parquet")
    return folder


def tiny_data(folder: Path, count: int = 24, seed: int = 0) -> LabelledImages:
    """``count`` random colour images of 8x8 with labels 0..5 in turn."""
    names = [f"class{i}" for i in range(CLASSES)]
    labels = [i % CLASSES for i in range(count)]
    write_parquet(folder, [picture(seed + i) for i in range(count)], {"label": (labels, names)})
    return load_images(folder, "train")


def coloured_images(folder: Path, count: int, seed: int) -> LabelledImages:
    """``count`` noisy 32x32 images of 6 hues, as a parquet folder with a label and a cluster column (two hues each)."""
    import datasets

    draw = np.random.default_rng(seed)
    hues = np.array([[200, 40, 40], [200, 120, 40], [40, 200, 40], [40, 200, 150], [40, 40, 200], [150, 40, 200]])
    rows: dict[str, list] = {"img": [], "label": [], "cluster": []}
    for number in range(count):
        label = number % CLASSES
        pixels = np.clip(hues[label] + draw.normal(0, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        rows["img"].append({"bytes": stream.getvalue(), "path": None})
        rows["label"].append(label)
        rows["cluster"].append(label // 2)
    features = datasets.Features(
        img=datasets.Image(),
        label=datasets.ClassLabel(names=["red", "orange", "green", "teal", "blue", "violet"]),
        cluster=datasets.ClassLabel(names=["warm", "leaf", "cold"]),
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train-00000-of-00001.parquet")
    return load_images(folder, "train")
