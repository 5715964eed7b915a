"""The same file gives the same pixels and detections by every route."""

import importlib.util

import numpy as np
import pytest
import tensorflow as tf

from refinedet_tf.data.pipeline import image_pipeline
from refinedet_tf.data.readers.voc import read_voc
from refinedet_tf.inference.detector import Detector
from refinedet_tf.inference.images import read_image
from tests.conftest import PROJECT
from tests.photos import jpegs

COMPARED = 20  # detections of an image; further down scores of a model without training lie too close to each other


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The 40 files as a data set without objects."""
    root = tmp_path_factory.mktemp("pixels")
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for name, contents in jpegs().items():
        (root / f"JPEGImages/{name}.jpg").write_bytes(contents)
        (root / f"Annotations/{name}.xml").write_text("<annotation/>")
    (root / "ImageSets/Main/all.txt").write_text("\n".join(jpegs()))
    return root


@pytest.fixture(scope="module")
def edge_client():
    """The program for devices as a module."""
    pytest.importorskip("ai_edge_litert")
    specification = importlib.util.spec_from_file_location("edge_detect", PROJECT / "export/edge/detect.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_pixels_are_equal_by_every_route(files, edge_client):
    found = read_voc(files, ["all"], ["cat"])
    assert len(found) == 40 and not found.defects
    for example, (pixels,) in zip(found.examples, image_pipeline(found.examples), strict=True):
        assert pixels.shape == (example.height, example.width, 3)
        np.testing.assert_array_equal(read_image(example.image_path), pixels, err_msg=example.image_id)
        np.testing.assert_array_equal(edge_client.read_image(example.image_path), pixels, err_msg=example.image_id)


def assert_same(boxes, scores, expected, message):
    """The same best scores, each with a box that the other side has with it."""
    assert len(expected.scores) > COMPARED, message
    np.testing.assert_allclose(scores[:COMPARED], expected.scores[:COMPARED], atol=1e-5, err_msg=message)
    distances = np.abs(boxes[:COMPARED, np.newaxis] - expected.boxes[: 2 * COMPARED]).max(axis=-1)
    assert distances.min(axis=1).max() < 1e-4, message


def test_serving_bytes_detects_what_a_detector_finds_in_the_file(files, tiny_model, exported):
    paths = sorted(files.glob("JPEGImages/*.jpg"))
    serve = tf.saved_model.load(str(exported)).signatures["serving_bytes"]
    outputs = {name: value.numpy() for name, value in
               serve(image_bytes=tf.constant([path.read_bytes() for path in paths])).items()}  # fmt: skip
    assert outputs["image_is_valid"].all()
    detector = Detector.from_model(tiny_model)
    for index, path in enumerate(paths):
        boxes = outputs["detection_boxes"][index][:, [1, 0, 3, 2]]
        assert_same(boxes, outputs["detection_scores"][index], detector.detect(path), path.name)


def test_the_program_for_devices_detects_what_a_detector_finds_in_the_file(files, tflite_files, edge_client):
    model = tflite_files("none", "op", "float32")
    client, detector = edge_client.Detector(model, 1), Detector.load(model, num_threads=1)
    for path in sorted(files.glob("JPEGImages/*.jpg")):
        found = client.detect(edge_client.read_image(path))
        assert_same(found["boxes"], found["scores"], detector.detect(path), path.name)
