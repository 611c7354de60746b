"""From an image file to what a model reads: decoded, upright, on white, resized, cropped, normalised."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sinf.errors import DataError

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


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its images: ``size`` (channels, height, width), ``mean`` and ``std`` of values in 0..1."""

    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def decode(self, source: bytes | str | Path, name: str) -> np.ndarray:
        """One image file as ``(H, W, C)`` uint8: shorter side resized to the model's size, then centre-cropped.

        The image is turned upright as its EXIF orientation says; EXIF data that is damaged counts as none.
        Transparent pixels are laid on white, in proportion to their alpha. Of an animation the first image counts.

        Raises:
            DataError: the file is no image, is damaged, is too large, or has other than 8 bits a channel.
        """
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
                if file.mode not in _COLOUR_MODES:
                    raise DataError(
                        f"{name}: images must have 8 bits a channel",
                        got=f"mode {file.mode}",
                        remedy="convert it to 8-bit RGB or grey",
                    )
                file.load()
                image = _on_white(file, "L" if self.size[0] == 1 else "RGB")
                turn = _UPRIGHT.get(_orientation(file) or 1)
                image = image if turn is None else image.transpose(turn)
            return self._fit(image, name)
        except DataError:
            raise
        except Exception as error:  # Pillow's readers raise what damaged bytes lead them to: struct.error, IndexError
            reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
            raise DataError(f"{name}: the image cannot be decoded", got=reason, remedy="repair or remove it") from error

    def _fit(self, image: Image.Image, name: str) -> np.ndarray:
        height, width = self.size[1:]
        if image.size != (width, height):
            scale = max(width / image.width, height / image.height)
            size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
            if size[0] * size[1] > max(_MOST_PIXELS, image.width * image.height):
                raise DataError(
                    f"{name}: the image is too long for its width",
                    got=f"{image.width}x{image.height} pixels",
                    remedy="crop or remove it",
                )
            left, top = (size[0] - width) // 2, (size[1] - height) // 2
            image = image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))
        pixels = np.asarray(image, dtype=np.uint8)
        return pixels[:, :, None] if pixels.ndim == 2 else pixels

    def normalise(self, pixels: Tensor) -> Tensor:
        """``(B, H, W, C)`` uint8 to ``(B, C, H, W)`` float32, contiguous."""
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
