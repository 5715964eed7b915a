"""Random weights as Caffe and PyTorch files, through the importers, against the network in plain functions."""

import numpy as np
import pytest
import tensorflow as tf

from refinedet_tf.config import BackboneConfig, ModelConfig
from refinedet_tf.errors import WeightFileError
from refinedet_tf.model import RefineDet
from refinedet_tf.weights import load_model, load_weights
from refinedet_tf.weights.assignment import named_variables
from refinedet_tf.weights.conversion import caffe
from refinedet_tf.weights.conversion.caffe import as_convolution, subsample_fc6, subsample_fc7
from tests.weights.caffe_writer import write_caffemodel
from tests.weights.pytorch_writer import write_checkpoint
from tests.weights.random_nets import VGG16_TRUNK, as_state_dict, random_vgg16
from tests.weights.reference_graph import conv, refinedet, to_bgr, to_rgb

CLASSES = 21
VOC = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip
OUTPUTS = ("arm_objectness", "arm_offsets", "odm_classes", "odm_offsets")


def config(size):
    return ModelConfig(classes=VOC, input_size=[size, size])


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


def assert_saved_and_exported(model, image, expected, folder):
    """A .keras file and a SavedModel of a model give these outputs, too."""
    model.save(folder / "model.keras")
    copy = load_model(folder / "model.keras")
    assert_same_outputs(copy(image[None]), expected)
    copy.export(folder / "exported")
    raw = tf.saved_model.load(folder / "exported").signatures["serving_raw"]
    assert_same_outputs(raw(images=tf.constant(image[None].astype(np.uint8))), expected)


@pytest.fixture(scope="module")
def net():
    return random_vgg16(1, CLASSES)


