import re

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from refinedet_tf.backbones import vgg16
from refinedet_tf.config import BackboneConfig, ModelConfig
from refinedet_tf.model import build_model
from refinedet_tf.training.optimizers import CaffeSGD


@pytest.fixture(scope="module")
def voc_model():
    return build_model(ModelConfig(classes=[f"class {index}" for index in range(20)]))


def parameters(model, *prefixes):
    """Of layers; Keras 2 counts the metrics among the model's."""
    return sum(layer.count_params() for layer in model.layers if layer.name.startswith(prefixes))


def test_parameters_of_each_part_are_those_of_the_original(voc_model):
    trunk = [f"conv{stage}_" for stage in range(1, 6)] + ["fc6", "fc7"]
    assert parameters(voc_model, *trunk) - parameters(voc_model, "conv4_3_norm", "conv5_3_norm") == 20_483_904
    assert parameters(voc_model, "conv6_") == 1_442_560
    assert parameters(voc_model, "TL") == 8_259_584
    assert sum(voc_model.get_layer(f"P{level}").count_params() for level in (3, 4, 5, 6)) == 2_360_320
    assert sum(voc_model.get_layer(f"P{level}-up").count_params() for level in (4, 5, 6)) == 787_200
    assert parameters(voc_model, "conv4_3_norm", "conv5_3_norm") == 1_024
    assert parameters(voc_model, *(f"arm{level}_offsets" for level in (3, 4, 5, 6))) == 276_528
    assert parameters(voc_model, *(f"arm{level}_objectness" for level in (3, 4, 5, 6))) == 138_264
    assert parameters(voc_model, *(f"odm{level}_offsets" for level in (3, 4, 5, 6))) == 110_640
    assert parameters(voc_model, *(f"odm{level}_classes" for level in (3, 4, 5, 6))) == 580_860
    assert parameters(voc_model, "") == 34_440_884


def test_summary_names_the_layers_as_the_paper_does(voc_model):
    lines = []
    voc_model.summary(print_fn=lambda text, **_: lines.append(text))
    text = "\n".join(lines)
    stages = [f"conv{stage}_{index}" for stage, count in enumerate((2, 2, 3, 3, 3), 1) for index in range(1, count + 1)]
    blocks = [name for k in (3, 4, 5, 6) for name in (f"TL{k}_1", f"TL{k}_2", f"P{k}")]
    blocks += [name for k in (3, 4, 5) for name in (f"Elt{k}", f"P{k + 1}-up")]
    kinds = ("arm{}_objectness", "arm{}_offsets", "odm{}_classes", "odm{}_offsets")
    heads = [kind.format(k) for kind in kinds for k in (3, 4, 5, 6)]
    names = [*stages, "fc6", "fc7", "conv6_1", "conv6_2", "conv4_3_norm", "conv5_3_norm", *blocks, *heads]
    for name in names:
        assert re.search(rf"(?<![\w-]){re.escape(name)} ", text), name
    assert [layer.name for layer in voc_model.layers if layer.weights and layer.name not in names] == []


def test_predictions_of_the_released_size_are_one_for_each_anchor(voc_model):
    shapes = {name: output.shape for name, output in voc_model.output.items()}
    assert shapes == {
        "arm_objectness": (None, 6375, 2),
        "arm_offsets": (None, 6375, 4),
        "odm_classes": (None, 6375, 21),
        "odm_offsets": (None, 6375, 4),
    }
    assert voc_model.anchors.shape == (6375, 4)


@pytest.mark.parametrize(
    ("classes", "size", "count", "anchors"),
    [(20, 512, 34_440_884, 16320), (80, 320, 36_100_484, 6375), (80, 512, 36_100_484, 16320)],
)
def test_parameters_depend_on_the_classes_and_not_on_the_size(classes, size, count, anchors):
    model = build_model(ModelConfig(classes=[f"class {index}" for index in range(classes)], input_size=[size, size]))
    assert parameters(model, "") == count
    assert model.output["odm_classes"].shape == (None, anchors, 1 + classes)


@pytest.fixture(scope="module")
def backbone():
    """The trunk with random biases too, and every feature map."""
    inputs = keras.Input((64, 64, 3))
    model = keras.Model(inputs, vgg16.build(inputs, BackboneConfig("vgg16")))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel, rng.normal(0, 0.1, bias.shape)])
    return model


def run(backbone, *names):
    outputs = [backbone.get_layer(name).output for name in names]
    image = np.random.default_rng(1).uniform(-120, 120, (1, 64, 64, 3)).astype(np.float32)
    return keras.Model(backbone.input, outputs)(image)


def test_maps_have_the_strides_and_channels_of_the_paper(backbone):
    assert [tuple(x.shape[1:]) for x in backbone.output] == [
        (8, 8, 512),
        (4, 4, 512),
        (2, 2, 1024),
        (1, 1, 512),
    ]


