import re

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from refinedet_tf.config import BackboneConfig, ModelConfig
from refinedet_tf.layers import bottleneck_block
from refinedet_tf.model import build_model

BRANCHES = ("branch1", "branch2a", "branch2b", "branch2c")
# Stage: blocks, inner and outer channels, channels that come in.
STAGES = {
    2: (["2a", "2b", "2c"], 64, 256, 64),
    3: (["3a", "3b1", "3b2", "3b3"], 128, 512, 256),
    4: (["4a", *(f"4b{index}" for index in range(1, 23))], 256, 1024, 512),
    5: (["5a", "5b", "5c"], 512, 2048, 1024),
    6: (["6"], 128, 512, 2048),
}
ARM_SOURCES = {3: "res3b3_relu", 4: "res4b22_relu", 5: "res5c_relu", 6: "res6_relu"}
ODM_SOURCES = {3: "P3", 4: "P4", 5: "P5", 6: "P6"}


def build(classes):
    return build_model(
        ModelConfig(
            classes=[f"class {index}" for index in range(classes)],
            input_size=[64, 64],
            backbone=BackboneConfig("resnet101"),
            batch_norm=True,
            head_blocks=True,
        )
    )


@pytest.fixture(scope="module")
def model():
    return build(80)


def learnable(model):
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def test_learnable_parameters_are_those_of_the_original(model):
    assert learnable(model) == 82_451_588
    # The original counts a third value, the factor of the averages, for each of its 155 normalizations.
    statistics = [variable for layer in model.layers for variable in layer.non_trainable_variables]
    assert sum(int(np.prod(variable.shape)) for variable in statistics) == 156_699 - 155


def test_voc_has_fewer_parameters_in_the_class_heads_only(model):
    voc = build(20)
    assert learnable(voc) == 75_815_348
    assert [a.name for a in voc.layers] == [a.name for a in model.layers]
    differing = [a.name for a, b in zip(voc.layers, model.layers, strict=True) if a.count_params() != b.count_params()]
    assert sorted(differing) == [f"odm{level}_classes" for level in (3, 4, 5, 6)]


def test_parameters_of_each_part_are_those_of_the_original(model):
    def part(pattern):
        layers = [layer for layer in model.layers if re.fullmatch(pattern, layer.name)]
        return sum(int(np.prod(v.shape)) for layer in layers for v in layer.trainable_variables)

    counts = {
        r"conv1|bn_conv1|(res|bn)[2-5].*": 42_500_160,
        r"(res|bn)6.*": 1_526_272,
        r"TL.*": 11_800_576,
        r"P[3-6](_bn)?": 2_361_344,
        r"P[4-6]-up(_bn)?": 787_968,
        r"arm\d_inter_.*": 8_671_232,
        r"arm\d_offsets": 442_416,
        r"arm\d_objectness": 221_208,
        r"odm\d_inter_.*": 4_739_072,
        r"odm\d_offsets": 442_416,
        r"odm\d_classes": 8_958_924,
    }
    assert {pattern: part(pattern) for pattern in counts} == counts
    assert sum(counts.values()) == 82_451_588


def bottleneck_shapes(name, inner, outer, below, projection):
    shapes = {
        name.format("branch2a"): (inner, below, 1, 1),
        name.format("branch2b"): (inner, inner, 3, 3),
        name.format("branch2c"): (outer, inner, 1, 1),
    }
    return {**shapes, **({name.format("branch1"): (outer, below, 1, 1)} if projection else {})}


def original_convolutions():
    """Name and blob shape of every convolution of the released network for COCO, from its tables."""
    shapes = {"conv1": (64, 3, 7, 7)}
    for blocks, inner, outer, below in STAGES.values():
        for block in blocks:
            first = block == blocks[0]
            shapes |= bottleneck_shapes(f"res{block}_{{}}", inner, outer, below if first else outer, first)
    for level, below in {3: 512, 4: 1024, 5: 2048, 6: 512}.items():
        shapes |= {f"TL{level}_1": (256, below, 3, 3), f"TL{level}_2": (256, 256, 3, 3)}
        shapes |= {f"P{level}": (256, 256, 3, 3)}
        for source, channels, confidences in ((ARM_SOURCES, below, 6), (ODM_SOURCES, 256, 243)):
            name = f"res{source[level]}_inter"
            shapes |= bottleneck_shapes(f"{name}_{{}}", 256, 1024, channels, True)
            shapes |= {f"{name}_mbox_loc": (12, 1024, 3, 3), f"{name}_mbox_conf": (confidences, 1024, 3, 3)}
    return shapes


