"""Readers on mutated files: a listed defect or a DataError, never another exception."""

import json

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from refinedet_tf.data.readers.coco import read_coco
from refinedet_tf.data.readers.tfrecords import read_tfrecords
from refinedet_tf.data.readers.yolo import read_yolo
from refinedet_tf.errors import DataError

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
ODD = st.sampled_from(
    [None, True, -1, 0, 10**400, 1e308, float("nan"), float("inf"), "", "x", "\ud800", "a\0b", "x" * 5000, [], [[]], {},
     {"id": 1}, [1, 2, 3, 4], "../a.png", [None] * 4]
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with one image."""
    folder = tmp_path_factory.mktemp("mutated")
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    return folder


def survives(read):
    try:
        found = read()
    except DataError as error:
        text = str(error)
    else:
        text = found.summary()
        for example in found.examples:
            assert len(example.boxes) == len(example.classes) and np.isfinite(example.boxes).all()
    text.encode()  # so that it can be printed


def instances():
    return {
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 1, 4, 4], "iscrowd": 0}],
    }


@SETTINGS
@given(data=st.data())
def test_coco_json_with_odd_values(root, data):
    content = instances()
    for _ in range(data.draw(st.integers(1, 3))):
        parent, key = content, data.draw(st.sampled_from(list(content) or ["x"]))
        while isinstance(parent[key], list | dict) and parent[key] and data.draw(st.booleans()):
            parent = parent[key]
            key = data.draw(st.sampled_from(list(parent) if isinstance(parent, dict) else range(len(parent))))
        parent[key] = data.draw(ODD)
    (root / "a.json").write_text(json.dumps(content))
    survives(lambda: read_coco(root, None, None, annotations="a.json"))


@SETTINGS
@given(data=st.data())
def test_coco_json_with_damaged_bytes(root, data):
    content = bytearray(json.dumps(instances()).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (root / "b.json").write_bytes(content)
    survives(lambda: read_coco(root, None, None, annotations="b.json"))


@SETTINGS
@given(data=st.data())
def test_records_with_features_of_other_kinds(root, data):
    values = {
        "image/encoded": [(root / "a.png").read_bytes()],
        "image/source_id": [b"1"],
        "image/height": [8],
        "image/width": [8],
        "image/object/class/text": [b"cat"],
        "image/object/class/label": [1],
        "image/object/difficult": [0],
        **{f"image/object/bbox/{side}": [value] for side, value in
           (("xmin", 0.1), ("ymin", 0.2), ("xmax", 0.5), ("ymax", 0.6))},
    }  # fmt: skip
    odd = st.sampled_from([[], [b"\xff\xfe"], [b""], [7], [-(2**63)], [0.5], [float("nan")], [b"a", b"b"], [1, 2]])
    for _ in range(data.draw(st.integers(1, 3))):
        values[data.draw(st.sampled_from(sorted(values)))] = data.draw(odd)
    kinds = {bytes: "bytes_list", float: "float_list", int: "int64_list"}
    features = {name: tf.train.Feature(**{kinds[type(value[0])]: {"value": value}}) if value else tf.train.Feature()
                for name, value in values.items()}  # fmt: skip
    with tf.io.TFRecordWriter(str(root / "train.record")) as writer:
        writer.write(tf.train.Example(features={"feature": features}).SerializeToString())
    survives(lambda: read_tfrecords(root, ["train"], None))


@SETTINGS
@given(data=st.data())
def test_label_maps_and_records_with_damaged_bytes(root, data):
    folder = root / "records"
    folder.mkdir(exist_ok=True)
    record = tf.train.Example(features={"feature": {"image/encoded": tf.train.Feature(
        bytes_list={"value": [(root / "a.png").read_bytes()]})}}).SerializeToString()  # fmt: skip
    label_map = b"item { id: 1 name: \"cat\" } item { id: 2 name: 'dog' }"
    record, label_map = bytearray(record), bytearray(label_map)
    for target in (record, label_map):
        for _ in range(data.draw(st.integers(0, 3))):
            target[data.draw(st.integers(0, len(target) - 1))] = data.draw(st.sampled_from([0, 34, 92, 128, 255]))
    (folder / "label_map.pbtxt").write_bytes(label_map)
    with tf.io.TFRecordWriter(str(folder / "train.record")) as writer:
        writer.write(bytes(record))
    survives(lambda: read_tfrecords(folder, ["train"], None))


@SETTINGS
@given(labels=st.binary(max_size=80), names=st.binary(max_size=80))
def test_yolo_files_of_any_bytes(root, labels, names):
    folder = root / "yolo"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "images/a.png").write_bytes((root / "a.png").read_bytes())
    (folder / "labels/a.txt").write_bytes(b"0 0.5 0.5 0.2 0.2\n" + labels)
    (folder / "data.yaml").write_bytes(b"names: [cat]\n" + names)
    survives(lambda: read_yolo(folder, None, None))
