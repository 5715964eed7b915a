import numpy as np
import pytest
from tensorflow import keras

from refinedet_tf.backbones import build_backbone
from refinedet_tf.config import BackboneConfig

# Channels of the four maps, and the numbers of the published files without classifier and counters.
NETWORKS = {
    "efficientnet_lite0": ([240, 672, 1280, 512], 3_413_024),
    "efficientnet_lite1": ([240, 672, 1280, 512], 4_189_344),
    "efficientnet_lite2": ([288, 720, 1280, 512], 4_869_168),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_are_the_expanded_ones_before_each_halving(name):
    images = keras.Input((64, 128, 3))
    maps = build_backbone(images, BackboneConfig(name))
    assert [tuple(x.shape[1:3]) for x in maps] == [(8, 16), (4, 8), (2, 4), (1, 2)]
    channels, parameters = NETWORKS[name]
    assert [x.shape[-1] for x in maps] == channels
    assert keras.Model(images, maps[2]).count_params() == parameters

    # The convolution of stride 2 comes next, except at the last level.
    model = keras.Model(images, maps)
    for x, block in zip(maps[:2], ("block4a", "block6a"), strict=True):
        assert model.get_layer(f"{block}_dwconv_pad").input is x
        assert model.get_layer(f"{block}_dwconv").strides == (2, 2)


def test_its_input_is_rgb_minus_127_over_128():
    images = keras.Input((64, 64, 3))
    model = keras.Model(images, build_backbone(images, BackboneConfig("efficientnet_lite0")))
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    seen = keras.Model(images, model.get_layer("stem_conv_pad").input)(pixels)
    np.testing.assert_allclose(seen, (pixels - 127) / 128, atol=1e-6)
