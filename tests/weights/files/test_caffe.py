import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refinedet_tf.errors import WeightFileError
from refinedet_tf.weights.files.caffe import fold_statistics, is_caffemodel, read_caffemodel
from tests.weights.caffe_writer import blob, block, layer, number, varint, write_caffemodel


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.caffemodel"


def small_net():
    random = np.random.default_rng(0)
    shapes = {
        "conv1_1": [(4, 3, 3, 3), (4,)],
        "relu1_1": [],
        "conv4_3_norm": [(5,)],
        "P4-up": [(4, 4, 2, 2), (4,)],
        "bn_conv1": [(7,), (7,), (1,)],
    }
    return {name: [random.normal(size=shape).astype("f4") for shape in blobs] for name, blobs in shapes.items()}


def assert_same_layers(read, written):
    assert list(read) == [name for name, blobs in written.items() if blobs]
    for name, blobs in read.items():
        assert [one.shape for one in blobs] == [one.shape for one in written[name]]
        for got, expected in zip(blobs, written[name], strict=True):
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize("legacy_shape", [False, True])
@pytest.mark.parametrize("double", [False, True])
def test_every_format_gives_the_numbers_written(path, v1, legacy_shape, double):
    net = small_net()
    write_caffemodel(path, net, v1, legacy_shape, double)
    assert_same_layers(read_caffemodel(path), net)
    assert is_caffemodel(path)


def test_a_legacy_shape_with_leading_ones_keeps_its_axes_unless_it_is_a_vector(path):
    net = {"ip": [np.ones((3, 5), "f4")], "conv": [np.ones((1, 1, 3, 3), "f4")], "bias": [np.ones((1,), "f4")]}
    write_caffemodel(path, net, legacy_shape=True)
    shapes = [blobs[0].shape for blobs in read_caffemodel(path).values()]
    assert shapes == [(1, 1, 3, 5), (1, 1, 3, 3), (1,)]


def test_gradients_beside_the_values_are_not_read(path):
    path.write_bytes(layer("norm", [blob([1, 2]) + block(6, struct.pack("<2f", 8, 9))]))
    np.testing.assert_array_equal(read_caffemodel(path)["norm"][0], [1, 2])


@pytest.mark.parametrize(
    ("raw_blob", "message"),
    [
        (blob([1, 2, 3], shape=(2, 2)), r"layer 'fc6', blob 0 has shape \(2, 2\), which is 4 values"),
        (blob([1, 2, 3], shape=(-3,)), "impossible shape"),
        (blob([1, 2, 3], shape=(-3, -1)), "impossible shape"),
        (blob([], shape=(0,)), "impossible shape"),
        (blob([], shape=(0, 2**62)), "impossible shape"),
        (blob([1], shape=(2**62, 2**62, 4)), "has shape"),
        (blob([1], shape=(2**31 - 1,) * 4, legacy_shape=True), "has shape"),
        (blob([1], shape=(1,) * 33), "more than the 32 axes"),
        (blob([1], shape=(1,) * 100_000), "more than the 32 axes"),
        (block(7, block(1, varint(1))) + block(5, b"abc"), "holds 3 bytes"),
        (block(7, block(1, varint(1))) + varint(5 << 3 | 5) + b"abcd", "one packed list"),
        (block(7, block(1, varint(3))) + block(5, bytes(8)) + block(5, bytes(4)), "one packed list"),
        (block(7, b"\x0a\x7f") + block(5, b"abcd"), "damaged shape"),
        (b"\x2a\x7fabc", "layer 'fc6', blob 0 is damaged"),
    ],
)
def test_an_inconsistent_blob_is_refused_with_its_layer(path, raw_blob, message):
    path.write_bytes(layer("fc6", [raw_blob]))
    with pytest.raises(WeightFileError, match=message) as error:
        read_caffemodel(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no layer"),
        (b"\x00" * 100, "not a Caffe model"),
        (b'name: "VGG"\nlayer {', "not a Caffe model"),
        (block(1, b"a net without layers"), "holds no layer"),
        (layer("relu", []), "holds no layer"),
        (layer("a", [blob([1])]) + layer("a", [blob([1])]), "two layers are named 'a'"),
        (layer("a", [blob([1])]) + layer("a", [blob([1])], v1=True), "two layers are named 'a'"),
        (layer("a", [blob([1])] * 101), "more than 100 blobs"),
        (block(100, b"") * 100_001, "more than 100000 layers"),
        (block(2, block(1, block(1, b"conv1") + block(50, blob([1])))), "upgrade_net_proto_binary"),
        (block(100, b"\x0a\x7f"), "layer number 0 is damaged"),
        (b"\x0b" * 100_000, "not a Caffe model"),
    ],
)
def test_a_file_that_is_no_caffe_model_is_refused(path, content, message):
    path.write_bytes(content)
    with pytest.raises(WeightFileError, match=message):
        read_caffemodel(path)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "missing", tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(WeightFileError, match=r"cannot be read|not a regular file"):
            read_caffemodel(other)


