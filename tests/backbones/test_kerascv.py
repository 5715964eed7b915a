import json
import shutil

import keras_cv
import numpy as np
import pytest
from keras_cv.src.utils.preset_utils import save_to_preset
from tensorflow import keras

from refinedet_tf.backbones import build_backbone
from refinedet_tf.config import BackboneConfig, ModelConfig, load_config, save_config
from refinedet_tf.config import Config as Recipe
from refinedet_tf.errors import ConfigError
from refinedet_tf.model import build_model

# KerasCV's named sizes (ResNet50V2Backbone and so on) are downloads, and large; these are its classes made small.
NETWORKS = {
    "ResNetV2Backbone": {
        "stackwise_filters": [8, 8, 16, 16],
        "stackwise_blocks": [2, 2, 2, 2],
        "stackwise_strides": [1, 2, 2, 2],
    },
    "CSPDarkNetBackbone": {"stackwise_channels": [8, 8, 16, 16], "stackwise_depth": [1, 1, 1, 1]},
    "MobileNetV3Backbone": {
        "stackwise_expansion": [1, 4, 6, 3, 6],
        "stackwise_filters": [8, 8, 16, 16, 16],
        "stackwise_kernel_size": [3, 3, 5, 5, 5],
        "stackwise_stride": [2, 2, 2, 1, 2],
        "stackwise_se_ratio": [0.25, None, 0.25, 0.25, 0.25],
        "stackwise_activation": ["relu", "relu", "hard_swish", "hard_swish", "hard_swish"],
    },
    "EfficientNetV2Backbone": {
        "stackwise_kernel_sizes": [3] * 6,
        "stackwise_num_repeats": [1] * 6,
        "stackwise_input_filters": [8] * 6,
        "stackwise_output_filters": [8] * 6,
        "stackwise_expansion_ratios": [2] * 6,
        "stackwise_squeeze_and_excite_ratios": [0.0, 0.0, 0.0, 0.25, 0.25, 0.25],
        "stackwise_strides": [1, 2, 2, 2, 1, 2],
        "stackwise_conv_types": ["fused"] * 3 + ["unfused"] * 3,
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
    },
}
PIXELS = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)


def backbone_config(name, **settings):
    return BackboneConfig("keras_cv", preset_or_class=name, arguments=NETWORKS.get(name, {}), **settings)


def detector(backbone):
    return build_model(
        ModelConfig(classes=["a"], input_size=[64, 64], backbone=backbone, width=8, separable=True, batch_norm=True)
    )


def assert_equal_predictions(model, other):
    expected, actual = model(PIXELS), other(PIXELS)
    assert np.ptp(expected["odm_classes"]) > 0
    for name, value in actual.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def levels_of(network):
    """A model that ends at the pyramid levels."""
    names = [network.pyramid_level_inputs[level] for level in ("P3", "P4", "P5")]
    return keras.Model(network.input, [network.get_layer(name).output for name in names])


@pytest.mark.parametrize(("name", "preprocessing"), [*((name, None) for name in NETWORKS), ("ResNetV2Backbone", "tf")])
def test_maps_are_the_pyramid_levels_of_the_network(name, preprocessing):
    images = keras.Input((64, 64, 3))
    maps = build_backbone(images, backbone_config(name, preprocessing=preprocessing))
    assert [tuple(x.shape[1:3]) for x in maps] == [(8, 8), (4, 4), (2, 2), (1, 1)]
    own = keras.Model(images, maps[:3])

    rescales = preprocessing is None
    network = getattr(keras_cv.models, name)(**NETWORKS[name], include_rescaling=rescales, input_shape=(64, 64, 3))
    reference = levels_of(network)
    reference.set_weights(own.get_weights())
    expected = reference(PIXELS if rescales else PIXELS / 127.5 - 1)
    for actual, value in zip(own(PIXELS), expected, strict=True):
        assert np.ptp(value) > 0
        np.testing.assert_allclose(actual, value, rtol=1e-5, atol=1e-5 * np.ptp(value))


