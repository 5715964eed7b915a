"""The level at stride 64, and separable convolutions, against the same arithmetic in NumPy."""

import numpy as np
import pytest
from tensorflow import keras

from refinedet_tf.backbones.extra_level import extra_level
from refinedet_tf.layers import conv3x3

RANDOM = np.random.default_rng(3)


def randomized(inputs, outputs):
    """A model whose batch normalization has scales, shifts and statistics that change signs and sizes."""
    model = keras.Model(inputs, outputs)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            layer.set_weights(
                [
                    RANDOM.uniform(-1.5, 1.5, gamma.shape),
                    RANDOM.normal(0, 0.5, beta.shape),
                    RANDOM.normal(0, 0.3, mean.shape),
                    RANDOM.uniform(0.5, 2, variance.shape),
                ]
            )
    return model


def normalize(x, layer):
    gamma, beta, mean, variance = layer.get_weights()
    return gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta


def relu(x):
    return np.maximum(x, 0)


def pointwise(x, layer):
    kernel, *bias = layer.get_weights()
    return x @ kernel[0, 0] + (bias[0] if bias else 0)


def depthwise(x, layer, stride):
    """3x3 with TensorFlow's padding `same`, which at stride 2 and even sides pads only at the bottom and right."""
    kernel = layer.get_weights()[0][..., 0]
    before = 0 if stride == 2 else 1
    padded = np.pad(x, ((0, 0), (before, 1), (before, 1), (0, 0)))
    height, width = x.shape[1] // stride, x.shape[2] // stride
    return sum(
        padded[:, row : row + stride * height : stride, column : column + stride * width : stride] * kernel[row, column]
        for row in range(3)
        for column in range(3)
    )


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_the_extra_level_is_three_convolutions_each_normalized_then_rectified(alpha):
    inputs = keras.Input((4, 6, 5))
    model = randomized(inputs, extra_level(inputs, alpha))
    layers = {layer.name: layer for layer in model.layers}
    x = RANDOM.normal(size=(2, 4, 6, 5)).astype(np.float32)

    squeezed = relu(normalize(pointwise(x, layers["extra_1"]), layers["extra_1_bn"]))
    assert squeezed.shape == (2, 4, 6, 256 * alpha)
    halved = depthwise(squeezed, layers["extra_2_depthwise"], stride=2)
    halved = relu(normalize(halved, layers["extra_2_depthwise_bn"]))
    expected = relu(normalize(pointwise(halved, layers["extra_2"]), layers["extra_2_bn"]))
    assert expected.shape == (2, 2, 3, 512 * alpha)
    np.testing.assert_allclose(model(x), expected, rtol=1e-3, atol=1e-4)


def test_the_extra_level_has_512_channels_unless_told_otherwise():
    assert extra_level(keras.Input((4, 6, 5))).shape == (None, 2, 3, 512)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_separable_convolution_is_depthwise_normalized_rectified_then_pointwise(batch_norm):
    inputs = keras.Input((5, 7, 6))
    model = randomized(inputs, conv3x3(4, "conv", separable=True, batch_norm=batch_norm)(inputs))
    layers = {layer.name: layer for layer in model.layers}
    x = RANDOM.normal(size=(2, 5, 7, 6)).astype(np.float32)

    inner = relu(normalize(depthwise(x, layers["conv_depthwise"], stride=1), layers["conv_depthwise_bn"]))
    expected = pointwise(inner, layers["conv_pointwise"])
    if batch_norm:
        expected = normalize(expected, layers["conv_bn"])
    assert (expected < 0).any()  # nothing rectifies the result
    np.testing.assert_allclose(model(x), expected, rtol=1e-3, atol=1e-4)


def test_initial_kernels_of_a_separable_convolution_are_he_normal_and_caffes_xavier():
    inputs = keras.Input((3, 3, 400))
    model = keras.Model(inputs, conv3x3(300, "conv", separable=True)(inputs))
    initializer = model.get_layer("conv_depthwise").depthwise_initializer
    assert isinstance(initializer, keras.initializers.HeNormal)
    # Uniform in +-sqrt(3 / fan_in).
    kernel = model.get_layer("conv_pointwise").get_weights()[0]
    assert 0.99 * np.sqrt(3 / 400) < np.abs(kernel).max() <= np.sqrt(3 / 400) + 1e-7
