"""Image files to tensors."""

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
