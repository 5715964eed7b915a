"""ResNet-101 as released by He et al., with res6 on top: the paper's larger backbone."""

import tensorflow as tf
from tensorflow import keras

from refinedet_tf.backbones.definition import Application, Backbone
from refinedet_tf.config import BackboneConfig
from refinedet_tf.layers import Normalization, batch_normalization, bottleneck_block, gaussian, relu

# Caffe's moving average fraction and epsilon, which the transfer connection blocks and head blocks share.
_NORMALIZATION = Normalization(momentum=0.999, epsilon=1e-5, kernel_initializer=gaussian)

# Stage: inner channels, outer channels, names of the blocks.
_STAGES = {
    2: (64, 256, ("2a", "2b", "2c")),
    3: (128, 512, ("3a", *(f"3b{index}" for index in range(1, 4)))),
    4: (256, 1024, ("4a", *(f"4b{index}" for index in range(1, 23)))),
    5: (512, 2048, ("5a", "5b", "5c")),
    6: (128, 512, ("6",)),
}


def build(x: tf.Tensor, config: BackboneConfig) -> list[tf.Tensor]:
    """Adds the network to a functional graph; layers carry the original names.

    The batch normalization `bn2a_branch1` holds the original's `bn2a_branch1` and `scale2a_branch1`. Unlike the ResNets
    of keras.applications, convolutions have no bias and `pool1` pads only on the right and at the bottom.

    Args:
        x: `[b, h, w, 3]`, BGR minus mean.
        config: not used.

    Returns:
        `res3b3`, `res4b22`, `res5c`, `res6` after their ReLUs: 512, 1024, 2048, 512 channels.
    """
    del config
    # Symmetric padding as in Caffe; Keras's `same` would pad 2 rows above and 3 below.
    x = keras.layers.ZeroPadding2D(3, name="conv1_padding")(x)
    x = keras.layers.Conv2D(64, 7, strides=2, use_bias=False, kernel_initializer=gaussian(), name="conv1")(x)
    x = relu("conv1_relu")(batch_normalization("bn_conv1", _NORMALIZATION)(x))
    # Caffe pools without padding and rounds the size up.
    x = keras.layers.MaxPooling2D(3, strides=2, padding="same", name="pool1")(x)
    maps = []
    for stage, (inner, outer, blocks) in _STAGES.items():
        for block in blocks:
            first = block == blocks[0]
            x = bottleneck_block(
                x,
                (inner, outer),
                conv_name=f"res{block}_{{}}",
                bn_name=f"bn{block}_{{}}",
                relu_name=f"res{block}_relu",
                stride=2 if first and stage > 2 else 1,
                projection=first,
                normalization=_NORMALIZATION,
            )
        maps.append(x)
    return maps[1:]


BACKBONE = Backbone(build, "caffe", normalization=_NORMALIZATION, application=lambda config: Application("ResNet101"))
