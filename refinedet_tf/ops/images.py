"""Image files to tensors, and the one way in which images are resized outside training."""

from collections.abc import Sequence

import tensorflow as tf


def decode(contents: tf.Tensor) -> tf.Tensor:
    """Decodes the bytes of one image file.

    Args:
        contents: string scalar with a JPEG, PNG, GIF (its first frame) or BMP file; grey and CMYK images become RGB. An
            EXIF orientation is ignored: boxes belong to the stored pixels.

    Returns:
        RGB, uint8 `[height, width, 3]`, 0..255.

    Raises:
        tf.errors.InvalidArgumentError: the bytes are no complete image.
    """
    image = tf.io.decode_image(contents, channels=3, expand_animations=False)
    image.set_shape([None, None, 3])
    return image


def resize(images: tf.Tensor, size: Sequence[int]) -> tf.Tensor:
    """Warps images to one size, whatever their aspect ratio: bilinear, half-pixel centres, no antialiasing.

    This is what the released RefineDet test scripts do to an image, so evaluation, detection and serving do it too.

    Args:
        images: `[height, width, 3]` or `[batch, height, width, 3]`, any real type, 0..255.
        size: height and width to make, in pixels.

    Returns:
        float32 with that size and otherwise the shape of `images`, 0..255.
    """
    return tf.image.resize(tf.cast(images, tf.float32), size, method="bilinear", antialias=False)
