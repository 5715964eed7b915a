"""MobileNet v1 of keras.applications, with one more level on top."""

import tensorflow as tf
from tensorflow import keras

from refinedet_tf.config import BackboneConfig
from refinedet_tf.layers import batch_normalization, relu

PREPROCESSING = "tf"

# The last maps of strides 8, 16 and 32.
SOURCES = ("conv_pw_5_relu", "conv_pw_11_relu", "conv_pw_13_relu")


def build(x: tf.Tensor, config: BackboneConfig) -> list[tf.Tensor]:
    """Adds the network to a functional graph; layers carry keras.applications' names.

    Args:
        x: `[b, h, w, 3]`, RGB in -1..1.
        config: `alpha` multiplies all channel numbers.

    Returns:
        Maps of `256 alpha`, `512 alpha`, `1024 alpha` and `512 alpha` channels; the last from `extra_1` (1x1) and
        `extra_2` (depthwise 3x3 of stride 2, then 1x1), made like the layers below it.
    """
    network = keras.applications.MobileNet(input_tensor=x, alpha=config.alpha, include_top=False, weights=None)
    maps = [network.get_layer(name).output for name in SOURCES]
    x = _conv_bn_relu(maps[-1], int(256 * config.alpha), "extra_1")
    x = keras.layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False, name="extra_2_depthwise")(x)
    x = relu("extra_2_depthwise_relu")(batch_normalization("extra_2_depthwise_bn")(x))
    return [*maps, _conv_bn_relu(x, int(512 * config.alpha), "extra_2")]


def _conv_bn_relu(x: tf.Tensor, filters: int, name: str) -> tf.Tensor:
    x = keras.layers.Conv2D(filters, 1, use_bias=False, name=name)(x)
    return relu(f"{name}_relu")(batch_normalization(f"{name}_bn")(x))