@pytest.fixture(scope="module")
def caffe_file(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("caffe") / "final"  # the name tells nothing
    write_caffemodel(path, {"data": [], **net, "pool5": []})
    return path


@pytest.fixture(scope="module")
def small_model():
    """For tests that do not call it."""
    return RefineDet(config(64))


@pytest.fixture(scope="module", params=[320, 512])
def size(request):
    return request.param


@pytest.fixture(scope="module")
def model(size):
    return RefineDet(config(size))


@pytest.fixture(scope="module")
def caffe_report(model, caffe_file):
    return load_weights(model, caffe_file)


@pytest.fixture(scope="module")
def expected(size, net):
    return refinedet(to_bgr(draw_image(size)), net, CLASSES)


def number_of_blobs(net):
    return sum(map(len, net.values()))


def test_caffe_weights_give_the_outputs_of_the_network(size, model, caffe_report, expected):
    assert_same_outputs(model(draw_image(size)[None]), expected)


def test_the_channel_order_counts(size, model, caffe_report, expected):
    with pytest.raises(AssertionError):
        assert_same_outputs(model(draw_image(size)[None, :, :, ::-1]), expected)


def test_every_layer_of_the_caffe_file_is_used_and_every_variable_loaded(net, caffe_report):
    assert caffe_report.family == "RefineDet on VGG-16 (Caffe)"
    assert len(caffe_report.loaded) == number_of_blobs(net) and not caffe_report.kept
    assert set(caffe_report.used) == set(net) and not caffe_report.unused
    kernels, scales = sum(len(blobs) == 2 for blobs in net.values()), 2
    assert caffe_report.transform_counts() == {"transposed": kernels, "copied": kernels + scales}


def test_a_saved_model_and_its_export_give_the_same_outputs(size, model, caffe_report, expected, tmp_path):
    assert_saved_and_exported(model, draw_image(size), expected, tmp_path)


def test_pytorch_weights_give_the_outputs_of_the_network_on_rgb(size, model, net, tmp_path):
    write_checkpoint(tmp_path / "weights", as_state_dict(net))
    report = load_weights(model, tmp_path / "weights")
    assert report.family == "RefineDet on VGG-16 (PyTorch, luuuyi)"
    assert len(report.loaded) == number_of_blobs(net) and not report.unused and not report.kept
    assert sum(report.transform_counts().values()) == len(report.loaded)
    assert report.transforms["conv1_1/kernel"] == "transposed, input channels reversed"
    image = draw_image(size)
    assert_same_outputs(model(image[None]), refinedet(to_rgb(image), net, CLASSES))


def test_the_reduced_vgg16_fills_the_trunk_and_nothing_else(net, small_model, tmp_path):
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
        after = named_variables(small_model)
        for variable in after.values():
            variable.assign(np.full(variable.shape, 7, np.float32))
        report = load_weights(small_model, tmp_path / file)
        assert (report.family, report.unused) == (family, unused)
        assert report.loaded == [f"{layer}/{kind}" for layer in VGG16_TRUNK for kind in ("kernel", "bias")]
        assert sorted(report.loaded + report.kept) == sorted(after)
        assert sum(report.transform_counts().values()) == len(report.loaded)
        for layer in VGG16_TRUNK:
            np.testing.assert_array_equal(after[f"{layer}/kernel"], net[layer][0].transpose(2, 3, 1, 0))
            np.testing.assert_array_equal(after[f"{layer}/bias"], net[layer][1])
        assert all((after[name].numpy() == 7).all() for name in report.kept)
    assert any("BGR is assumed" in note for note in report.notes)


def test_every_class_map_row_goes_where_the_published_table_says(net, small_model, tmp_path):
    random = np.random.default_rng(3)
    coco = {
        name: [random.normal(size=(3 * 81, *blobs[0].shape[1:])), random.normal(size=3 * 81)]
        for name, blobs in net.items()
        if name.startswith("P") and name.endswith("_mbox_conf")
    }
    write_caffemodel(tmp_path / "coco", {**net, **coco})
    # VOC's label -> COCO's.
    table = [0, 5, 2, 15, 9, 40, 6, 3, 16, 57, 20, 61, 17, 18, 4, 1, 59, 19, 58, 7, 63]
    after = named_variables(small_model)
    before = {name: variable.numpy() for name, variable in after.items()}

    report = load_weights(small_model, tmp_path / "coco")
    assert report.kept == [f"odm{k}_classes/{kind}" for k in (3, 4, 5, 6) for kind in ("kernel", "bias")]
    assert report.unused == list(coco)
    assert "left out: the file has 80 classes, the model 20" in report.summary()
    for name in report.kept:
        np.testing.assert_array_equal(after[name], before[name])
    np.testing.assert_array_equal(after["odm3_offsets/bias"], net["P3_mbox_loc"][1])

    report = load_weights(small_model, tmp_path / "coco", class_map="coco_to_voc")
    assert not report.kept and not report.unused
    assert report.classes[:2] == ["background <- 0", "aeroplane <- 5"] and len(report.classes) == 21
    assert report.transform_counts()["transposed, rows mapped by class"] == 4
    assert sum(report.transform_counts().values()) == len(after)
    for level in (3, 4, 5, 6):
        kernel, bias = (after[f"odm{level}_classes/{kind}"].numpy() for kind in ("kernel", "bias"))
        weights, shift = coco[f"P{level}_mbox_conf"]
        for anchor in range(3):
            for voc, label in enumerate(table):
                row = weights[anchor * 81 + label].transpose(1, 2, 0)
                np.testing.assert_allclose(kernel[..., anchor * 21 + voc], row, rtol=1e-6)
                assert bias[anchor * 21 + voc] == np.float32(shift[anchor * 81 + label])


def without(net, *names):
    return {name: blobs for name, blobs in net.items() if name not in names}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda net: without(net, "P4_mbox_loc", "TL5_2"), r"in the file: TL5_2, odm4_offsets \(P4_mbox_loc\)$"),
        (lambda net: without(net, "conv3_2", "TL5_2"), r"missing in the file: conv3_2, TL5_2$"),
        (
            lambda net: {**net, "TL4_1": [net["TL5_1"][0], net["TL4_1"][1]]},
            r"TL4_1/kernel: \(3, 3, 1024, 256\) in the file, \(3, 3, 512, 256\) in the model",
        ),
        (lambda net: {**net, "fc7": net["fc7"][:1]}, "'fc7' has 1 arrays in the file, not 2: weights and bias"),
        (lambda net: {"ip": net["fc7"]}, "neither a VGG-16 nor a ResNet-101; its layers are ip"),
        (lambda net: {name: net[name] for name in ("conv1_1", "conv1_2")}, "missing in the file: conv2_1, conv2_2"),
        (
            lambda net: {**without(net, "P3"), "norm": net["conv1_1"]},
            r"missing in the file: P3\n  in the file, but not in the model: norm$",
        ),
    ],
)
def test_files_that_do_not_fit_are_described_and_change_nothing(small_model, net, change, message, tmp_path):
    before = {name: variable.numpy().copy() for name, variable in named_variables(small_model).items()}
    write_caffemodel(tmp_path / "file", change(net))
    with pytest.raises(WeightFileError, match=message):
        load_weights(small_model, tmp_path / "file")
    for name, variable in named_variables(small_model).items():
        np.testing.assert_array_equal(variable, before[name], err_msg=name)


