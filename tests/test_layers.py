import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from refinedet_tf import layers


@pytest.mark.parametrize("scale", [10.0, 8.0])
def test_l2_normalization_divides_by_the_length_over_channels_and_scales_each(scale):
    features = np.random.default_rng(0).normal(0, 3, (2, 3, 4, 512)).astype(np.float32)
    layer = layers.L2Normalization(scale)
    normalized = layer(features)
    expected = scale * features / np.sqrt((features.astype(np.float64) ** 2).sum(axis=-1, keepdims=True) + 1e-10)
    np.testing.assert_allclose(normalized, expected, rtol=1e-5)
    assert [tuple(weight.shape) for weight in layer.trainable_weights] == [(512,)]

    channels = np.linspace(-1, 1, 512, dtype=np.float32)
    layer.set_weights([channels])
    np.testing.assert_allclose(layer(features), expected / scale * channels, rtol=1e-5, atol=1e-9)


def test_l2_normalization_of_nothing_is_finite_and_so_is_its_gradient():
    layer = layers.L2Normalization(10.0)
    features = tf.zeros([1, 2, 2, 8])
    with tf.GradientTape() as tape:
        tape.watch(features)
        normalized = layer(features)
    np.testing.assert_array_equal(normalized, features)
    gradient = tape.gradient(normalized, features)
    np.testing.assert_allclose(gradient, tf.fill(gradient.shape, 10.0 / np.sqrt(1e-10)), rtol=1e-5)


def test_l2_epsilon_stands_inside_the_root():
    tiny = np.zeros([1, 1, 1, 4], np.float32)
    tiny[..., 0] = 1e-5  # its square is the epsilon
    np.testing.assert_allclose(layers.L2Normalization(1.0)(tiny)[0, 0, 0, 0], 1 / np.sqrt(2), rtol=1e-5)


def test_l2_normalization_in_half_precision_sums_its_squares_in_float32():
    features = np.full([1, 1, 1, 512], 200.0, np.float16)  # the sum of squares is 20 million
    normalized = layers.L2Normalization(10.0, dtype="mixed_float16")(features)
    assert normalized.dtype == tf.float16
    np.testing.assert_allclose(normalized, np.full_like(features, 10 / np.sqrt(512)), rtol=2e-3)  # float16


def test_preprocessing_of_the_caffe_networks_is_bgr_minus_mean():
    pixels = np.array([[[[255.0, 128.0, 10.0]]]], np.float32)
    normalized = layers.Preprocessing("caffe")(pixels)
    np.testing.assert_array_equal(normalized, [[[[10 - 104, 128 - 117, 255 - 123]]]])


def test_preprocessing_of_the_mobilenets_is_rgb_from_minus_one_to_one():
    pixels = np.array([[[[0.0, 127.5, 255.0]]]], np.float32)
    np.testing.assert_array_equal(layers.Preprocessing("tf")(pixels), [[[[-1, 0, 1]]]])


def test_preprocessing_of_torchvision_is_rgb_in_deviations_from_the_mean():
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    pixels = np.stack([255 * mean, 255 * (mean + deviation), [0, 255, 0]])[np.newaxis, np.newaxis]
    expected = np.stack([np.zeros(3), np.ones(3), (np.float32([0, 1, 0]) - mean) / deviation])
    np.testing.assert_allclose(layers.Preprocessing("torch")(pixels)[0, 0], expected, atol=1e-5)


def test_preprocessing_of_networks_that_do_it_themselves_is_none():
    pixels = np.array([[[[255.0, 0.0, 127.5]]]], np.float32)
    np.testing.assert_array_equal(layers.Preprocessing("none")(pixels), pixels)


def test_preprocessing_stays_float32_under_a_half_precision_policy():
    layer = layers.Preprocessing("caffe", dtype="mixed_bfloat16")
    pixels = np.full([1, 1, 1, 3], 100.25, np.float32)  # bfloat16 has no such number
    assert layer(pixels).dtype == tf.float32
    np.testing.assert_array_equal(layer(pixels), pixels - np.float32([104, 117, 123]))


def test_zero_offsets_are_four_for_each_anchor():
    layer = layers.ZeroOffsets()
    np.testing.assert_array_equal(layer(tf.ones([2, 7, 3])), np.zeros([2, 7, 4]))
    assert tuple(layer.compute_output_shape((None, 7, 3))) == (None, 7, 4)


