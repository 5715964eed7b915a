"""The reduced VGG-16 of the paper: fc6 and fc7 as convolutions, conv6_1 and conv6_2 on top, two maps L2-normalized."""

import tensorflow as tf
from tensorflow import keras

from refinedet_tf.backbones.definition import Application, Backbone
from refinedet_tf.config import BackboneConfig
from refinedet_tf.layers import L2Normalization, xavier

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def build(x: tf.Tensor, config: BackboneConfig) -> list[tf.Tensor]:
    """Adds the network to a functional graph; layers carry the original names.

    Args:
        x: `[b, h, w, 3]`, BGR minus mean.
        config: not used.

    Returns:
        `conv4_3_norm`, `conv5_3_norm`, `fc7`, `conv6_2`: 512, 512, 1024, 512 channels.
    """
    del config
    maps = {}
    for stage, (filters, convolutions) in enumerate(_STAGES, start=1):
        for index in range(1, convolutions + 1):
            x = _conv(x, filters, 3, f"conv{stage}_{index}")
        maps[stage] = x
        x = keras.layers.MaxPooling2D(2, name=f"pool{stage}")(x)
    fc6 = _conv(x, 1024, 3, "fc6", dilation_rate=3)
    fc7 = _conv(fc6, 1024, 1, "fc7")
    conv6_1 = _conv(fc7, 256, 1, "conv6_1")
    # Symmetric padding as in Caffe; Keras's `same` would pad right and below only.
    padded = keras.layers.ZeroPadding2D(1, name="conv6_2_padding")(conv6_1)
    conv6_2 = _conv(padded, 512, 3, "conv6_2", strides=2, padding="valid")
    # The trunk continues from the maps before normalization.
    conv4_3 = L2Normalization(10.0, name="conv4_3_norm")(maps[4])
    conv5_3 = L2Normalization(8.0, name="conv5_3_norm")(maps[5])
    return [conv4_3, conv5_3, fc7, conv6_2]


def _conv(x: tf.Tensor, filters: int, kernel: int, name: str, **kwargs: object) -> tf.Tensor:
    options = {"padding": "same", "activation": "relu", "kernel_initializer": xavier(), **kwargs}
    return keras.layers.Conv2D(filters, kernel, name=name, **options)(x)


# fc6 and fc7 are made from the classifier's fc1 and fc2.
BACKBONE = Backbone(build, "caffe", application=lambda config: Application("VGG16", needs_top=True))
