import csv

import numpy as np
import pytest
import tensorflow as tf

from refinedet_tf.serving.tensor_ranges import layer_of_tensor, measure_tensor_ranges, write_tensor_ranges


@pytest.fixture(scope="module")
def images():
    """Uniform in 0..1."""
    return np.random.default_rng(0).uniform(size=(20, 1, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def ranges(images):
    """Of a layer that changes nothing, and of one with a channel a thousand times as wide as the others."""

    @tf.function(input_signature=[tf.TensorSpec([1, 16, 16, 3])])
    def network(images):
        with tf.name_scope("same"):
            same = tf.nn.conv2d(images, tf.eye(3)[None, None], 1, "SAME")
        with tf.name_scope("uneven"):
            uneven = tf.nn.conv2d(same, tf.linalg.diag([1000.0, 1.0, 1.0])[None, None], 1, "SAME")
        return tf.nn.max_pool(uneven, 16, 1, "VALID")

    function = network.get_concrete_function()

    def convert(quantize):
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
        if quantize:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([image] for image in images)
        return converter.convert()

    return measure_tensor_ranges(convert(False), convert(True), images, ["same", "uneven"])


def test_precision_is_that_of_eight_bits(ranges):
    # The variance of values uniform in 0..1 is 1 / 12, that of their rounding errors step^2 / 12.
    same = ranges[0]
    assert same.layer == "same"
    assert same.step == pytest.approx(1 / 255, rel=0.01)
    assert same.precision == pytest.approx(20 * np.log10(255), abs=0.3)
    assert (same.low, same.high) == pytest.approx((0, 1), abs=0.01)
    assert (same.float_low, same.float_high) == pytest.approx((0, 1), abs=0.01)


def test_the_wide_channel_decides_the_step_of_all(ranges):
    uneven = ranges[1]
    assert uneven.layer == "uneven"
    assert uneven.step == pytest.approx(1000 / 255, rel=0.01)
    assert uneven.float_high == pytest.approx(1000, rel=0.01)


def test_ranges_are_written_as_csv(ranges, tmp_path):
    write_tensor_ranges(ranges, tmp_path / "ranges.csv")
    with open(tmp_path / "ranges.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == [entry.layer for entry in ranges]
    assert [float(row["precision"]) for row in rows] == [entry.precision for entry in ranges]


@pytest.mark.parametrize(
    "tensor, layer",
    [
        ("refinedet_1/conv_dw_1_bn_1/add;refinedet_1/conv_dw_1_1/depthwise", "conv_dw_1"),
        ("refinedet_1/P3_bn_1/add_1;refinedet_1/P3_pointwise_1/convolution", "P3_pointwise"),
        ("refinedet/conv1/Relu6", "conv1"),
        # TensorFlow 2.15 names a layer with an equal constant, too.
        ("refinedet/TL3_1_bn/FusedBatchNormV3;refinedet/P3/Conv2D;refinedet/TL3_1/Conv2D", "TL3_1"),
        ("refinedet/TL3_1/BiasAdd;refinedet/P3/Conv2D;refinedet/TL3_1/Conv2D;refinedet/P3/BiasAdd/resource", "TL3_1"),
        ("refinedet/conv_dw_1_bn/FusedBatchNormV3;refinedet/P3/Conv2D;refinedet/conv_dw_1/depthwise", "conv_dw_1"),
        ("refinedet_1/TL3_1_1/convolution", "TL3_1"),
        ("StatefulPartitionedCall:0", None),
    ],
)
def test_the_layer_is_found_in_the_name_of_a_tensor(tensor, layer):
    layers = ["conv1", "conv1_bn", "conv_dw_1", "conv_dw_1_bn", "P3", "P3_bn", "P3_pointwise", "TL3_1", "TL3_1_bn"]
    assert layer_of_tensor(tensor, layers) == layer