def test_unknown_preprocessing_names_the_known_ones():
    with pytest.raises(ValueError, match="caffe, tf, torch, lite, none, not 'BGR'"):
        layers.Preprocessing("BGR")


@pytest.mark.parametrize(
    "layer",
    [layers.Preprocessing("caffe", name="a"), layers.L2Normalization(8.0, name="b")],
    ids=lambda x: x.name,
)
def test_layers_are_rebuilt_from_their_configuration(layer):
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    features = np.random.default_rng(1).uniform(0, 255, (1, 2, 2, 3)).astype(np.float32)
    np.testing.assert_array_equal(again(features), layer(features))


def assert_uniform(values, bound):
    """All of it and no more: the largest of n uniform values misses the bound by about bound / n."""
    assert values.size > 20000
    assert 0.999 * bound < np.abs(values).max() <= bound
    np.testing.assert_allclose(values.std(), bound / np.sqrt(3), rtol=0.02)


def test_convolutions_start_uniform_in_the_caffe_bound():
    model = graph(above=(2, 2, 48), features=(4, 4, 96), width=48)
    kernel, bias = model.get_layer("TL5_1").get_weights()
    assert kernel.shape == (3, 3, 96, 48)
    assert_uniform(kernel, np.sqrt(3 / (3 * 3 * 96)))
    assert not bias.any()


def test_deconvolutions_start_uniform_in_the_caffe_bound_which_counts_their_outputs():
    deconvolution = layers_of(graph(above=(2, 2, 64), features=(4, 4, 8), width=96))["P6-up"]
    kernel, bias = deconvolution.get_weights()
    assert kernel.shape == (2, 2, 96, 64)  # Keras stores outputs before inputs
    assert_uniform(kernel, np.sqrt(3 / (2 * 2 * 96)))
    assert not bias.any()


def graph(features, above=None, level=5, width=16, **options):
    """A transfer connection block as a model."""
    inputs = [keras.Input(features)] + ([keras.Input(above)] if above else [])
    options = {"separable": False, "batch_norm": False, **options}
    output = layers.transfer_connection_block(inputs[0], inputs[1] if above else None, level, width=width, **options)
    return keras.Model(inputs if above else inputs[0], output)


def layers_of(model):
    return {layer.name: layer for layer in model.layers}


def randomize(model, seed=0):
    """Random weights everywhere, biases too, so that nothing can hide behind a zero."""
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(0, 0.3, weight.shape) for weight in model.get_weights()])


def slow_conv(x, layer):
    kernel, bias = layer.get_weights()
    return tf.nn.conv2d(x, kernel, strides=1, padding=[[0, 0], [1, 1], [1, 1], [0, 0]]) + bias


def slow_deconv(x, layer):
    """Every input pixel writes its own 2 x 2 outputs."""
    kernel, bias = layer.get_weights()
    blocks = np.einsum("bijc,uvoc->biujvo", x, kernel)
    batch, height, _, width, _, channels = blocks.shape
    return blocks.reshape(batch, 2 * height, 2 * width, channels) + bias


def test_kinds_of_convolutions_are_given_by_name():
    with pytest.raises(TypeError, match="positional argument"):
        layers.conv3x3(4, "conv", True)


def test_top_block_rectifies_all_three_convolutions():
    model = graph((4, 6, 24), level=6)
    randomize(model)
    parts = layers_of(model)
    assert [name for name in parts if parts[name].weights] == ["TL6_1", "TL6_2", "P6"]
    x = np.random.default_rng(1).normal(size=(2, 4, 6, 24)).astype(np.float32)
    expected = tf.nn.relu(slow_conv(x, parts["TL6_1"]))
    expected = tf.nn.relu(slow_conv(expected, parts["TL6_2"]))
    expected = tf.nn.relu(slow_conv(expected, parts["P6"]))
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-4)  # values of up to a hundred