def test_a_truncated_file_is_refused_or_ends_between_two_layers(path):
    net = small_net()
    write_caffemodel(path, net)
    content = path.read_bytes()
    between_layers = 0
    for length in range(len(content)):
        path.write_bytes(content[:length])
        try:
            read = read_caffemodel(path)
        except WeightFileError:
            continue
        between_layers += 1
        assert_same_layers(read, {name: net[name] for name in list(net)[: len(read) + 1] if name in read})
    # Protobuf cannot tell a file cut between two fields: after each layer with weights but the last, after the relu.
    assert between_layers == 4


def test_flipped_bits_give_a_result_or_the_error(path):
    write_caffemodel(path, small_net())
    content = np.frombuffer(path.read_bytes(), np.uint8)
    random = np.random.default_rng(1)
    for _ in range(1000):
        broken = content.copy()
        where = random.integers(0, len(broken), random.integers(1, 6))
        broken[where] ^= random.integers(1, 256, len(where)).astype(np.uint8)
        path.write_bytes(broken.tobytes())
        is_caffemodel(path)
        try:
            read_caffemodel(path)
        except WeightFileError as error:
            assert str(path) in str(error)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", block(1, b"n"), b"\xa2\x06", b"\x12", b"\xa2\x06\x10\x3a\x0e"]))
def test_random_bytes_give_a_result_or_the_error(tmp_path_factory, content, prefix):
    path = tmp_path_factory.getbasetemp() / "random.caffemodel"
    path.write_bytes(prefix + content)
    is_caffemodel(path)
    try:
        read_caffemodel(path)
    except WeightFileError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (layer("conv", [blob([1])]), True),
        (layer("conv", [blob([1])], v1=True), True),
        (block(1, b"n" * 300) + block(3, b"data") + number(4, 1) + layer("conv", [])[:6], True),
        (b"", False),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), False),
        (b"PK\x03\x04" + bytes(100), False),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", False),
        (number(1, 8) + block(7, b"an ONNX model: its version comes first"), False),
        (number(1, 1) + block(2, b"a SavedModel: its version comes first"), False),
        (block(1, block(1, b"x") + block(2, b"Add")) * 3 + block(4, number(1, 3)), False),  # a GraphDef
        (block(1, block(1, b"x") + block(2, b"Add")) * 3 + block(2, block(1, b"a function")), False),  # another
        (block(1, b"cut in the name")[:5], False),
        (b"\xff" * 100, False),
    ],
)
def test_a_caffe_model_is_told_from_other_files_by_its_first_bytes(path, content, expected):
    path.write_bytes(content)
    assert is_caffemodel(path) is expected


def test_statistics_are_divided_by_the_factor():
    mean, variance = fold_statistics([np.array([2, -4], "f4"), np.array([1, 6], "f4"), np.array([4], "f4")])
    np.testing.assert_array_equal(mean, np.array([0.5, -1], "f4"))
    np.testing.assert_array_equal(variance, np.array([0.25, 1.5], "f4"))
    assert mean.dtype == variance.dtype == np.float32


def test_a_factor_of_zero_means_statistics_of_zero():
    mean, variance = fold_statistics([np.ones(3, "f4"), np.ones(3, "f4"), np.zeros(1, "f4")])
    np.testing.assert_array_equal([mean, variance], np.zeros((2, 3)))


@pytest.mark.parametrize("shapes", [[(3,), (3,)], [(3,), (2,), (1,)], [(3,), (3,), (3,)], [(3, 1), (3, 1), (1,)]])
def test_blobs_of_another_layer_are_no_statistics(shapes):
    with pytest.raises(WeightFileError, match="BatchNorm"):
        fold_statistics([np.ones(shape, "f4") for shape in shapes])