def test_conv6_2_pads_symmetrically_as_in_caffe(backbone):
    """Output (i, j) is centred on pixel (2i, 2j); with Keras's `same` it is not."""
    below = np.random.default_rng(2).normal(size=(1, 4, 4, 256)).astype(np.float32)
    padding, conv = backbone.get_layer("conv6_2_padding"), backbone.get_layer("conv6_2")
    kernel, bias = conv.get_weights()
    padded = np.pad(below, [(0, 0), (1, 1), (1, 1), (0, 0)])
    expected = np.zeros([1, 2, 2, 512])
    for row in range(2):
        for column in range(2):
            window = padded[0, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            expected[0, row, column] = np.maximum(np.einsum("uvc,uvco->o", window, kernel) + bias, 0)
    np.testing.assert_allclose(conv(padding(below)), expected, rtol=1e-4, atol=1e-4)
    same = tf.nn.relu(tf.nn.conv2d(below, kernel, strides=2, padding="SAME") + bias)
    assert np.abs(same - expected).max() > 0.1
    assert backbone.get_layer("conv6_2_padding").input is backbone.get_layer("conv6_1").output


def test_fc6_looks_at_every_third_pixel(backbone):
    conv = backbone.get_layer("fc6")
    kernel, bias = conv.get_weights()
    below = np.zeros([1, 9, 9, 512], np.float32)
    below[0, 4, 4] = np.random.default_rng(3).uniform(0, 1, 512)
    expected = np.tile(bias, (9, 9, 1))
    for u in range(3):
        for v in range(3):
            expected[4 + 3 * (1 - u), 4 + 3 * (1 - v)] += below[0, 4, 4] @ kernel[u, v]
    np.testing.assert_allclose(conv(below)[0], np.maximum(expected, 0), rtol=1e-4, atol=1e-4)


def test_trunk_continues_from_the_maps_before_their_normalization(backbone):
    conv4_3, pool4, norm4, conv5_3, pool5, norm5 = run(
        backbone, "conv4_3", "pool4", "conv4_3_norm", "conv5_3", "pool5", "conv5_3_norm"
    )
    for features, pooled in ((conv4_3, pool4), (conv5_3, pool5)):
        np.testing.assert_array_equal(tf.nn.max_pool2d(features, 2, 2, "VALID"), pooled)
    for features, normalized, scale in ((conv4_3, norm4, 10), (conv5_3, norm5, 8)):
        length = np.sqrt(np.square(features, dtype=np.float64).sum(axis=-1, keepdims=True) + 1e-10)
        np.testing.assert_allclose(normalized, scale * features / length, rtol=1e-4, atol=1e-6)


def test_every_convolution_is_rectified(backbone):
    convolutions = [layer for layer in backbone.layers if isinstance(layer, keras.layers.Conv2D)]
    assert len(convolutions) == 13 + 2 + 2
    assert all(layer.activation is keras.activations.relu and layer.use_bias for layer in convolutions)


def test_kernels_start_uniform_in_the_caffe_bound_and_biases_at_zero(voc_model):
    for layer in voc_model.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Conv2DTranspose):
            kernel, bias = layer.get_weights()
            # Of a deconvolution, too, as Keras stores outputs before inputs and Caffe counts the outputs.
            bound = np.sqrt(3 / np.prod(kernel.shape[:3]))
            assert 0.98 * bound < np.abs(kernel).max() <= np.float32(bound), layer.name
            assert abs(kernel.std() - bound / np.sqrt(3)) < 0.03 * bound, layer.name
            assert not bias.any()
    for name, scale in (("conv4_3_norm", 10), ("conv5_3_norm", 8)):
        np.testing.assert_array_equal(voc_model.get_layer(name).get_weights()[0], np.full(512, scale))


def test_biases_learn_twice_as_fast_and_alone_do_not_decay():
    inputs = keras.Input((64, 64, 3))
    x = vgg16.build(inputs, BackboneConfig("vgg16"))
    model = keras.Model(inputs, [keras.layers.BatchNormalization()(x[0]), *x[1:]])
    before = model.get_weights()
    optimizer = CaffeSGD(0.1, momentum=0.9, l2_decay=0.5)
    optimizer.apply_gradients([(tf.ones_like(variable), variable) for variable in model.trainable_variables])
    biases = 0
    for variable, old, new in zip(model.weights, before, model.get_weights(), strict=True):
        name = variable.name.split("/")[-1].split(":")[0]
        if name.startswith("moving"):
            expected = old
        elif name == "bias":
            biases += 1
            expected = old - 0.1 * 2
        else:  # also the scale of the normalized maps, and scale and shift of batch normalization
            expected = old - 0.1 * (1 + 0.5 * old)
        np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-6, err_msg=name)
    assert biases == 17
