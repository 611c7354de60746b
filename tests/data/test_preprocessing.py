"""What is decoded: upright, on white, to the bit as before where neither matters, and one error for every damage."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sinf.data.preprocessing import Preprocessing
from sinf.errors import DataError, ModelError
from sinf.models import ModelSpec
from tiny import COLOUR, GREY, picture

ORIENTATION = 0x0112
WIDE = Preprocessing((3, 8, 12), COLOUR.mean, COLOUR.std)

# What a viewer does with each value of the tag, on an array (H, W, C): written by hand from the EXIF standard, 4.6.4.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


def saved(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def with_orientation(value: object, file_format: str) -> tuple[bytes, np.ndarray]:
    """A file of 12x8 pixels with that tag, and its pixels as they are stored."""
    image = Image.open(io.BytesIO(picture(1, (12, 8))))
    exif = Image.Exif()
    exif[ORIENTATION] = value
    content = saved(image, file_format, exif=exif)
    return content, np.asarray(Image.open(io.BytesIO(saved(image, file_format))).convert("RGB"))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_images_are_turned_upright(value: int, file_format: str) -> None:
    content, stored = with_orientation(value, file_format)
    expected = UPRIGHT[value](stored)
    height, width = expected.shape[:2]
    exact = Preprocessing((3, height, width), COLOUR.mean, COLOUR.std)
    np.testing.assert_array_equal(exact.decode(content, "photo"), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x05", b"Exif\0\0II*\0\xff\xff\xff\xff", b"rubbish"]
)
def test_damaged_exif_counts_as_none(exif: bytes) -> None:
    image = Image.open(io.BytesIO(picture(1, (12, 8))))
    plain = WIDE.decode(saved(image, "JPEG"), "photo")
    np.testing.assert_array_equal(WIDE.decode(saved(image, "JPEG", exif=exif), "photo"), plain)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(value: int) -> None:
    content, stored = with_orientation(value, "JPEG")
    np.testing.assert_array_equal(WIDE.decode(content, "photo"), stored)


# ---- transparency


def on_white(rgba: np.ndarray) -> np.ndarray:
    colour, alpha = rgba[..., :3].astype(float), rgba[..., 3:].astype(float) / 255
    return colour * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_are_laid_on_white(file_format: str) -> None:
    """In proportion to their alpha, within rounding."""
    rgba = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    rgba[0, :, 3], rgba[1, :, 3], rgba[2, :, 3] = 0, 255, 128
    content = saved(
        Image.fromarray(rgba), file_format, **({"lossless": True, "exact": True} if file_format == "WEBP" else {})
    )
    pixels = COLOUR.decode(content, "logo")
    assert np.abs(pixels - on_white(rgba)).max() <= 1
    assert (pixels[0] == 255).all()
    np.testing.assert_array_equal(pixels[1], rgba[1, :, :3])
    grey = GREY.decode(content, "logo")[:, :, 0]
    np.testing.assert_array_equal(grey, np.asarray(Image.fromarray(pixels).convert("L")))


def test_transparency_of_grey_palettes_and_colour_keys() -> None:
    """LA, P with one or many alphas, and the transparent colour of L and RGB files."""
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    alpha = np.full((8, 8), 255, dtype=np.uint8)
    alpha[4:] = 0
    layered = Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))
    expected = np.where(alpha == 0, 255, grey)
    np.testing.assert_array_equal(GREY.decode(saved(layered), "LA")[:, :, 0], expected)
    np.testing.assert_array_equal(COLOUR.decode(saved(layered), "LA")[:, :, 1], expected)
    for mode, key in (("L", 40), ("RGB", (40, 40, 40))):
        content = saved(Image.fromarray(grey).convert(mode), transparency=key)
        np.testing.assert_array_equal(COLOUR.decode(content, mode)[:, :, 0], np.where(grey == 40, 255, grey))
    palette = Image.fromarray((grey // 4) % 4).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    opaque = COLOUR.decode(saved(palette), "P").astype(float)
    for transparency, alphas in ((2, [255, 255, 0, 255]), (bytes([0, 128, 255, 51]), [0, 128, 255, 51])):
        share = np.array(alphas)[(grey // 4) % 4][:, :, None] / 255
        pixels = COLOUR.decode(saved(palette, transparency=transparency), "P")
        assert np.abs(pixels - (opaque * share + 255 * (1 - share))).max() <= 1


def test_transparency_is_turned_with_the_image() -> None:
    rgba = np.zeros((8, 12, 4), dtype=np.uint8)
    rgba[:, :3, 3] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    tall = Preprocessing((3, 12, 8), COLOUR.mean, COLOUR.std)
    pixels = tall.decode(saved(Image.fromarray(rgba), exif=exif), "photo")
    assert (pixels[:3] == 0).all()
    assert (pixels[3:] == 255).all()


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [
        *[(mode, "PNG") for mode in ("RGB", "L", "P", "1", "RGBA", "LA")],
        *[(mode, "JPEG") for mode in ("RGB", "L", "CMYK", "YCbCr")],
        *[("P", "GIF"), ("RGBA", "WEBP"), ("RGB", "BMP"), ("CMYK", "TIFF"), ("RGBA", "TIFF")],
    ],
)
def test_opaque_upright_images_are_what_pillow_converts(mode: str, file_format: str) -> None:
    """To the bit, also of files that could be transparent: published results rest on it."""
    content = picture(3, (8, 8), mode, file_format)
    for preprocessing, target in ((COLOUR, "RGB"), (GREY, "L")):
        expected = np.asarray(Image.open(io.BytesIO(content)).convert(target)).reshape(8, 8, -1)
        np.testing.assert_array_equal(preprocessing.decode(content, "image"), expected)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP"])
def test_the_first_image_of_an_animation_counts(file_format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black", "black")]
    content = saved(frames[0], file_format, save_all=True, append_images=frames[1:])
    assert (COLOUR.decode(content, "animation") == 255).all()


# ---- damage


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, depth: int = 1, colour: int = 0) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (png(60_000, 60_000, b"\0" * 1000), "decompression bomb"),
        (png(2**31 - 1, 1, b"\0"), "decompression bomb"),
        (png(1, 4_000_000, b"\0\0" * 4_000_000), "too long for its width"),
        (png(0, 0, b""), "cannot be decoded"),
        (png(8, 8, b""), "cannot be decoded"),
        (b"", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "cannot be decoded"),
        (b"\xff\xd8\xff", "cannot be decoded"),
        (picture(0, (64, 64))[:-400], "cannot be decoded"),
        (picture(0, (64, 64), "RGB", "JPEG")[:-400], "cannot be decoded"),
        (saved(Image.fromarray(np.zeros((8, 8), dtype=np.uint16))), "8 bits"),
    ],
)
def test_what_cannot_be_decoded_is_one_error_with_its_name(content: bytes, word: str) -> None:
    with pytest.raises(DataError, match=word) as caught:
        COLOUR.decode(content, "holiday.png")
    assert str(caught.value).startswith("holiday.png: ")


@pytest.mark.parametrize(
    "error", [struct.error("short"), IndexError(), OverflowError("big"), MemoryError(), KeyError(3)]
)
def test_whatever_a_reader_raises_is_one_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(DataError, match="holiday"):
        COLOUR.decode(picture(), "holiday")


FILES = [
    picture(0, (8, 8)),
    picture(0, (8, 8), "P"),
    with_orientation(6, "JPEG")[0],
    with_orientation(6, "TIFF")[0],
    picture(0, (8, 8), "RGBA", "WEBP"),
    picture(0, (8, 8), "P", "GIF"),
    picture(0, (8, 8), "RGB", "BMP"),
]


@settings(max_examples=300)
@given(st.sampled_from(FILES), st.data())
@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_give_an_image_or_one_error(file: bytes, data: st.DataObject) -> None:
    damaged = bytearray(file)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.none(), st.integers(0, len(file))))
    try:
        pixels = COLOUR.decode(bytes(damaged[:end]), "damaged")
    except DataError:
        return
    assert (pixels.shape, pixels.dtype) == ((8, 8, 3), np.uint8)


# ---- as the model's own processor resizes


@settings(max_examples=40)
@given(
    width=st.integers(8, 90),
    height=st.integers(8, 90),
    side=st.integers(8, 40),
    more=st.integers(0, 20),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_the_shorter_side_is_resized_as_by_torchvision(
    width: int, height: int, side: int, more: int, interpolation: str
) -> None:
    from torchvision import transforms

    theirs = transforms.Compose(
        [
            transforms.Resize(side + more, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(side),
        ]
    )
    content = picture(width, (width, height))
    ours = Preprocessing((3, side, side), COLOUR.mean, COLOUR.std, side + more, interpolation)
    expected = np.asarray(theirs(Image.open(io.BytesIO(content)).convert("RGB")))
    np.testing.assert_array_equal(ours.decode(content, "photo"), expected)


def test_both_sides_are_resized_where_the_processor_says_so() -> None:
    content = picture(3, (40, 20))
    ours = Preprocessing((3, 16, 16), COLOUR.mean, COLOUR.std, (16, 18), "nearest").decode(content, "photo")
    expected = Image.open(io.BytesIO(content)).resize((18, 16), Image.Resampling.NEAREST).crop((1, 0, 17, 16))
    np.testing.assert_array_equal(ours, np.asarray(expected))


def test_files_say_how_images_are_resized_only_where_it_is_not_by_default() -> None:
    plain = Preprocessing((3, 8, 8), COLOUR.mean, COLOUR.std)
    assert plain.to_json().keys() == {"size", "mean", "std"}
    for resize in (None, 12, (9, 12)):
        own = Preprocessing((3, 8, 8), COLOUR.mean, COLOUR.std, resize, "lanczos")
        spec = ModelSpec("vgg11", 4, own)
        assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"resize": 7}, "resized"),
        ({"resize": [8, 7]}, "resized"),
        ({"resize": True}, "resize"),
        ({"resize": -3}, "resize"),
        ({"interpolation": "sharp"}, "interpolation"),
    ],
)
def test_files_that_say_it_wrongly_are_refused(change: dict, says: str) -> None:
    record = {"name": "vgg11", "classes": 4, "options": {}}
    shape = {"size": [3, 8, 8], "mean": [0.5] * 3, "std": [0.5] * 3}
    with pytest.raises(ModelError, match=says):
        ModelSpec.from_json(record | {"preprocessing": shape | change})
