import numpy as np
import pytest
from tensorflow import keras

from refinedet_tf.backbones import build_backbone
from refinedet_tf.config import BackboneConfig, ModelConfig
from refinedet_tf.errors import ConfigError
from refinedet_tf.model import build_model


def layers_with_weights(name, **settings):
    images = keras.Input((64, 64, 3))
    model = keras.Model(images, build_backbone(images, BackboneConfig(name, **settings)))
    return [layer for layer in model.layers if layer.weights]


VGG16_STAGES = [
    *({f"conv{stage}_{index}" for index in range(1, count + 1)} for stage, count in ((1, 2), (2, 2), (3, 3))),
    {"conv4_1", "conv4_2", "conv4_3", "conv4_3_norm"},
    {"conv5_1", "conv5_2", "conv5_3", "conv5_3_norm"},
    {"fc6", "fc7"},
]


@pytest.mark.parametrize("stages", [0, 1, 4, 6])
def test_first_stages_of_vgg16_are_frozen_and_no_others(stages):
    frozen = {layer.name for layer in layers_with_weights("vgg16", frozen_stages=stages) if not layer.trainable}
    assert frozen == set().union(*VGG16_STAGES[:stages])


@pytest.mark.parametrize(
    ("name", "stages", "first_trained"),
    [
        ("mobilenet_v1", 1, "conv_dw_2"),
        ("mobilenet_v1", 5, "extra_1"),
        # Squeeze-and-excitation layers see one pixel and belong to their block all the same.
        ("mobilenet_v3_small", 1, "expanded_conv_depthwise"),
        ("mobilenet_v3_small", 2, "expanded_conv_1_depthwise"),
        ("mobilenet_v3_small", 4, "expanded_conv_8_depthwise"),
    ],
)
def test_stages_end_where_the_resolution_halves(name, stages, first_trained):
    layers = layers_with_weights(name, frozen_stages=stages, alpha=0.5)
    names = [layer.name.replace("/", "_") for layer in layers]  # Keras 2 writes expanded_conv/depthwise
    trained = [layer.trainable for layer in layers]
    boundary = names.index(first_trained)
    assert trained == [False] * boundary + [True] * (len(layers) - boundary)


def test_frozen_stages_of_resnet101_are_its_named_ones():
    layers = layers_with_weights("resnet101", frozen_stages=3, freeze_batch_norm=True)
    kernels = {layer.name: layer.trainable for layer in layers if isinstance(layer, keras.layers.Conv2D)}
    stems = ("conv1", "res2", "res3")
    assert kernels == {name: not name.startswith(stems) for name in kernels} and len(kernels) == 1 + 3 * 34 + 5
    # res6 has no pretrained statistics to keep.
    for layer in layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            assert layer.trainable == layer.name.startswith("bn6_")


def test_batch_norm_inside_compound_layers_is_frozen_too():
    arguments = {"stackwise_channels": [8, 8, 16, 16], "stackwise_depth": [1, 1, 1, 1]}
    layers = layers_with_weights(
        "keras_cv", preset_or_class="CSPDarkNetBackbone", arguments=arguments, freeze_batch_norm=True
    )
    pretrained = [layer for layer in layers if not layer.name.startswith("extra")]
    trained = {v.name.split("/")[-1].split(":")[0] for layer in pretrained for v in layer.trainable_variables}
    assert trained == {"kernel"}
    assert any("gamma" in v.name for layer in layers for v in layer.trainable_variables)


def test_more_stages_than_there_are_is_an_error():
    with pytest.raises(ConfigError, match="frozen_stages = 6: mobilenet_v1 has 5 stages"):
        layers_with_weights("mobilenet_v1", frozen_stages=6, alpha=0.25)


def backbone_values(model):
    return {
        (layer.name, variable.name.split("/")[-1]): np.array(variable)
        for layer in model.layers
        if layer.name.startswith(("conv", "extra"))
        for variable in layer.weights
    }


@pytest.mark.parametrize(("stages", "batch_norm"), [(2, False), (1, True)])
def test_a_step_changes_exactly_what_is_not_frozen_also_after_reloading(stages, batch_norm, tmp_path):
    config = ModelConfig(
        classes=["a"],
        input_size=[64, 64],
        backbone=BackboneConfig("mobilenet_v1", 0.25, frozen_stages=stages, freeze_batch_norm=batch_norm),
        width=8,
        separable=True,
        batch_norm=True,
    )
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (4, 64, 64, 3)).astype(np.float32)
    boxes = np.tile(np.float32([[0.1, 0.1, 0.6, 0.6], [0.6, 0.6, 0.8, 0.8]]), (4, 1, 1))
    targets = {"boxes": boxes, "classes": np.zeros([4, 2], np.int32)}

    model = build_model(config)
    model.save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras", compile=False)
    before = backbone_values(model)
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    model.train_on_batch(images, targets)
    after = backbone_values(model)
    unchanged = {key for key in before if np.array_equal(before[key], after[key])}

    frozen_blocks = {1: ("conv1", "conv_dw_1", "conv_pw_1"), 2: ("conv_dw_2", "conv_dw_3", "conv_pw_2", "conv_pw_3")}
    frozen = {
        key
        for key in before
        for stage in range(1, stages + 1)
        for block in frozen_blocks[stage]
        if key[0] == block or key[0] == f"{block}_bn"
    }
    if batch_norm:
        frozen |= {key for key in before if key[0].startswith("conv") and key[0].endswith("_bn")}
    assert frozen and unchanged == frozen