@pytest.mark.parametrize("level", [3, 4, 5])
def test_lower_blocks_rectify_the_sum_with_the_upsampled_block_above(level):
    model = graph((4, 6, 24), above=(2, 3, 16), level=level)
    randomize(model, seed=level)
    parts = layers_of(model)
    up = f"P{level + 1}-up"
    assert {name for name in parts if parts[name].weights} == {
        f"TL{level}_1",
        f"TL{level}_2",
        up,
        f"P{level}",
    }
    assert f"Elt{level}" in parts
    rng = np.random.default_rng(1)
    features, above = rng.normal(size=(2, 4, 6, 24)).astype(np.float32), rng.normal(size=(2, 2, 3, 16))
    expected = tf.nn.relu(slow_conv(features, parts[f"TL{level}_1"]))
    expected = slow_conv(expected, parts[f"TL{level}_2"])  # not rectified before the sum
    expected = tf.nn.relu(expected + slow_deconv(above, parts[up]))
    expected = tf.nn.relu(slow_conv(expected, parts[f"P{level}"]))
    np.testing.assert_allclose(model([features, above]), expected, rtol=1e-4, atol=1e-4)


def test_upsampling_by_resizing_repeats_every_value_and_has_no_weights():
    model = graph((4, 6, 24), above=(2, 3, 16), upsampling="resize")
    randomize(model)
    parts = layers_of(model)
    assert {name for name in parts if parts[name].weights} == {"TL5_1", "TL5_2", "P5"}
    rng = np.random.default_rng(1)
    features = rng.normal(size=(2, 4, 6, 24)).astype(np.float32)
    above = rng.normal(size=(2, 2, 3, 16)).astype(np.float32)
    expected = slow_conv(tf.nn.relu(slow_conv(features, parts["TL5_1"])), parts["TL5_2"])
    expected = tf.nn.relu(expected + above.repeat(2, axis=1).repeat(2, axis=2))
    expected = tf.nn.relu(slow_conv(expected, parts["P5"]))
    np.testing.assert_allclose(model([features, above]), expected, rtol=1e-4, atol=1e-4)


def test_batch_normalization_follows_every_convolution_and_replaces_its_bias():
    model = graph((4, 4, 8), above=(2, 2, 16), batch_norm=True)
    parts = layers_of(model)
    for name in ("TL5_1", "TL5_2", "P6-up", "P5"):
        assert len(parts[name].weights) == 1
        assert parts[f"{name}_bn"].input is parts[name].output
    assert parts["Elt5"].input[0] is parts["TL5_2_bn"].output
    assert parts["Elt5"].input[1] is parts["P6-up_bn"].output
    assert parts["TL5_2_bn"].epsilon == 1e-3 and parts["TL5_2_bn"].momentum == 0.99


def test_separable_blocks_have_depthwise_and_pointwise_convolutions_only():
    model = graph((4, 4, 8), above=(2, 2, 16), separable=True, batch_norm=True)
    convolutions = [layer for layer in model.layers if layer.weights and "bn" not in layer.name]
    kernels = {layer.name: layer.get_weights()[0].shape for layer in convolutions}
    assert kernels == {
        "TL5_1_depthwise": (3, 3, 8, 1),
        "TL5_1_pointwise": (1, 1, 8, 16),
        "TL5_2_depthwise": (3, 3, 16, 1),
        "TL5_2_pointwise": (1, 1, 16, 16),
        "P6-up": (2, 2, 16, 16),
        "P5_depthwise": (3, 3, 16, 1),
        "P5_pointwise": (1, 1, 16, 16),
    }


def test_head_gives_rows_then_columns_then_anchors():
    """A kernel that only looks at its own pixel, with channel numbers as biases."""
    inputs = keras.Input((3, 5, 1))
    model = keras.Model(inputs, layers.prediction_head(inputs, 4, "head", separable=False))
    kernel = np.zeros([3, 3, 1, 12], np.float32)
    kernel[1, 1] = 100.0
    model.set_weights([kernel, np.arange(12, dtype=np.float32)])
    pixels = np.arange(15, dtype=np.float32).reshape(1, 3, 5, 1)
    values = model(pixels).numpy()
    assert values.shape == (1, 45, 4)
    for row in range(3):
        for column in range(5):
            for anchor in range(3):
                expected = 100 * (row * 5 + column) + anchor * 4 + np.arange(4)
                np.testing.assert_array_equal(values[0, (row * 5 + column) * 3 + anchor], expected)


def test_levels_are_joined_in_order_as_float32():
    joined = layers.join_levels([tf.ones([2, 3, 4], tf.bfloat16), 2 * tf.ones([2, 1, 4], tf.bfloat16)], "joined")
    assert joined.dtype == tf.float32
    np.testing.assert_array_equal(joined[0, :, 0], [1, 1, 1, 2])
