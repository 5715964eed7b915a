import numpy as np
import pytest
from tensorflow import keras

from refinedet_tf.backbones import build_backbone
from refinedet_tf.config import BackboneConfig, ModelConfig
from refinedet_tf.model import build_model

# Channels of the four maps at full width.
CHANNELS = {
    "mobilenet_v2": [192, 576, 1280, 512],
    "mobilenet_v3_small": [96, 288, 576, 512],
    "mobilenet_v3_large": [240, 672, 960, 512],
}
APPLICATIONS = {
    "mobilenet_v2": (keras.applications.MobileNetV2, keras.applications.mobilenet_v2.preprocess_input),
    # As published these two rescale inside the network.
    "mobilenet_v3_small": (keras.applications.MobileNetV3Small, lambda pixels: pixels),
    "mobilenet_v3_large": (keras.applications.MobileNetV3Large, lambda pixels: pixels),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_maps_are_the_wide_ones_before_each_halving(name):
    images = keras.Input((64, 128, 3))
    maps = build_backbone(images, BackboneConfig(name))
    assert [x.shape[-1] for x in maps] == CHANNELS[name]
    assert [tuple(x.shape[1:3]) for x in maps] == [(8, 16), (4, 8), (2, 4), (1, 2)]


def test_maps_of_mobilenet_v2_are_the_input_of_its_convolutions_of_stride_2():
    """Blocks before have maps of the same shape."""
    images = keras.Input((64, 128, 3))
    maps = build_backbone(images, BackboneConfig("mobilenet_v2"))
    model = keras.Model(images, maps)
    for x, block in zip(maps[:2], (6, 13), strict=True):
        assert model.get_layer(f"block_{block}_pad").input is x
        assert model.get_layer(f"block_{block}_depthwise").strides == (2, 2)


@pytest.mark.parametrize("name", CHANNELS)
def test_network_is_that_of_keras_applications_with_its_preprocessing(name):
    """The last map is the classifier's own, given its weights by name and the same pixels."""
    constructor, preprocess = APPLICATIONS[name]
    original = constructor(input_shape=(64, 64, 3), alpha=0.5, include_top=False, weights=None)
    images = keras.Input((64, 64, 3))
    maps = build_backbone(images, BackboneConfig(name, 0.5))
    own = keras.Model(images, maps[:3])
    rng = np.random.default_rng(0)
    count = 0
    for layer in original.layers:
        if layer.weights:
            # Statistics and scales that differ from those of a fresh model; variances stay positive.
            weights = [rng.uniform(0.5, 1.5, w.shape) if w.ndim == 1 else w for w in layer.get_weights()]
            layer.set_weights(weights)
            own.get_layer(layer.name).set_weights(weights)
            count += 1
    assert count == len([layer for layer in own.layers if layer.weights])
    pixels = rng.uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    actual, expected = own(pixels)[2], original(preprocess(pixels.copy()))
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.ptp(expected))


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small"])
def test_saved_detector_gives_equal_predictions(name, tmp_path):
    config = ModelConfig(
        classes=["a", "b"],
        input_size=[64, 64],
        backbone=BackboneConfig(name, 0.35),
        width=16,
        separable=True,
        batch_norm=True,
        upsampling="resize",
    )
    model = build_model(config)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    pixels = np.random.default_rng(1).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    expected, actual = model(pixels), again(pixels)
    assert np.ptp(expected["odm_classes"]) > 0
    for output, value in actual.items():
        np.testing.assert_array_equal(value, expected[output], err_msg=output)


def test_resize_repeats_every_value_of_the_block_above_and_has_no_parameters(tiny_config):
    config = ModelConfig(**{**vars(tiny_config), "upsampling": "resize"})
    model = build_model(config)
    assert not [layer.name for layer in model.layers if isinstance(layer, keras.layers.Conv2DTranspose)]
    above = np.random.default_rng(2).normal(size=(1, 2, 3, 16)).astype(np.float32)
    for level in (4, 5, 6):
        layer = model.get_layer(f"P{level}-up")
        assert not layer.weights and layer.input is model.get_layer(f"P{level}_relu").output
        np.testing.assert_array_equal(layer(above), above.repeat(2, axis=1).repeat(2, axis=2))
        assert layer.output is model.get_layer(f"Elt{level - 1}").input[1]
