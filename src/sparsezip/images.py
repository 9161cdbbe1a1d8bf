"""Open image files that nobody vouches for."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import ImageError

MAX_MEGAPIXELS = 64
MAX_ASPECT = 100  # processors scale the short side up first: 60000 x 1 would become 20160000 x 336
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # what benchmarks ship; every further decoder is attack surface


def open_image(path: str | Path) -> Image.Image:
    """The image in the file `path`: RGB, 8 bits per channel, fully decoded, upright.

    An EXIF orientation is applied and an alpha channel is dropped, both as `transformers` does when it loads
    an image; of an animation the first frame is taken; 16-bit greys keep their upper 8 bits.

    Raises ImageError for a file that is missing, empty, truncated or no PNG, JPEG, WebP, GIF or BMP, and for
    more than 64 megapixels or a side more than 100 times the other, which the header tells before anything is decoded.
    """
    path = Path(path)
    if not path.is_file():  # a named pipe would block for ever
        raise ImageError(f"There is no image file {path}.")
    if path.stat().st_size == 0:
        raise ImageError(f"The image {path} is empty (0 bytes).")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # size is judged here; damaged metadata and transparency do not matter
            with Image.open(path, formats=FORMATS) as image:
                _check_size(path, *image.size)
                return _rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"The image {path} has far more than {MAX_MEGAPIXELS} megapixels. Scale it down first."
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path} is not a readable image. Use one of {', '.join(FORMATS)}.") from error
    except (
        Exception
    ) as error:  # decoders raise nearly anything on hostile bytes: OSError, SyntaxError, struct.error, ...
        raise ImageError(f"The image {path} is truncated or damaged ({error}).") from error


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_MEGAPIXELS * 1_000_000:
        raise ImageError(
            f"The image {path} has {width} x {height} = {width * height / 1e6:.0f} megapixels; "
            f"at most {MAX_MEGAPIXELS} are opened. Scale it down first."
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(
            f"The image {path} has {width} x {height} pixels; one side may be at most {MAX_ASPECT} times the other. "
            "Cut it first."
        )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips everything above 255 to white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def opened(image: Image.Image | str | Path) -> Image.Image:
    """An image as RGB, whether it is open already or a file's path. Raises what `open_image` raises."""
    return image.convert("RGB") if isinstance(image, Image.Image) else open_image(image)
