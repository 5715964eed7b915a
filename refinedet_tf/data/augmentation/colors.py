"""The photometric distortion of SSD."""

import functools
from collections.abc import Callable

import tensorflow as tf


def photometric_distortion(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Changes brightness, contrast, saturation and hue, each with probability 1/2.

    Brightness comes first (plus -32..32); then contrast (times 0.5..1.5), saturation (times 0.5..1.5) and hue
    (plus -36..36 degrees) in this order or, equally often, with contrast last. Every step rounds to
    whole numbers in 0..255.

    Args:
        image: uint8 `[h, w, 3]`.
        seed: integers `[2]`.

    Returns:
        uint8 `[h, w, 3]`.
    """
    coins_seed, amounts_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    coins = tf.unstack(tf.random.stateless_uniform([5], coins_seed) < 0.5)
    brightness, contrast, saturation, hue = tf.unstack(
        tf.random.stateless_uniform([4], amounts_seed, minval=[-32.0, 0.5, 0.5, -0.1], maxval=[32.0, 1.5, 1.5, 0.1])
    )  # hue in turns
    contrast_first, contrast_last = coins[1] & coins[4], coins[1] & ~coins[4]

    def apply_if(coin: tf.Tensor, change: Callable[[tf.Tensor], tf.Tensor], image: tf.Tensor) -> tf.Tensor:
        return tf.cond(coin, lambda: change(image), lambda: image)

    def change_contrast(image: tf.Tensor) -> tf.Tensor:
        return tf.round(tf.minimum(image * contrast, 255.0))

    # Each pass over the pixels costs time: adding a whole number needs no rounding, and only what can leave 0..255 is
    # clipped.
    image = tf.cast(image, tf.float32)
    image = apply_if(coins[0], lambda x: tf.clip_by_value(x + tf.round(brightness), 0.0, 255.0), image)
    image = apply_if(contrast_first, change_contrast, image)
    image = apply_if(coins[2], lambda x: _saturate(x, saturation), image)
    image = apply_if(coins[3], lambda x: tf.round(tf.image.adjust_hue(x, hue)), image)
    image = apply_if(contrast_last, change_contrast, image)
    return tf.cast(image, tf.uint8)


def _saturate(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Does what `tf.image.adjust_saturation` does, faster, on whole numbers in 0..255 and rounds to these.

    The largest channel is the value of HSV. It stays; the distance of the others to it is multiplied by the factor, but
    none falls below zero.
    """
    channels = tf.unstack(image, axis=2)
    value, lowest = functools.reduce(tf.maximum, channels), functools.reduce(tf.minimum, channels)
    factor = tf.minimum(factor, value / tf.maximum(value - lowest, 1.0))  # gray has no distance
    planes = tf.round([value - (value - channel) * factor for channel in channels])
    # The product transposes exactly, and faster than tf.transpose, which is slow with rows of three.
    pixels = tf.matmul(tf.reshape(planes, [3, -1]), tf.eye(3), transpose_a=True)
    return tf.reshape(pixels, tf.shape(image))
