"""Image files to pixels. Both functions give the same pixels for the same file, upright as people see it."""

import struct

import numpy as np
import tensorflow as tf
from PIL import Image

from refinedet_tf.ops.gif import first_frame, is_gif
from refinedet_tf.ops.image_headers import (
    EXIF_MAGIC,
    ORIENTATION_TAG,
    SHORT,
    is_jpeg,
    read_header,
    read_orientation,
)

# Larger images are refused before they are decoded: a file of a few kilobytes can claim gigabytes of pixels.
MAX_PIXELS = 36_000_000


def first_image(contents: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what to decode of an image file, and how much that is, before anything is decoded.

    Args:
        contents: string scalar, the whole file.

    Returns:
        The file, a GIF with its first frame only; and the number of pixels that this image claims, an int64 scalar: 0
        if unknown.
    """
    return tf.cond(
        is_gif(contents),
        lambda: first_frame(contents),
        lambda: (contents, tf.reduce_prod(read_header(contents)[0])),
    )


# A graph of its own: many callers trace it once.
@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def decode(contents: tf.Tensor) -> tf.Tensor:
    """Decodes an image file.

    JPEGs are decoded with the accurate inverse transform (libjpeg's default), so that the pixels are those of Pillow.
    The EXIF orientation is applied.

    Args:
        contents: string scalar, a JPEG, PNG, GIF (first frame) or BMP file; gray and CMYK images become RGB.

    Returns:
        RGB, uint8 `[height, width, 3]`, 0..255.

    Raises:
        tf.errors.InvalidArgumentError: the bytes are not a complete image.
    """
    image = tf.cond(
        is_jpeg(contents),
        lambda: tf.io.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(contents, channels=3, expand_animations=False),
    )
    image.set_shape([None, None, 3])
    orientation = read_orientation(contents)
    image = tf.cond(orientation == 1, lambda: image, lambda: _turn(image, orientation))
    image.set_shape([None, None, 3])
    return image


def _turn(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    image = tf.cond(swaps_sides(orientation), lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    return tf.reverse(image, tf.boolean_mask([0, 1], flips(orientation)))


def swaps_sides(orientation: tf.Tensor | int) -> tf.Tensor | bool:
    """Returns whether an EXIF orientation, 1..8, exchanges height and width: rows become columns before any flip."""
    return orientation >= 5


def flips(orientation: tf.Tensor | int) -> tf.Tensor | np.ndarray:
    """Returns whether an EXIF orientation, 1..8, flips the vertical and the horizontal axis, bool `[2]`."""
    vertical = (False, False, False, True, True, False, False, True, True)
    horizontal = (False, False, True, True, False, False, True, True, False)
    return (tf.constant if tf.is_tensor(orientation) else np.array)([vertical, horizontal])[:, orientation]


def from_pillow(image: Image.Image) -> np.ndarray:
    """Returns the pixels of an image file opened with Pillow, equal to those of `decode`.

    Raises:
        OSError, SyntaxError, ValueError: the file is not a complete image.
    """
    image.load()
    orientation = exif_orientation(image.info.get("exif", b""))
    if image.mode == "CMYK":
        ink = 255 - np.asarray(image, np.uint16)
        pixels = (ink[..., :3] * ink[..., 3:] // 255).astype(np.uint8)  # rounded down, as TensorFlow does
    elif image.mode.startswith("I;16"):
        pixels = np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., np.newaxis], 3, axis=-1)
    else:
        pixels = np.asarray(image.convert("RGB"))
    if swaps_sides(orientation):
        pixels = pixels.transpose(1, 0, 2)
    return np.ascontiguousarray(np.flip(pixels, np.flatnonzero(flips(orientation))))


def exif_orientation(exif: bytes) -> int:
    """Returns the orientation, 1..8, in the EXIF data of a file; 1 if it is missing or damaged, as `read_header`."""
    tiff = exif.removeprefix(EXIF_MAGIC)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, directory)
        for index in range(count):
            tag, kind, number, value = struct.unpack_from(order + "HHIHxx", tiff, directory + 2 + 12 * index)
            if (tag, kind, number) == (ORIENTATION_TAG, SHORT, 1) and 1 <= value <= 8:
                return value
    except struct.error:  # cut short
        pass
    return 1