def test_pytorch_files_of_other_networks_are_refused(small_model, net, tmp_path):
    write_checkpoint(tmp_path / "torchvision", {"features.0.weight": net["conv1_1"][0]})
    with pytest.raises(WeightFileError, match="neither a RefineDet of luuuyi"):
        load_weights(small_model, tmp_path / "torchvision")
    write_checkpoint(tmp_path / "flat", {**as_state_dict(net), "vgg.0.weight": np.zeros(3, np.float32)})
    with pytest.raises(WeightFileError, match=r"conv1_1/kernel: \(3,\) in the file, \(3, 3, 3, 64\) in the model"):
        load_weights(small_model, tmp_path / "flat")
    # The SSD that the port was made from has the same names as far as it goes.
    write_checkpoint(tmp_path / "ssd", as_state_dict(net, {"vgg.0": "conv1_1", "extras.0": "conv6_1"}))
    with pytest.raises(WeightFileError, match=r"missing in the file: conv1_2 \(vgg\.2\), .*TL6_1 \(tcb0\.9\)"):
        load_weights(small_model, tmp_path / "ssd")


def test_another_input_form_is_refused_with_the_remedy(net, caffe_file):
    config = ModelConfig(classes=VOC, input_size=[64, 64], backbone=BackboneConfig(preprocessing="tf"))
    with pytest.raises(WeightFileError, match=r"model\.backbone\.preprocessing=caffe"):
        load_weights(RefineDet(config), caffe_file)


def test_fully_connected_layers_are_subsampled_as_the_table_says():
    fc6 = np.arange(8 * 5 * 7 * 7, dtype=np.float32).reshape(8, 5, 7, 7)  # Caffe's (out, in, h, w)
    small = subsample_fc6(fc6.transpose(2, 3, 1, 0))
    assert small.shape == (3, 3, 5, 2)
    for row, column, i, o in np.ndindex(small.shape):
        assert small[row, column, i, o] == fc6[4 * o, i, 3 * row, 3 * column]
    fc7 = np.arange(64.0).reshape(8, 8, 1, 1)
    small = subsample_fc7(fc7.transpose(2, 3, 1, 0))
    assert small.shape == (1, 1, 2, 2)
    for i, o in np.ndindex(2, 2):
        assert small[0, 0, i, o] == fc7[4 * o, 4 * i, 0, 0]


def test_where_the_small_kernel_sees_all_there_is_it_computes_what_the_full_one_does():
    random = np.random.default_rng(4)
    fc6 = random.normal(size=(8, 5, 7, 7)).astype(np.float32)
    x = np.zeros((5, 7, 7), np.float32)
    x[:, ::3, ::3] = random.normal(size=(5, 3, 3))
    small = subsample_fc6(fc6.transpose(2, 3, 1, 0)).transpose(3, 2, 0, 1)
    full = (fc6 * x).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(conv(x, [small], pad=0, dilation=3)[:, 0, 0], full[::4], rtol=1e-4)


def test_an_unreduced_vgg16_is_recognized_by_its_shapes():
    for shape in ((4096, 25088), (1, 1, 4096, 25088), (4096, 512, 7, 7)):
        kernel = as_convolution(np.lib.stride_tricks.as_strided(np.zeros(1, np.int8), shape, (0,) * len(shape)))
        assert kernel.shape == (7, 7, 512, 4096)
    assert as_convolution(np.zeros((1, 1, 4096, 4096), np.int8)).shape == (1, 1, 4096, 4096)
    assert as_convolution(np.zeros((1024, 512, 3, 3), np.int8)) is None
    values = np.broadcast_to(np.arange(25088, dtype=np.int16), (4096, 25088))
    kernel = as_convolution(values)
    assert [kernel[2, 3, 100, 7], kernel[6, 0, 511, 0]] == [100 * 49 + 2 * 7 + 3, 511 * 49 + 6 * 7]


def test_an_unreduced_vgg16_of_caffe_is_subsampled(net, small_model, monkeypatch):
    # As a file it would have 550 MB; one byte a number will do here.
    layers = {name: net[name] for name in VGG16_TRUNK}
    outputs = np.arange(4096) % 100
    layers["fc6"] = [np.broadcast_to(outputs[:, None].astype(np.int8), (1, 1, 4096, 25088)), outputs]
    layers["fc7"] = [np.broadcast_to(outputs.astype(np.int8), (1, 1, 4096, 4096)), outputs]
    monkeypatch.setattr(caffe, "read_caffemodel", lambda path: layers)
    weights = caffe.caffe_weights(small_model, "VGG_ILSVRC_16_layers.caffemodel")
    assert (weights.arrays["fc6/kernel"] == outputs[::4]).all()
    assert weights.arrays["fc6/kernel"].shape == (3, 3, 512, 1024)
    assert (weights.arrays["fc7/kernel"][0, 0] == outputs[::4, None]).all()
    assert weights.arrays["fc7/kernel"].shape == (1, 1, 1024, 1024)
    np.testing.assert_array_equal(weights.arrays["fc7/bias"], outputs[::4])
    assert weights.transforms["fc6/kernel"] == "subsampled from ImageNet's fc6 and fc7"