def original_name(layer):
    """The original's name for one of our convolutions."""
    kinds = {"objectness": "conf", "classes": "conf", "offsets": "loc"}
    if match := re.fullmatch(r"(arm|odm)(\d)_(inter_)?(\w+)", layer):
        module, level, block, rest = match.groups()
        source = (ARM_SOURCES if module == "arm" else ODM_SOURCES)[int(level)]
        return f"res{source}_inter_{rest}" if block else f"res{source}_inter_mbox_{kinds[rest]}"
    return layer


def of_type(model, layer_type):
    # Not isinstance: a deconvolution is a convolution to Keras 2.
    return [layer for layer in model.layers if type(layer) is layer_type]


def test_convolutions_have_the_names_and_shapes_of_the_released_network(model):
    own = {
        original_name(layer.name): tuple(layer.kernel.shape[axis] for axis in (3, 2, 0, 1))
        for layer in of_type(model, keras.layers.Conv2D)
    }
    assert len(own) == 168
    assert own == original_convolutions()
    deconvolutions = {
        layer.name: (*layer.kernel.shape, layer.strides) for layer in of_type(model, keras.layers.Conv2DTranspose)
    }
    assert deconvolutions == {f"P{level}-up": (2, 2, 256, 256, (2, 2)) for level in (4, 5, 6)}
    assert len(of_type(model, keras.layers.Add)) == 45


def test_stride_two_sits_on_the_first_1x1_and_the_projection(model):
    strided = {layer.name for layer in of_type(model, keras.layers.Conv2D) if layer.strides != (1, 1)}
    blocks = ("3a", "4a", "5a", "6")
    assert strided == {"conv1", *(f"res{b}_{r}" for b in blocks for r in ("branch1", "branch2a"))}
    assert not [a.name for a in of_type(model, keras.layers.Conv2D) if a.dilation_rate != (1, 1)]


def test_each_convolution_but_the_heads_is_normalized_in_place_of_a_bias(model):
    def expected_name(conv):
        if conv == "conv1":
            return "bn_conv1"
        return f"bn{conv.removeprefix('res')}" if conv.startswith("res") else f"{conv}_bn"

    by_input = {id(layer.input): layer for layer in of_type(model, keras.layers.BatchNormalization)}
    assert len(by_input) == 155
    for conv in [*of_type(model, keras.layers.Conv2D), *of_type(model, keras.layers.Conv2DTranspose)]:
        head = re.fullmatch(r"(arm|odm)\d_(objectness|offsets|classes)", conv.name)
        assert conv.use_bias == bool(head)
        if not head:
            assert by_input.pop(id(conv.output)).name == expected_name(conv.name)
    assert not by_input


def test_normalization_has_caffes_epsilon_and_averaging_everywhere(model):
    settings = {(layer.epsilon, layer.momentum) for layer in of_type(model, keras.layers.BatchNormalization)}
    assert settings == {(1e-5, 0.999)}


def test_kernels_start_gaussian_before_normalization_and_uniform_in_the_heads(model):
    for layer in [*of_type(model, keras.layers.Conv2D), *of_type(model, keras.layers.Conv2DTranspose)]:
        kernel = np.asarray(layer.kernel)
        if layer.use_bias:
            bound = np.sqrt(3 / np.prod(kernel.shape[:3]))
            assert 0.9 * bound < np.abs(kernel).max() <= np.float32(bound)
        else:
            # Estimated from at least 4096 values: five standard errors.
            assert abs(kernel.std() - 0.01) < 0.01 * 5 / np.sqrt(2 * 4096)
            assert np.abs(kernel).max() > 0.025


