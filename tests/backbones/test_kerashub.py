"""Backbones of KerasHub, made small. Skipped without the extra `keras-hub`."""

import importlib.util
import json
import shutil
import socket
import sys

import numpy as np
import pytest
from tensorflow import keras

from refinedet_tf.backbones import build_backbone, check_offline, input_form
from refinedet_tf.config import BackboneConfig, ModelConfig
from refinedet_tf.errors import ConfigError
from refinedet_tf.model import build_model
from refinedet_tf.weights import load_model

needs_keras_hub = pytest.mark.skipif(importlib.util.find_spec("keras_hub") is None, reason="needs the extra keras-hub")

NETWORKS = {
    "ResNetBackbone": {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 8, 8, 16],
        "stackwise_num_blocks": [1, 1, 1, 1],
        "stackwise_num_strides": [1, 2, 2, 2],
        "block_type": "basic_block",
        "use_pre_activation": True,
    },
    "CSPNetBackbone": {
        "stem_filters": 8,
        "stem_kernel_size": 3,
        "stem_strides": 1,
        "stem_padding": "same",
        "stackwise_depth": [1] * 5,
        "stackwise_strides": [2] * 5,
        "stackwise_num_filters": [8] * 5,
        "block_type": "dark_block",
        "stage_type": "csp",
        "bottle_ratio": [0.5],
        "block_ratio": [0.5],
        "expand_ratio": [1.0],
    },
    "EfficientNetBackbone": {
        "stackwise_kernel_sizes": [3] * 7,
        "stackwise_num_repeats": [1] * 7,
        "stackwise_input_filters": [8] * 7,
        "stackwise_output_filters": [8] * 7,
        "stackwise_expansion_ratios": [1, 2, 2, 2, 2, 2, 2],
        "stackwise_squeeze_and_excite_ratios": [0.25] * 7,
        "stackwise_strides": [1, 2, 2, 2, 1, 2, 1],
        "stackwise_block_types": ["v1"] * 7,
        "stackwise_width_coefficients": [1.0] * 7,
        "stackwise_depth_coefficients": [1.0] * 7,
        "num_features": 32,
    },
    # It has no pyramid outputs.
    "MobileNetBackbone": {
        "stackwise_expansion": [[8, 8], [8, 8], [8, 8]],
        "stackwise_num_blocks": [2, 2, 2],
        "stackwise_num_filters": [[8, 8], [8, 8], [8, 8]],
        "stackwise_kernel_size": [[3, 3], [5, 5], [5, 5]],
        "stackwise_num_strides": [[2, 1], [2, 1], [2, 1]],
        "stackwise_se_ratio": [[None, None], [0.25, 0.25], [0.25, 0.25]],
        "stackwise_activation": [["relu", "relu"], ["hard_swish"] * 2, ["hard_swish"] * 2],
        "stackwise_padding": [[1, 1], [2, 2], [2, 2]],
        "input_num_filters": 8,
        "output_num_filters": 16,
        "depthwise_filters": 8,
        "depthwise_stride": 2,
        "depthwise_residual": False,
        "last_layer_filter": 16,
        "squeeze_and_excite": 0.5,
        "input_activation": "hard_swish",
        "output_activation": "hard_swish",
    },
}
MOBILENET_MAPS = ("block_1_1", "block_2_1", "block_4_0")
PIXELS = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)


def backbone_config(name, **settings):
    return BackboneConfig("keras_hub", preset_or_class=name, arguments=NETWORKS.get(name, {}), **settings)


def own_network(name):
    """KerasHub's own network that ends at the three levels."""
    import keras_hub

    shape = {"input_shape" if name.startswith("Eff") else "image_shape": (64, 64, 3)}
    network = getattr(keras_hub.models, name)(**NETWORKS[name], **shape)
    if name == "MobileNetBackbone":
        maps = [network.get_layer(layer).output for layer in MOBILENET_MAPS]
    else:
        # KerasHub counts the stages of a CSP-Darknet from P2, though its first one has stride 2.
        levels = ("P4", "P5", "P6") if name == "CSPNetBackbone" else ("P3", "P4", "P5")
        maps = [network.pyramid_outputs[level] for level in levels]
    return network, keras.Model(network.inputs, maps)


def detector(backbone):
    return build_model(
        ModelConfig(classes=["a"], input_size=[64, 64], backbone=backbone, width=8, separable=True, batch_norm=True)
    )


@needs_keras_hub
@pytest.mark.parametrize(("name", "mode"), [*((name, None) for name in NETWORKS), ("ResNetBackbone", "none")])
def test_maps_are_the_levels_of_the_network_on_its_own_input(name, mode):
    images = keras.Input((64, 64, 3))
    maps = build_backbone(images, backbone_config(name, preprocessing=mode))
    assert [tuple(x.shape[1:3]) for x in maps] == [(8, 8), (4, 4), (2, 2), (1, 1)]
    own = keras.Model(images, maps[:3])
    _, reference = own_network(name)
    reference.set_weights(own.get_weights())
    expected = reference(PIXELS if mode == "none" else PIXELS / 127.5 - 1)
    for actual, value in zip(own(PIXELS), expected, strict=True):
        assert np.ptp(value) > 0
        np.testing.assert_allclose(actual, value, rtol=1e-5, atol=1e-5 * np.ptp(value))


