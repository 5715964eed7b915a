"""Random weights as Caffe and PyTorch files, through the importers, against the network in plain NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from refinedet_tf.config import ModelConfig
from refinedet_tf.model import RefineDet
from refinedet_tf.weights import load_model, load_weights
from refinedet_tf.weights.assign import named_variables
from tests.weights.caffe_writer import write_caffemodel
from tests.weights.pytorch_writer import write_checkpoint
from tests.weights.random_nets import VGG16_TRUNK, as_state_dict, random_vgg16
from tests.weights.reference_graph import refinedet, to_bgr, to_rgb

CLASSES = 21
OUTPUTS = ("arm_objectness", "arm_offsets", "odm_classes", "odm_offsets")


def config(size=320):
    return ModelConfig(classes=[f"class {i}" for i in range(1, CLASSES)], input_size=[size, size])


def draw_image(size):
    """Pixels with some structure, so that neighbours are alike as in photos."""
    coarse = np.random.default_rng(size).uniform(0, 255, (size // 16, size // 16, 3))
    return np.round(np.kron(coarse, np.ones((16, 16, 1)))).astype(np.float32)


def assert_same_outputs(outputs, expected, tolerance=1e-4):
    for name in OUTPUTS:
        spread = expected[name].std()
        assert np.isfinite(spread) and spread > 1e-3, name
        difference = np.abs(np.asarray(outputs[name][0]) - expected[name]).max()
        assert difference < tolerance * np.abs(expected[name]).max(), name


@pytest.fixture(scope="module")
def net():
    return random_vgg16(1, CLASSES)


@pytest.fixture(scope="module")
def caffe_file(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("caffe") / "final"  # the name tells nothing
    write_caffemodel(path, {"data": [], **net, "pool5": []})
    return path


@pytest.fixture(scope="module")
def model():
    return RefineDet(config())


@pytest.fixture(scope="module")
def caffe_report(model, caffe_file):
    return load_weights(model, caffe_file)


@pytest.fixture(scope="module")
def expected(net):
    return refinedet(to_bgr(draw_image(320)), net, CLASSES)


def test_caffe_weights_give_the_outputs_of_the_network_at_320(model, caffe_report, expected):
    assert_same_outputs(model(draw_image(320)[None]), expected)


def test_the_comparison_sees_a_wrong_channel_order(model, caffe_report, expected):
    with pytest.raises(AssertionError):
        assert_same_outputs(model(draw_image(320)[None, :, :, ::-1]), expected)


def test_caffe_weights_give_the_outputs_of_the_network_at_512(net, caffe_file):
    model = RefineDet(config(512))
    load_weights(model, caffe_file)
    image = draw_image(512)
    assert_same_outputs(model(image[None]), refinedet(to_bgr(image), net, CLASSES))


def test_every_layer_of_the_caffe_file_is_used_and_every_variable_loaded(model, net, caffe_report):
    assert caffe_report.family == "RefineDet on VGG-16 (Caffe)"
    assert len(caffe_report.loaded) == len(model.variables) and not caffe_report.kept
    assert set(caffe_report.used) == set(net) and not caffe_report.unused
    kernels, scales = sum(len(blobs) == 2 for blobs in net.values()), 2
    assert caffe_report.transform_counts() == {"transposed": kernels, "copied": kernels + scales}


def test_a_saved_model_and_its_export_give_what_the_model_gives(model, caffe_report, expected, tmp_path):
    model.save(tmp_path / "model.keras")
    copy = load_model(tmp_path / "model.keras")
    image = draw_image(320)
    assert_same_outputs(copy(image[None]), expected)

    copy.export(tmp_path / "exported")
    served = tf.saved_model.load(tmp_path / "exported").signatures["serving_default"]
    outputs = served(images=tf.constant(image[None].astype(np.uint8)))
    detections = model.detect(image[None])
    assert detections["num_detections"][0] > 100
    # Corners are (ymin, xmin, ymax, xmax) and clipped there.
    boxes = np.clip(detections["boxes"], 0, 1)[..., [1, 0, 3, 2]]
    np.testing.assert_allclose(outputs["detection_boxes"], boxes, atol=1e-4)
    np.testing.assert_allclose(outputs["detection_scores"], detections["scores"], atol=1e-4)
    np.testing.assert_array_equal(outputs["detection_classes"], detections["classes"])


@pytest.mark.parametrize("legacy", [False, True])
def test_pytorch_weights_give_the_outputs_of_the_network_on_rgb(model, net, legacy, tmp_path):
    write_checkpoint(tmp_path / "weights", as_state_dict(net), legacy=legacy)
    report = load_weights(model, tmp_path / "weights")
    assert report.family == "RefineDet on VGG-16 (PyTorch, luuuyi)"
    assert len(report.loaded) == len(model.variables) and not report.unused
    assert report.transforms["conv1_1/kernel"] == "transposed, input channels reversed"
    if not legacy:
        image = draw_image(320)
        assert_same_outputs(model(image[None]), refinedet(to_rgb(image), net, CLASSES))


def test_the_reduced_vgg16_fills_the_trunk_and_nothing_else(net, tmp_path):
    trunk = {name: net[name] for name in VGG16_TRUNK}
    classifier = [np.zeros((1000, 1024, 1, 1), np.float32), np.zeros(1000, np.float32)]
    write_caffemodel(tmp_path / "reduced", {**trunk, "fc8": classifier}, v1=True, legacy_shape=True)
    keys = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28, 31, 33]
    modules = dict(zip(map(str, keys), VGG16_TRUNK, strict=True))
    write_checkpoint(tmp_path / "pytorch", as_state_dict(net, modules))
    for file, family, unused in (
        ("reduced", "classification network VGG-16 (Caffe)", ["fc8"]),
        ("pytorch", "classification network VGG-16 (PyTorch, vgg16_reducedfc.pth)", []),
    ):
        model = RefineDet(config(64))
        before = {name: variable.numpy() for name, variable in named_variables(model).items()}
        report = load_weights(model, tmp_path / file)
        assert (report.family, report.unused) == (family, unused)
        assert report.loaded == [f"{layer}/{kind}" for layer in VGG16_TRUNK for kind in ("kernel", "bias")]
        assert sorted(report.loaded + report.kept) == sorted(before)
        assert sum(report.transform_counts().values()) == len(report.loaded)
        after = named_variables(model)
        for layer in VGG16_TRUNK:
            np.testing.assert_array_equal(after[f"{layer}/kernel"], net[layer][0].transpose(2, 3, 1, 0))
            np.testing.assert_array_equal(after[f"{layer}/bias"], net[layer][1])
        for name in report.kept:
            np.testing.assert_array_equal(after[name], before[name])
    assert any("BGR is assumed" in note for note in report.notes)
