"""The first frame of a GIF file, found inside a graph without decoding anything.

TensorFlow's decoder unpacks all frames before it returns the first one, and allocates what the largest of them claims,
whatever the header says.
"""

import tensorflow as tf

MAGIC = b"GIF8"
EXTENSION, IMAGE = 0x21, 0x2C  # the first byte of a block
TRAILER = b";"
# What is expected at a position.
BLOCK, SUB_BLOCK, SUB_BLOCK_OF_IMAGE, DONE = range(4)


def is_gif(contents: tf.Tensor) -> tf.Tensor:
    """Returns whether a file, a string scalar, is a GIF, a bool scalar."""
    return tf.strings.substr(contents, 0, len(MAGIC)) == MAGIC


def first_frame(contents: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Cuts a GIF file off behind its first frame.

    Args:
        contents: string scalar, a GIF file.

    Returns:
        The file with its first frame only, a string scalar, and the number of pixels that this frame claims, an int64
        scalar: 0 if there is no frame.
    """
    data = tf.io.decode_raw(contents, tf.uint8)
    length = tf.size(data)

    def byte(position: tf.Tensor) -> tf.Tensor:
        return tf.cast(data[tf.clip_by_value(position, 0, length - 1)], tf.int32)

    def side(position: tf.Tensor) -> tf.Tensor:
        return tf.cast(byte(position) + 256 * byte(position + 1), tf.int64)

    def palette(flags: tf.Tensor) -> tf.Tensor:
        return tf.where(flags >= 128, 3 * tf.bitwise.left_shift(2, flags % 8), 0)

    def step(position: tf.Tensor, expected: tf.Tensor, pixels: tf.Tensor) -> tuple[tf.Tensor, ...]:
        value, is_block = byte(position), expected == BLOCK
        is_image = is_block & (value == IMAGE)
        # An image descriptor has 10 bytes, may have a palette, and is followed by the width of its first code.
        pixels = tf.where(is_image, side(position + 5) * side(position + 7), pixels)
        size = tf.where(is_image, 11 + palette(byte(position + 9)), tf.where(is_block, 2, 1 + value))
        after_block = tf.where(is_image, SUB_BLOCK_OF_IMAGE, tf.where(value == EXTENSION, SUB_BLOCK, DONE))
        after_last = tf.where(expected == SUB_BLOCK_OF_IMAGE, DONE, BLOCK)
        following = tf.where(is_block, after_block, tf.where(value == 0, after_last, expected))
        return position + size, following, pixels

    start = 13 + palette(byte(tf.constant(10)))  # behind the header
    end, _, pixels = tf.while_loop(
        lambda position, expected, _: (position < length) & (expected != DONE),
        step,
        (start, tf.constant(BLOCK), tf.constant(0, tf.int64)),
    )
    return tf.strings.join([tf.strings.substr(contents, 0, tf.minimum(end, length)), TRAILER]), pixels
