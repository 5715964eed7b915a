"""MobileNet v1, v2 and v3 of keras.applications, with one more level on top."""

import tensorflow as tf
from tensorflow import keras

from refinedet_tf.backbones.definition import Application, Backbone
from refinedet_tf.backbones.extra_level import extra_level
from refinedet_tf.config import BackboneConfig
from refinedet_tf.stacks import layer_name

_CONSTRUCTORS = {
    "mobilenet_v1": "MobileNet",
    "mobilenet_v2": "MobileNetV2",
    "mobilenet_v3_small": "MobileNetV3Small",
    "mobilenet_v3_large": "MobileNetV3Large",
}

# The last maps at strides 8, 16 and 32.
_SOURCES = {
    "mobilenet_v1": ("conv_pw_5_relu", "conv_pw_11_relu", "conv_pw_13_relu"),
    "mobilenet_v2": ("block_6_expand_relu", "block_13_expand_relu", "out_relu"),
}
# The blocks of v3 that reduce to strides 16 and 32. Their activations have no names of their own.
_V3_BLOCKS = {"mobilenet_v3_small": (3, 8), "mobilenet_v3_large": (6, 12)}


def build(x: tf.Tensor, config: BackboneConfig) -> list[tf.Tensor]:
    """Adds the network to a functional graph; layers carry keras.applications' names.

    As in SSDLite, the maps of v2 and v3 at strides 8 and 16 are the expanded ones inside an inverted residual block,
    before its convolution of stride 2. The map at stride 32 is that of the last 1x1 convolution.

    Args:
        x: `[b, h, w, 3]`, RGB in -1..1.
        config: `name` and `alpha`, which multiplies channel numbers.

    Returns:
        Four maps; those of v1 have `256 alpha`, `512 alpha`, `1024 alpha` and `512 alpha` channels. The last one comes
        from `extra_level`.
    """
    constructor = getattr(keras.applications, _CONSTRUCTORS[config.name])
    options = {"input_tensor": x, "alpha": config.alpha, "include_top": False, "weights": None}
    if config.name in _SOURCES:
        network = constructor(**options)
        maps = [network.get_layer(name).output for name in _SOURCES[config.name]]
    else:
        network = constructor(**options, include_preprocessing=False)
        layers = {layer_name(layer): layer for layer in network.layers}
        blocks = _V3_BLOCKS[config.name]
        maps = [*(layers[f"expanded_conv_{block}_depthwise_pad"].input for block in blocks), network.output]
    return [*maps, extra_level(maps[-1], config.alpha)]


def _application(config: BackboneConfig) -> Application:
    # The weights of v1 and v2 depend on the input size, unless it is 224.
    size = {"input_shape": (224, 224, 3)} if config.name in _SOURCES else {}
    return Application(_CONSTRUCTORS[config.name], {"alpha": config.alpha, **size})


BACKBONE = Backbone(build, "tf", fields=("alpha",), application=_application)
