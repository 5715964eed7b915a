"""Photos in any form a caller may have them, as upright RGB arrays."""

import io
import os
from collections.abc import Callable
from typing import TypeAlias, TypeVar

import numpy as np
from PIL import Image

from refinedet_tf.errors import DataError
from refinedet_tf.ops.images import MAX_PIXELS, exif_orientation, from_pillow, swaps_sides

ImageSource: TypeAlias = str | os.PathLike | bytes | Image.Image | np.ndarray

Result = TypeVar("Result")


def read_image(source: ImageSource, name: str | None = None) -> np.ndarray:
    """Returns a photo as people see it: upright, RGB, with the pixels that training and exported models decode.

    Args:
        source: an image file, the bytes of one, a PIL image, or an array, uint8 RGB `[h, w, 3]`. Arrays are returned
            as they are; everything else is turned upright by its EXIF orientation and converted to RGB.
        name: what error messages call the image; by default the path, or "The image".

    Returns:
        uint8 `[h, w, 3]`.

    Raises:
        DataError: the file is missing or no complete image, the image has more than `MAX_PIXELS` pixels, or the array
            is no uint8 RGB image.
    """
    if name is None:
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else "The image"
    if isinstance(source, np.ndarray):
        _check_array(source, name)
        return source
    if isinstance(source, Image.Image):
        return _upright(source, name)
    if not isinstance(source, str | os.PathLike | bytes):
        raise DataError(f"{name} must be a path, bytes, a PIL image or an array, not {type(source).__name__}.")
    return _with_image(source, name, lambda image: _upright(image, name))


def upright_size(contents: bytes, name: str) -> tuple[int, int]:
    """Returns width and height of an encoded photo as people see it, from its header.

    Raises:
        DataError: there is no such header, or the image has more than `MAX_PIXELS` pixels.
    """

    def size(image: Image.Image) -> tuple[int, int]:
        _check_size(image, name)
        is_turned = swaps_sides(exif_orientation(image.info.get("exif", b"")))
        return (image.height, image.width) if is_turned else image.size

    return _with_image(contents, name, size)


def _with_image(source: str | os.PathLike | bytes, name: str, use: Callable[[Image.Image], Result]) -> Result:
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return use(image)
    except Image.DecompressionBombError:  # Pillow's own, higher limit
        raise _too_large(name) from None
    except DataError:
        raise
    except Image.UnidentifiedImageError:
        raise DataError(f"{name} cannot be read as an image: its format is unknown.") from None
    except OSError as error:
        raise DataError(f"{name} cannot be read as an image: {error.strerror or error}.") from error
    except Exception as error:  # damaged files raise whatever Pillow's parsers stumble over
        raise DataError(f"{name} cannot be read as an image: {type(error).__name__}.") from error


def _check_array(image: np.ndarray, name: str) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise DataError(f"{name} must be uint8 [h, w, 3], RGB; it is {image.dtype} {list(image.shape)}.")
    if image.size == 0:
        raise DataError(f"{name} has no pixels; its shape is {list(image.shape)}.")


def _upright(image: Image.Image, name: str) -> np.ndarray:
    _check_size(image, name)
    return from_pillow(image)


def _check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name, f" ({image.width} x {image.height})")


def _too_large(name: str, size: str = "") -> DataError:
    return DataError(f"{name} has more than {MAX_PIXELS / 1e6:g} megapixels{size}; scale it down.")