@pytest.mark.parametrize("name", NETWORKS)
def test_saved_detector_gives_equal_predictions(name, tmp_path):
    model = detector(backbone_config(name))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert again.config == model.config
    assert_equal_predictions(model, again)


@pytest.mark.parametrize("name", NETWORKS)
def test_names_do_not_depend_on_what_was_built_before(name):
    """Weights are found by name, also in another process."""

    def names():
        images = keras.Input((64, 64, 3))
        model = keras.Model(images, build_backbone(images, backbone_config(name)))
        return [layer.name for layer in model.layers if layer.weights]

    first = names()
    assert names() == first and len(set(first)) == len(first)


def test_preset_brings_its_weights_and_a_saved_detector_does_without_it(tmp_path):
    network = keras_cv.models.MobileNetV3Backbone(**NETWORKS["MobileNetV3Backbone"], include_rescaling=True)
    for layer in network.layers:
        layer.set_weights([w + 0.25 for w in layer.get_weights()])
    save_to_preset(network, str(tmp_path / "preset"))
    config = backbone_config(str(tmp_path / "preset"))

    images = keras.Input((64, 64, 3))
    own = keras.Model(images, build_backbone(images, config)[:3])
    for carried, saved in zip(own.get_weights(), levels_of(network).get_weights(), strict=True):
        np.testing.assert_array_equal(carried, saved)

    model = detector(config)
    model.save(tmp_path / "model.keras")
    shutil.rmtree(tmp_path / "preset")
    assert_equal_predictions(model, keras.models.load_model(tmp_path / "model.keras", compile=False))
    assert model.config.backbone.preset_or_class == "MobileNetV3Backbone"
    assert model.config.backbone.arguments["stackwise_filters"] == [8, 8, 16, 16, 16]
    json.dumps(model.get_config())


@pytest.mark.parametrize("name", ["resnet50_v2_imagenet", "ResNet50V2Backbone"])
def test_a_failed_download_is_said(name, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("Failed to resolve 'api.kaggle.com'")

    monkeypatch.setattr(keras_cv.models.ResNetV2Backbone, "from_preset", fail)
    config = BackboneConfig("keras_cv", preset_or_class=name)
    message = rf"{name}': KerasCV cannot build it \(a preset is downloaded; .*\): Failed to resolve"
    with pytest.raises(ConfigError, match=message):
        build_backbone(keras.Input((64, 64, 3)), config)


def test_arguments_of_a_recipe_are_read_back_as_they_were(tmp_path):
    for name in NETWORKS:
        recipe = Recipe(model=ModelConfig(classes=["a"], backbone=backbone_config(name)))
        save_config(recipe, tmp_path / "recipe.yaml")
        assert load_config(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ResNet50V2Backbon", "did you mean 'ResNet50V2Backbone'.*its classes are CSPDarkNetLBackbone"),
        ("resnet50_v2_imagenett", "did you mean 'resnet50_v2_imagenet'"),
        ("Backbone", "no such class"),
        ("ResNetV2Backbone", "KerasCV cannot build it .*stackwise_filters"),
    ],
)
def test_backbones_that_kerascv_cannot_give_are_named(name, message):
    config = BackboneConfig("keras_cv", preset_or_class=name)
    with pytest.raises(ConfigError, match=f"model.backbone.preset_or_class = '{name}': .*{message}"):
        build_backbone(keras.Input((64, 64, 3)), config)


def test_a_missing_class_says_what_to_name():
    with pytest.raises(ConfigError, match=r"model\.backbone\.preset_or_class = None: name a backbone class"):
        build_backbone(keras.Input((64, 64, 3)), BackboneConfig("keras_cv"))


def test_network_without_the_levels_is_refused_by_naming_them():
    shallow = {key: values[:3] for key, values in NETWORKS["ResNetV2Backbone"].items()}
    config = BackboneConfig("keras_cv", preset_or_class="ResNetV2Backbone", arguments=shallow)
    with pytest.raises(ConfigError, match="has the levels P2, P3, P4, not P5"):
        build_backbone(keras.Input((64, 64, 3)), config)
