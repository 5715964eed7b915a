"""The networks below the detector.

A backbone is a function from preprocessed images and its part of the recipe to four feature maps at strides 8, 16, 32
and 64, the sources of the ARM and of the transfer connection blocks. To add one: write a module with `PREPROCESSING`,
`NORMALIZATION` and `build`, list it here, and name it in `config.BACKBONES`.
"""

import tensorflow as tf

from refinedet_tf.backbones import kerascv, mobilenet, resnet101, vgg16
from refinedet_tf.backbones.freezing import freeze
from refinedet_tf.config import BackboneConfig
from refinedet_tf.layers import Normalization, Preprocessing

_MODULES = {
    "vgg16": vgg16,
    "resnet101": resnet101,
    "mobilenet_v1": mobilenet,
    "mobilenet_v2": mobilenet,
    "mobilenet_v3_small": mobilenet,
    "mobilenet_v3_large": mobilenet,
    "keras_cv": kerascv,
}


def build_backbone(images: tf.Tensor, config: BackboneConfig) -> list[tf.Tensor]:
    """Adds preprocessing and backbone to a functional graph.

    Args:
        images: a `keras.Input` `[b, h, w, 3]`, RGB in 0..255, sides multiples of 64.
        config: which backbone.

    Returns:
        Feature maps `[b, h / s, w / s, c]` for strides `s` 8, 16, 32, 64.

    Raises:
        ConfigError: KerasCV has no such backbone, or there are fewer stages than shall be frozen.
    """
    module = _MODULES[config.name]
    mode = config.preprocessing or module.PREPROCESSING
    # Without a layer in between, a KerasCV network is built on the graph's own input.
    x = images if mode == "none" else Preprocessing(mode, name="preprocessing")(images)
    maps = module.build(x, config)
    freeze(images, maps, config)
    return maps


def normalization_of(config: BackboneConfig) -> Normalization:
    """How the backbone's batch normalisation is made, which the layers on top follow."""
    return _MODULES[config.name].NORMALIZATION


def without_download(config: BackboneConfig) -> BackboneConfig:
    """The same backbone, said so that it can be built without a download: what a saved model carries."""
    return kerascv.without_download(config) if config.name == "keras_cv" else config
