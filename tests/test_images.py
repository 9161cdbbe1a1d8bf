"""Image files from strangers: each either opens as upright RGB or is one clear ImageError."""

import contextlib
import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image

from sparsezip.errors import ImageError
from sparsezip.images import FORMATS, open_image

NOISE = np.random.default_rng(7).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def encoded(format_: str, image: Image.Image | None = None) -> bytes:
    buffer = io.BytesIO()
    (image or Image.fromarray(NOISE)).save(buffer, format_)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.fixture
def write(tmp_path: Path):
    def write(content: bytes) -> Path:
        path = tmp_path / "image"
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("format_", FORMATS)
def test_every_format_opens_as_rgb(write, format_):
    image = open_image(write(encoded(format_)))
    assert (image.mode, image.size) == ("RGB", (64, 48))
    if format_ in ("PNG", "BMP"):
        np.testing.assert_array_equal(np.asarray(image), NOISE)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_odd_modes_give_the_pixels_that_transformers_gives(write, mode):
    image = Image.fromarray(NOISE).convert(mode)
    path = write(encoded("JPEG" if mode == "CMYK" else "PNG", image))
    np.testing.assert_array_equal(np.asarray(open_image(path)), np.asarray(load_image(str(path))))


def test_a_palette_with_transparency_opens_without_a_warning(write):
    palette = Image.fromarray(NOISE).convert("P")
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=bytes(range(256)))
    np.testing.assert_array_equal(np.asarray(open_image(write(buffer.getvalue()))), np.asarray(palette.convert("RGB")))


def test_16_bit_grey_is_scaled_and_not_clipped_to_white(write):
    grey = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    pixels = np.asarray(open_image(write(encoded("PNG", Image.fromarray(grey)))))
    np.testing.assert_array_equal(pixels[..., 0], grey >> 8)


def test_exif_orientation_is_applied(write):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, "PNG", exif=exif)
    np.testing.assert_array_equal(np.asarray(open_image(write(buffer.getvalue()))), np.rot90(NOISE, -1))


def test_the_first_frame_of_an_animation(write):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert open_image(write(buffer.getvalue())).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"this is a text file", "not a readable image"),
        (encoded("TIFF"), "not a readable image"),
        (png_header(100_000, 100_000), "far more than 64 megapixels"),
        (png_header(12_000, 12_000), "144 megapixels"),  # in between, Pillow itself only warns
        (png_header(8_001, 8_000), "64 megapixels"),
        (png_header(60_000, 1), "60000 x 1 pixels; one side may be at most 100 times the other"),
        (encoded("PNG", Image.new("RGB", (2, 201))), "2 x 201 pixels"),
    ],
)
def test_what_is_refused(write, content, message):
    with pytest.raises(ImageError, match=message):
        open_image(write(content))


def test_a_side_of_100_times_the_other_is_opened(write):
    assert open_image(write(encoded("PNG", Image.new("RGB", (2, 200))))).size == (2, 200)


def test_64_megapixels_are_allowed_by_the_size_check(write):
    with pytest.raises(ImageError, match="truncated or damaged"):  # not "megapixels": the body is what is missing
        open_image(write(png_header(8_000, 8_000)))


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_truncated(write, format_, part):
    content = encoded(format_)
    with pytest.raises(ImageError, match=r"truncated or damaged|not a readable image"):
        open_image(write(content[: int(len(content) * part)]))


@pytest.mark.parametrize("format_", FORMATS)
def test_damaged_bytes_never_raise_anything_else(write, format_):
    rng = random.Random(3)
    content = encoded(format_)
    for _ in range(100):
        damaged = bytearray(content)
        for _ in range(5):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        with contextlib.suppress(ImageError):
            assert open_image(write(bytes(damaged))).mode == "RGB"


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "nowhere.png", tmp_path):
        with pytest.raises(ImageError, match="There is no image file"):
            open_image(path)
