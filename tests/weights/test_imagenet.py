"""Weights of keras.applications: networks with random weights stand for the downloads."""

import types

import numpy as np
import pytest
from tensorflow import keras

from refinedet_tf.config import BackboneConfig, ModelConfig
from refinedet_tf.errors import WeightFileError
from refinedet_tf.model import RefineDet
from refinedet_tf.weights import load_weights
from refinedet_tf.weights.assignment import is_detector_layer, named_variables

RANDOM = np.random.default_rng(6)


def randomize(network):
    """Statistics and biases are 0 and 1 in a fresh network, which would hide a mix-up."""
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([RANDOM.uniform(0.5, 1.0, weight.shape) for weight in layer.get_weights()])
        elif len(layer.get_weights()) == 2:
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel, RANDOM.normal(0, 0.1, bias.shape)])
    return network


def build(name, size=64, **kwargs):
    return RefineDet(ModelConfig(classes=["a"], input_size=[size, size], backbone=BackboneConfig(name, **kwargs)))


def serve(monkeypatch, name, network):
    """Lets the constructor of keras.applications give a network that is there already."""
    asked = []
    monkeypatch.setattr(keras.applications, name, lambda **kwargs: asked.append(kwargs) or network)
    return asked


def test_vgg16_becomes_the_reduced_network(monkeypatch):
    # Of the fully connected layers only numbers matter: the number of the input plus a share for the output.
    network = keras.applications.VGG16(weights=None, include_top=False)
    top = [("fc1", 25088, 4096), ("fc2", 4096, 4096), ("predictions", 4096, 10)]
    x = inputs = keras.Input([25088])
    for name, _, units in top:
        x = keras.layers.Dense(units, kernel_initializer="zeros", name=name)(x)
    classifier = keras.Model(inputs, x)
    outputs = np.arange(4096, dtype=np.float32) / 4096
    for name, rows, _ in top[:2]:
        kernel = np.add(np.arange(rows, dtype=np.float32)[:, None], outputs if name == "fc2" else 0, dtype=np.float32)
        kernel = np.broadcast_to(kernel, (rows, 4096)).copy()
        kernel[:, 1::2] = -1  # outputs that nobody takes
        classifier.get_layer(name).set_weights([kernel, outputs])

    whole = types.SimpleNamespace(layers=[*network.layers, *classifier.layers])
    asked = serve(monkeypatch, "VGG16", whole)
    model = build("vgg16")
    report = load_weights(model, "imagenet")
    assert asked[0]["weights"] == "imagenet" and asked[0]["include_top"]
    variables = {name: variable.numpy() for name, variable in named_variables(model).items()}
    for row, column, channel, output in [(0, 0, 0, 0), (1, 2, 100, 7), (2, 1, 511, 1023)]:
        expected = (3 * row * 7 + 3 * column) * 512 + channel
        assert variables["fc6/kernel"][row, column, channel, output] == expected
        assert variables["fc7/kernel"][0, 0, channel, output] == np.float32(4 * channel + output / 1024)
    for layer in ("fc6", "fc7"):
        np.testing.assert_array_equal(variables[f"{layer}/bias"], np.arange(1024) / 1024)
    for ours, theirs in (("conv1_1", "block1_conv1"), ("conv3_2", "block3_conv2"), ("conv5_3", "block5_conv3")):
        np.testing.assert_array_equal(variables[f"{ours}/kernel"], network.get_layer(theirs).get_weights()[0])
    assert len(report.loaded) == 30 and all(map(is_detector_layer, report.kept))
    assert report.unused == ["predictions"]
    assert report.transform_counts() == {"copied": 26, "subsampled from ImageNet's fc6 and fc7": 4}
    assert any("103.939" in note for note in report.notes)


def test_resnet101_computes_the_same_behind_pool1(monkeypatch):
    network = randomize(keras.applications.ResNet101(weights=None, include_top=False))
    serve(monkeypatch, "ResNet101", network)
    model = build("resnet101")
    report = load_weights(model, "imagenet")
    assert len(report.loaded) == 104 * 5 and not report.unused
    assert all(map(is_detector_layer, report.kept))
    assert report.transform_counts() == {
        "copied": 104 * 3, "bias of the convolution folded in": 104, "epsilon 1.001e-5 made 1e-5": 104
    }  # fmt: skip
    assert any("pool1" in note for note in report.notes)
    # From the first map of stage 2 on, and the first convolution with its batch normalization.
    for (ours, theirs), size in (
        ((("pool1", "res5c_relu"), ("pool1_pool", "conv5_block3_out")), (1, 16, 16, 64)),
        ((("conv1", "conv1_relu"), ("conv1_conv", "conv1_relu")), (1, 70, 70, 3)),
    ):
        x = RANDOM.uniform(0, 1, size).astype(np.float32)
        results = []
        for whole, (first, last) in ((model, ours), (network, theirs)):
            start = whole.get_layer(first)
            tensor = start.output if "pool" in first else start.input
            results.append(keras.Model(tensor, whole.get_layer(last).output)(x).numpy())
        assert results[1].std() > 0
        np.testing.assert_allclose(*results, rtol=0, atol=1e-4 * np.abs(results[1]).max())


@pytest.mark.parametrize(
    "backbone, constructor, options",
    [
        ("mobilenet_v1", "MobileNet", {"alpha": 0.25}),
        ("mobilenet_v2", "MobileNetV2", {"alpha": 0.35}),
        ("mobilenet_v3_small", "MobileNetV3Small", {}),
    ],
)
@pytest.mark.parametrize("include_top", [False, True])
def test_mobilenets_load_from_a_local_file_with_and_without_classifier(
    backbone, constructor, options, include_top, tmp_path
):
    network = randomize(getattr(keras.applications, constructor)(weights=None, include_top=include_top, **options))
    network.save(tmp_path / "downloaded.h5")
    model = build(backbone, **options)
    report = load_weights(model, tmp_path / "downloaded.h5")
    assert report.family == f"ImageNet weights of keras.applications.{constructor}"
    source = named_variables(network)
    assert report.loaded == [name for name in named_variables(model) if name in source]
    assert all(map(is_detector_layer, report.kept))
    for name in report.loaded:
        np.testing.assert_array_equal(named_variables(model)[name], source[name], err_msg=name)


def test_what_keras_applications_cannot_give_is_said(monkeypatch, tmp_path):
    def fail(**kwargs):
        raise Exception("URL fetch failure")  # what Keras raises

    model = build("mobilenet_v1", alpha=0.25)
    monkeypatch.setattr(keras.applications, "MobileNet", fail)
    with pytest.raises(WeightFileError, match=r"MobileNet \(alpha 0\.25\) cannot be downloaded.*URL fetch failure"):
        load_weights(model, "imagenet")
    monkeypatch.undo()
    keras.applications.MobileNet(weights=None, alpha=0.5).save(tmp_path / "half.h5")
    with pytest.raises(WeightFileError, match=r"half\.h5 does not hold the weights of MobileNet \(alpha 0\.25\)"):
        load_weights(model, tmp_path / "half.h5")