@needs_keras_hub
@pytest.mark.parametrize("name", NETWORKS)
def test_saved_detector_gives_equal_predictions_and_names_do_not_depend_on_others(name, tmp_path):
    model = detector(backbone_config(name))
    assert input_form(model.config.backbone) == "tf"
    model.save(tmp_path / "model.keras")
    again = load_model(tmp_path / "model.keras")
    assert again.config == model.config
    names = [layer.name for layer in model.layers if layer.weights]
    assert names == [layer.name for layer in again.layers if layer.weights]
    expected, actual = model(PIXELS), again(PIXELS)
    assert np.ptp(expected["odm_classes"]) > 0
    for output, value in actual.items():
        np.testing.assert_array_equal(value, expected[output], err_msg=output)


@needs_keras_hub
def test_preset_brings_weights_and_preprocessing_and_a_saved_detector_does_without_it(tmp_path, monkeypatch):
    import keras_hub

    network, reference = own_network("ResNetBackbone")
    for layer in network.layers:
        layer.set_weights([w + 0.25 for w in layer.get_weights()])
    preset = tmp_path / "preset"
    network.save_to_preset(preset)
    deviation = np.array([0.229, 0.224, 0.225])
    scale, offset = 1 / (255 * deviation), -np.array([0.485, 0.456, 0.406]) / deviation
    converter = keras_hub.layers.ResNetImageConverter(scale=scale.tolist(), offset=offset.tolist())
    converter.save_to_preset(preset)

    images = keras.Input((64, 64, 3))
    config = backbone_config(str(preset))
    maps = keras.Model(images, build_backbone(images, config)[:3])(PIXELS)
    for actual, expected in zip(maps, reference((PIXELS * scale + offset).astype(np.float32)), strict=True):
        assert np.ptp(expected) > 0
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.ptp(expected))

    model = detector(config)
    model.save(tmp_path / "model.keras")
    shutil.rmtree(preset)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: pytest.fail("reached for the network"))
    again = load_model(tmp_path / "model.keras")
    for output, value in again(PIXELS).items():
        np.testing.assert_array_equal(value, model(PIXELS)[output], err_msg=output)
    assert again.config.backbone.preset_or_class == "ResNetBackbone"
    assert again.config.backbone.preprocessing == "torch"
    json.dumps(model.get_config())


@needs_keras_hub
def test_preset_without_preprocessing_asks_for_it(tmp_path):
    own_network("ResNetBackbone")[0].save_to_preset(tmp_path)
    images = keras.Input((64, 64, 3))
    with pytest.raises(ConfigError, match=r"preprocessing cannot be read; set model\.backbone\.preprocessing"):
        build_backbone(images, backbone_config(str(tmp_path)))
    build_backbone(images, backbone_config(str(tmp_path), preprocessing="tf"))


@needs_keras_hub
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "name a backbone class of keras_hub.models"),
        ("ResNetBackbon", "did you mean 'ResNetBackbone'.*its classes are "),
        ("resnet_50_imagenett", "did you mean 'resnet_50_imagenet'"),
        ("VGGBackbone", "KerasHub cannot build it"),
    ],
)
def test_backbones_that_kerashub_cannot_give_are_named(name, message):
    with pytest.raises(ConfigError, match=f"model.backbone.preset_or_class = {name!r}: .*{message}"):
        build_backbone(keras.Input((64, 64, 3)), BackboneConfig("keras_hub", preset_or_class=name))


@needs_keras_hub
def test_network_without_a_stride_is_refused_by_naming_it():
    shallow = {
        key: value[:3] if key.startswith("stack") else value for key, value in NETWORKS["ResNetBackbone"].items()
    }
    config = BackboneConfig("keras_hub", preset_or_class="ResNetBackbone", arguments=shallow)
    with pytest.raises(ConfigError, match="has no maps at stride 32"):
        build_backbone(keras.Input((64, 64, 3)), config)


@needs_keras_hub
def test_a_saved_model_must_not_name_a_preset():
    check_offline(backbone_config("ResNetBackbone"))
    for config in (backbone_config("resnet_50_imagenet"), backbone_config("ResNetBackbone")):
        config.arguments = {}
        with pytest.raises(ConfigError, match="a saved model must name a class and its arguments"):
            check_offline(config)


def test_without_kerashub_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'refinedet-tf\[keras-hub\]' beside TensorFlow 2\.16 or later"):
        build_backbone(keras.Input((64, 64, 3)), backbone_config("ResNetBackbone"))
