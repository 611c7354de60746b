"""From an image file to what a model reads: decoded, upright, on white, resized, cropped, normalised.

All but the last step needs no torch, for devices without it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from sinf.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

_COLOUR_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"}
# What undoes each value of the EXIF tag Orientation (0x0112); 1 is upright.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MOST_PIXELS = 1 << 27  # of an image that is resized before its centre is taken
#: Filters that resize, by the names that files use.
INTERPOLATIONS = {each.name.lower(): each for each in Image.Resampling}


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its images.

    Attributes:
        size: (channels, height, width) of what it reads.
        mean, std: of each channel, of values in 0..1.
        resize: what an image is resized to before its centre is taken, as the model's own processor does it: the
            length of the shorter side, or (height, width) whatever the image's proportions. None for the shorter side
            as long as the model's size needs, and for nothing where an image has that size already.
        interpolation: the filter that resizes, one of :data:`INTERPOLATIONS`.
    """

    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"

    def to_json(self) -> dict[str, Any]:
        """What files hold; what is as by default is left out, so that earlier versions read it."""
        record: dict[str, Any] = {"size": self.size, "mean": self.mean, "std": self.std}
        if self.resize is not None:
            record["resize"] = self.resize
        if self.interpolation != "bilinear":
            record["interpolation"] = self.interpolation
        return record

    def describe(self) -> str:
        """What is done to an image, in words."""
        channels, height, width = self.size
        side = "the shorter side resized" if self.resize is None else f"resized to {self.resize}"
        resized = f"{channels} channels of {height}x{width} pixels: {side} ({self.interpolation}), the centre taken"
        return f"{resized}; values of 0..1 minus {list(self.mean)}, divided by {list(self.std)}"

    def decode(self, source: bytes | str | Path, name: str) -> np.ndarray:
        """One image file as ``(H, W, C)`` uint8: resized, then centre-cropped to the model's size.

        The image is turned upright as its EXIF orientation says; EXIF data that is damaged counts as none.
        Transparent pixels are laid on white, in proportion to their alpha. Of an animation the first image counts.

        Raises:
            DataError: the file is no image, is damaged, is too large, or has other than 8 bits a channel.
        """
        try:
            if not isinstance(source, bytes) and not Path(source).is_file():  # a pipe would be waited for
                raise OSError("no such file")
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
                return self._of_image(file, name)
        except DataError:
            raise
        except Exception as error:  # Pillow's readers raise what damaged bytes lead them to: struct.error, IndexError
            reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
            raise DataError(f"{name}: the image cannot be decoded", got=reason, remedy="repair or remove it") from error

    def of_image(self, image: Image.Image, name: str) -> np.ndarray:
        """As :meth:`decode`, of an image that is opened."""
        try:
            return self._of_image(image, name)
        except DataError:
            raise
        except Exception as error:  # as above; an image is read when it is first looked at
            reason = str(error) or type(error).__name__
            raise DataError(f"{name}: the image cannot be decoded", got=reason, remedy="repair or remove it") from error

    def _of_image(self, image: Image.Image, name: str) -> np.ndarray:
        if image.mode not in _COLOUR_MODES:
            raise DataError(
                f"{name}: images must have 8 bits a channel",
                got=f"mode {image.mode}",
                remedy="convert it to 8-bit RGB or grey",
            )
        image.load()
        opaque = _on_white(image, "L" if self.size[0] == 1 else "RGB")
        turn = _UPRIGHT.get(_orientation(image) or 1)
        return self._fit(opaque if turn is None else opaque.transpose(turn), name)

    def _fit(self, image: Image.Image, name: str) -> np.ndarray:
        height, width = self.size[1:]
        if self.resize is not None or image.size != (width, height):
            size = self._resized(image.width, image.height)
            if size[0] * size[1] > max(_MOST_PIXELS, image.width * image.height):
                raise DataError(
                    f"{name}: the image is too long for its width",
                    got=f"{image.width}x{image.height} pixels",
                    remedy="crop or remove it",
                )
            left, top = self._start(size[0] - width), self._start(size[1] - height)
            image = image.resize(size, INTERPOLATIONS[self.interpolation])
            image = image.crop((left, top, left + width, top + height))
        pixels = np.asarray(image, dtype=np.uint8)
        return pixels[:, :, None] if pixels.ndim == 2 else pixels

    def _resized(self, across: int, down: int) -> tuple[int, int]:
        """Width and height of an image of these, before its centre is taken."""
        height, width = self.size[1:]
        if self.resize is None:
            scale = max(width / across, height / down)
            return max(width, round(across * scale)), max(height, round(down * scale))
        if not isinstance(self.resize, int):
            return self.resize[1], self.resize[0]
        short = min(across, down)  # the longer side is cut off, not rounded, as torchvision, timm and transformers do
        return self.resize * across // short, self.resize * down // short

    def _start(self, margin: int) -> int:
        """Where the centre begins; a processor of another library rounds it, half to even."""
        return margin // 2 if self.resize is None else round(margin / 2)

    def normalise(self, pixels: Tensor) -> Tensor:
        """``(B, H, W, C)`` uint8 to ``(B, C, H, W)`` float32, contiguous."""
        import torch

        mean = torch.tensor(self.mean, device=pixels.device) * 255
        std = torch.tensor(self.std, device=pixels.device) * 255
        return ((pixels.float() - mean) / std).permute(0, 3, 1, 2).contiguous()


def _on_white(image: Image.Image, mode: str) -> Image.Image:
    """A loaded image in ``mode`` (L or RGB), on white where it is transparent."""
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema()[0] != 255:
            return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert(mode)
    return image.convert(mode)


def _orientation(image: Image.Image) -> int | None:
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # as above: damaged EXIF data says nothing, and the image is whole without it
        return None
    return value if isinstance(value, int) else None