def test_transfer_connections_see_the_maps_and_the_heads_the_blocks_behind_them(model):
    for level, source in ARM_SOURCES.items():
        features = model.get_layer(source).output
        assert model.get_layer(f"TL{level}_1").input is features
        assert model.get_layer(f"arm{level}_inter_branch1").input is features
        assert model.get_layer(f"arm{level}_inter_branch2a").input is features
        pyramid = model.get_layer(f"P{level}_relu").output
        assert model.get_layer(f"odm{level}_inter_branch1").input is pyramid
        assert model.get_layer(f"odm{level}_inter_branch2a").input is pyramid
        for head in (f"arm{level}_objectness", f"arm{level}_offsets", f"odm{level}_classes", f"odm{level}_offsets"):
            assert model.get_layer(head).input is model.get_layer(f"{head[:4]}_inter_relu").output


def test_stem_pads_three_on_all_sides_and_pools_with_the_size_rounded_up(model):
    pixels = np.random.default_rng(0).uniform(-120, 120, (2, 64, 64, 3)).astype(np.float32)
    conv1, pool1 = model.get_layer("conv1"), model.get_layer("pool1")
    padded = np.pad(pixels, [(0, 0), (3, 3), (3, 3), (0, 0)])
    expected = tf.nn.conv2d(padded, conv1.kernel, strides=2, padding="VALID")
    actual = conv1(model.get_layer("conv1_padding")(pixels))
    assert actual.shape == (2, 32, 32, 64)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)
    assert np.abs(tf.nn.conv2d(pixels, conv1.kernel, strides=2, padding="SAME") - expected).max() > 1

    # Caffe's rows 0 to 15 start at 2 i; the last window reaches one past the end and takes what there is.
    features = np.asarray(actual)
    plain = np.stack([features[:, 2 * i : 2 * i + 3].max(axis=1) for i in range(16)], axis=1)
    plain = np.stack([plain[:, :, 2 * i : 2 * i + 3].max(axis=2) for i in range(16)], axis=2)
    np.testing.assert_array_equal(pool1(features), plain)


@pytest.mark.parametrize(("stride", "projection"), [(1, False), (1, True), (2, True)])
def test_bottleneck_block_is_the_residual_sum_of_caffe(stride, projection):
    inputs = keras.Input((6, 8, 10))
    names = {"conv_name": "res_{}", "bn_name": "bn_{}", "relu_name": "block_relu"}
    channels = (4, 12 if projection else 10)
    block = keras.Model(inputs, bottleneck_block(inputs, channels, stride=stride, projection=projection, **names))
    rng = np.random.default_rng(stride)
    for layer in block.layers:
        layer.set_weights([rng.uniform(0.5, 1.5, w.shape) * rng.choice([1, 1, -1]) for w in layer.get_weights()])
    for layer in of_type(block, keras.layers.BatchNormalization):
        gamma, beta, mean, variance = layer.get_weights()
        layer.set_weights([gamma, beta, mean, np.abs(variance)])
    x = rng.normal(size=(2, 6, 8, 10)).astype(np.float32)

    def conv_bn(x, branch, pad=0):
        kernel = block.get_layer(f"res_{branch}").get_weights()[0]
        gamma, beta, mean, variance = block.get_layer(f"bn_{branch}").get_weights()
        x = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
        x = tf.nn.conv2d(x, kernel, strides=1, padding="VALID")
        return np.asarray(gamma * (x - mean) / np.sqrt(variance + block.get_layer(f"bn_{branch}").epsilon) + beta)

    below = x[:, ::stride, ::stride]
    residual = np.maximum(conv_bn(below, "branch2a"), 0)
    residual = np.maximum(conv_bn(residual, "branch2b", pad=1), 0)
    residual = conv_bn(residual, "branch2c")
    expected = np.maximum(residual + (conv_bn(below, "branch1") if projection else below), 0)
    assert (expected == 0).any() and (expected > 0).any()
    # Sums of a hundred products of order 1 to 100.
    np.testing.assert_allclose(block(x, training=False), expected, rtol=1e-4, atol=1e-3)
    assert bool([a for a in block.layers if a.name == "res_branch1"]) == projection


def test_saved_model_gives_equal_predictions(tmp_path):
    # The parts on top are as small as they get: writing and reading weights is what costs time here.
    config = ModelConfig(classes=["a"], input_size=[64, 64], backbone=BackboneConfig("resnet101"), width=8)
    model = build_model(config)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    image = np.random.default_rng(3).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    expected = model(image)
    for name, value in again(image).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
