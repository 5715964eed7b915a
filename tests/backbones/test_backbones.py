import numpy as np
import pytest
from tensorflow import keras

from refinedet_tf.backbones import build_backbone
from refinedet_tf.config import BACKBONES, BackboneConfig
from refinedet_tf.errors import ConfigError


@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in ("keras_cv", "keras_hub")])
def test_maps_have_strides_8_16_32_64(name):
    size = (128, 192)
    images = keras.Input((*size, 3))
    maps = build_backbone(images, BackboneConfig(name))
    assert [tuple(x.shape[1:3]) for x in maps] == [(size[0] // s, size[1] // s) for s in (8, 16, 32, 64)]


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75, 1.0])
def test_alpha_scales_the_channels_of_the_mobilenet(alpha):
    maps = build_backbone(keras.Input((64, 64, 3)), BackboneConfig("mobilenet_v1", alpha))
    assert [x.shape[-1] for x in maps] == [int(alpha * channels) for channels in (256, 512, 1024, 512)]


def test_mobilenet_is_that_of_keras_applications_fed_with_minus_one_to_one():
    """Its weights load by name: the maps are those of the classifier's own layers."""
    images = keras.Input((64, 64, 3))
    model = keras.Model(images, build_backbone(images, BackboneConfig("mobilenet_v1", 0.25)))
    original = keras.applications.MobileNet(input_shape=(64, 64, 3), alpha=0.25, include_top=False, weights=None)
    rng = np.random.default_rng(0)
    for layer in original.layers:
        # Statistics that differ from those of a fresh model; variances stay positive.
        weights = [rng.uniform(0.5, 1.5, w.shape) if w.ndim == 1 else w for w in layer.get_weights()]
        layer.set_weights(weights)
        if weights:
            model.get_layer(layer.name).set_weights(weights)
    pixels = rng.uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    sources = [original.get_layer(name).output for name in ("conv_pw_5_relu", "conv_pw_11_relu", "conv_pw_13_relu")]
    expected = keras.Model(original.input, sources)(keras.applications.mobilenet.preprocess_input(pixels.copy()))
    for own, theirs in zip(model(pixels)[:3], expected, strict=True):
        assert np.ptp(theirs) > 0
        np.testing.assert_allclose(own, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("vgg16", {"alpha": 0.5}),
        ("efficientnet_lite0", {"alpha": 0.5}),
        ("mobilenet_v1", {"preset_or_class": "ResNet50V2Backbone"}),
        ("resnet101", {"arguments": {"a": 1}}),
        ("keras_cv", {"preset_or_class": "ResNetV2Backbone", "alpha": 0.5}),
    ],
)
def test_settings_that_a_backbone_would_ignore_are_refused(name, setting):
    key = list(setting)[-1]
    with pytest.raises(ConfigError, match=rf"model\.backbone\.{key} = .*: {name} has no such setting; leave it out"):
        build_backbone(keras.Input((64, 64, 3)), BackboneConfig(name, **setting))
