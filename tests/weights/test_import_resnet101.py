"""ResNet-101 from Caffe files against the network in plain functions."""

import re

import numpy as np
import pytest

from refinedet_tf.config import BackboneConfig, ModelConfig
from refinedet_tf.errors import WeightFileError
from refinedet_tf.model import RefineDet
from refinedet_tf.weights import load_weights
from refinedet_tf.weights.assignment import is_detector_layer, named_variables
from tests.weights.caffe_writer import write_caffemodel
from tests.weights.random_nets import random_resnet101
from tests.weights.reference_graph import refinedet, to_bgr
from tests.weights.test_import_vgg16 import assert_same_outputs, assert_saved_and_exported, draw_image

CLASSES = 21


@pytest.fixture(scope="module")
def net():
    return random_resnet101(2, CLASSES)


@pytest.fixture(scope="module")
def model():
    return RefineDet(
        ModelConfig(
            classes=[f"class {i}" for i in range(1, CLASSES)],
            backbone=BackboneConfig("resnet101"),
            batch_norm=True,
            head_blocks=True,
        )
    )


@pytest.fixture(scope="module")
def caffe_file(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("caffe") / "final"
    write_caffemodel(path, net)
    return path


def trunk_of(net):
    trunk = re.compile(r"(conv1|(bn_|scale_)conv1|(res|bn|scale)[2-5]\w+_branch\w+)")
    return {name: blobs for name, blobs in net.items() if trunk.fullmatch(name) and "inter" not in name}


def test_the_network_of_the_test_has_the_published_layers(net):
    convolutions = [name for name, blobs in net.items() if blobs[0].ndim == 4]
    assert sum("-up" in name for name in convolutions) == 3
    assert len(convolutions) == 168 + 3
    assert sum(len(blobs) == 3 for blobs in net.values()) == 155


def test_caffe_weights_give_the_outputs_of_the_network_at_320_also_saved_and_exported(model, net, caffe_file, tmp_path):
    report = load_weights(model, caffe_file)
    assert report.family == "RefineDet on ResNet-101 (Caffe)"
    assert len(report.loaded) == sum(map(len, net.values())) - 155 and not report.kept  # no factors
    assert set(report.used) == set(net) and not report.unused
    assert report.transform_counts() == {
        "transposed": 171,
        "divided by Caffe's moving average factor": 2 * 155,
        "copied": 2 * 155 + 16,  # scales and shifts, and the biases of the heads
    }
    image = draw_image(320)
    expected = refinedet(to_bgr(image), net, CLASSES)
    assert_same_outputs(model(image[None]), expected)
    assert_saved_and_exported(model, image, expected, tmp_path)


def test_the_classification_network_fills_the_trunk_and_nothing_else(model, net, tmp_path):
    variables = named_variables(model)
    for variable in variables.values():
        variable.assign(np.full(variable.shape, 7, np.float32))
    trunk = trunk_of(net)
    trunk["bn_conv1"][2][:] = 0  # statistics that were never gathered
    write_caffemodel(tmp_path / "msra", {**trunk, "fc1000": [np.zeros((1000, 2048), np.float32)]})
    report = load_weights(model, tmp_path / "msra")
    assert report.family == "classification network ResNet-101 (Caffe)"
    assert report.unused == ["fc1000"] and set(report.used) == set(trunk)
    assert report.loaded == [name for name in variables if not is_detector_layer(name)]
    assert len(report.loaded) == 104 * 5
    assert all((variables[name].numpy() == 7).all() for name in report.kept)
    assert (variables["bn_conv1/moving_variance"].numpy() == 0).all()
    mean, _, factor = trunk["bn4b22_branch2b"]
    np.testing.assert_allclose(variables["bn4b22_branch2b/moving_mean"], mean / factor, rtol=1e-6)
    np.testing.assert_array_equal(variables["bn4b22_branch2b/gamma"], trunk["scale4b22_branch2b"][0])


@pytest.mark.parametrize(
    "change, message",
    [
        # Some residual networks have convolutions with biases, or normalizations without Scale layers.
        ({"res3a_branch1": 1}, "'res3a_branch1' has 2 arrays in the file, not 1: weights"),
        ({"scale3a_branch1": -1}, "'bn3a_branch1' has 1 arrays in the file, not 2: scale and shift"),
        ({"bn3a_branch1": -1}, r"'bn3a_branch1': a BatchNorm layer has blobs of shape \(C,\), \(C,\) and \(1,\), not"),
    ],
)
def test_layers_with_more_or_fewer_blobs_are_named(model, net, change, message, tmp_path):
    ((name, difference),) = change.items()
    blobs = [*net[name], np.zeros(len(net[name][0]), np.float32)] if difference > 0 else net[name][:difference]
    write_caffemodel(tmp_path / "file", {**trunk_of(net), name: blobs})
    before = model.get_layer("conv1").kernel.numpy()
    with pytest.raises(WeightFileError, match=message):
        load_weights(model, tmp_path / "file")
    np.testing.assert_array_equal(model.get_layer("conv1").kernel, before)


def test_other_depths_and_other_backbones_are_refused(model, net, tmp_path):
    trunk = trunk_of(net)
    write_caffemodel(tmp_path / "101", trunk)
    with pytest.raises(WeightFileError, match=r"set model\.backbone\.name=resnet101"):
        load_weights(RefineDet(ModelConfig(classes=["a"], input_size=[64, 64])), tmp_path / "101")
    write_caffemodel(tmp_path / "152", {**trunk, "res4b23_branch2a": trunk["res4b22_branch2a"]})
    with pytest.raises(WeightFileError, match="neither a VGG-16 nor a ResNet-101"):
        load_weights(model, tmp_path / "152")
