"""The networks below the detector.

A backbone is a function from preprocessed images and its part of the recipe to four feature maps at strides 8, 16, 32
and 64, the sources of the ARM and of the transfer connection blocks. To add one: write a module with `PREPROCESSING`
and `build`, list it here, and name it in `config.BACKBONES`.
"""

import tensorflow as tf

from refinedet_tf.backbones import mobilenet, vgg16
from refinedet_tf.config import BackboneConfig
from refinedet_tf.layers import Preprocessing

_MODULES = {"vgg16": vgg16, "mobilenet_v1": mobilenet}


def build_backbone(images: tf.Tensor, config: BackboneConfig) -> list[tf.Tensor]:
    """Adds preprocessing and backbone to a functional graph.

    Args:
        images: symbolic `[b, h, w, 3]`, RGB in 0..255, sides multiples of 64.
        config: which backbone.

    Returns:
        Feature maps `[b, h / s, w / s, c]` for strides `s` 8, 16, 32, 64.
    """
    module = _MODULES[config.name]
    return module.build(Preprocessing(module.PREPROCESSING, name="preprocessing")(images), config)
