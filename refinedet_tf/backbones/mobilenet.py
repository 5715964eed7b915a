"""MobileNet v1, v2 and v3 of keras.applications, with one more level on top."""

import tensorflow as tf
from tensorflow import keras

from refinedet_tf.config import BackboneConfig
from refinedet_tf.layers import DEFAULT_NORMALIZATION, batch_normalization, relu

PREPROCESSING = "tf"
NORMALIZATION = DEFAULT_NORMALIZATION

# The last maps of strides 8, 16 and 32.
SOURCES = ("conv_pw_5_relu", "conv_pw_11_relu", "conv_pw_13_relu")
V2_SOURCES = ("block_6_expand_relu", "block_13_expand_relu", "out_relu")
# The blocks of v3 that go down to strides 16 and 32. Their activations have no names of their own.
V3_BLOCKS = {"mobilenet_v3_small": (3, 8), "mobilenet_v3_large": (6, 12)}


def build(x: tf.Tensor, config: BackboneConfig) -> list[tf.Tensor]:
    """Adds the network to a functional graph; layers carry keras.applications' names.

    As in SSDLite, the maps at strides 8 and 16 of v2 and v3 are the wide ones in the middle of an inverted residual
    block, just before its convolution of stride 2; the map at stride 32 is that of the last 1x1 convolution.

    Args:
        x: `[b, h, w, 3]`, RGB in -1..1.
        config: `name` and `alpha`, which multiplies channel numbers.

    Returns:
        Four maps; those of v1 have `256 alpha`, `512 alpha`, `1024 alpha` and `512 alpha` channels. The last is
        `extra_level`'s.
    """
    options = {"input_tensor": x, "alpha": config.alpha, "include_top": False, "weights": None}
    if config.name == "mobilenet_v1":
        network = keras.applications.MobileNet(**options)
        maps = [network.get_layer(name).output for name in SOURCES]
    elif config.name == "mobilenet_v2":
        network = keras.applications.MobileNetV2(**options)
        maps = [network.get_layer(name).output for name in V2_SOURCES]
    else:
        small = config.name == "mobilenet_v3_small"
        constructor = keras.applications.MobileNetV3Small if small else keras.applications.MobileNetV3Large
        network = constructor(**options, include_preprocessing=False)
        # Keras 2 writes expanded_conv_3/depthwise/pad.
        layers = {layer.name.replace("/", "_"): layer for layer in network.layers}
        blocks = V3_BLOCKS[config.name]
        maps = [*(layers[f"expanded_conv_{block}_depthwise_pad"].input for block in blocks), network.output]
    return [*maps, extra_level(maps[-1], config.alpha)]


def extra_level(x: tf.Tensor, alpha: float = 1.0) -> tf.Tensor:
    """A map at stride 64 for networks that end at stride 32, made like the layers of MobileNet v1.

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
