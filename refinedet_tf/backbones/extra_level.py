"""A fourth level for networks that end at stride 32."""

import tensorflow as tf
from tensorflow import keras

from refinedet_tf.layers import batch_normalization, relu


def extra_level(x: tf.Tensor, alpha: float = 1.0) -> tf.Tensor:
    """Adds a map at stride 64, built like the blocks of MobileNet v1.

    Args:
        x: `[b, h, w, c]`.
        alpha: multiplies channel numbers.

    Returns:
        `[b, h / 2, w / 2, 512 alpha]`, from `extra_1` (1x1) and `extra_2` (depthwise 3x3 of stride 2, then 1x1).
    """
    x = _conv_bn_relu(x, int(256 * alpha), "extra_1")
    x = keras.layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False, name="extra_2_depthwise")(x)
    x = relu("extra_2_depthwise_relu")(batch_normalization("extra_2_depthwise_bn")(x))
    return _conv_bn_relu(x, int(512 * alpha), "extra_2")


def _conv_bn_relu(x: tf.Tensor, filters: int, name: str) -> tf.Tensor:
    x = keras.layers.Conv2D(filters, 1, use_bias=False, name=name)(x)
    return relu(f"{name}_relu")(batch_normalization(f"{name}_bn")(x))
