"""A model that letterboxes, in every form: boxes belong to the photo as it was."""

import dataclasses
import importlib.util

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from refinedet_tf.data.examples import Example, ExampleSet
from refinedet_tf.evaluation.evaluator import evaluate
from refinedet_tf.inference.detector import Detector
from refinedet_tf.model import RefineDet
from refinedet_tf.ops.resizing import Resizing
from refinedet_tf.serving.inputs import InputForm
from refinedet_tf.serving.tflite import convert_tflite
from refinedet_tf.verification import verify
from tests.conftest import PROJECT

HEIGHT, WIDTH = 64, 128  # of the model's input
MEAN_COLOUR = (123, 117, 104)


@pytest.fixture(scope="module")
def model(tiny_model, tiny_config):
    letterboxing = RefineDet(dataclasses.replace(tiny_config, resize="letterbox"))
    letterboxing.set_weights(tiny_model.get_weights())
    return letterboxing


@pytest.fixture(scope="module")
def photos():
    """A tall one, a wide one, and one that has the input's size."""
    rng = np.random.default_rng(5)
    sizes = ((11, 9), (5, 30), (8, 16))
    return [rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(rows, 0).repeat(columns, 1) for rows, columns in sizes]


def detect_by_hand(model, photos, rounded):
    """What the model says to each photo that was letterboxed by hand, its boxes taken back to the photo by hand."""
    # (top, left, height, width) of the photo in the input: 88 x 72 becomes 64 x 52, 40 x 240 becomes 21 x 128.
    places = ((0, 38, 64, 52), (21, 0, 21, 128), (0, 0, 64, 128))
    found = []
    for photo, (top, left, height, width) in zip(photos, places, strict=True):
        canvas = np.full((HEIGHT, WIDTH, 3), MEAN_COLOUR, np.float32)
        canvas[top : top + height, left : left + width] = tf.image.resize(photo, (height, width))
        canvas = np.round(canvas) if rounded else canvas
        detections = {name: value[0].numpy() for name, value in model.detect(canvas[np.newaxis]).items()}
        count = detections["num_detections"]
        boxes = detections["boxes"][:count] * [WIDTH, HEIGHT, WIDTH, HEIGHT] - [left, top, left, top]
        boxes = np.clip(boxes / [width, height, width, height], 0, 1)
        found.append((boxes, detections["scores"][:count], detections["classes"][:count]))
    return found


@pytest.fixture(scope="module")
def expected(model, photos):
    return detect_by_hand(model, photos, rounded=False)


@pytest.fixture(scope="module")
def expected_of_tflite(model, photos):
    """A file that takes uint8 sees rounded pixels."""
    return detect_by_hand(model, photos, rounded=True)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """The model in every form."""
    path = tmp_path_factory.mktemp("letterbox")
    model.save(path / "model.keras")
    model.export(path / "exported")
    (path / "model.tflite").write_bytes(convert_tflite(model))
    return path


def assert_same(boxes, scores, expected):
    """The same detections; those whose scores are equal but for rounding may be in any order."""
    assert len(scores) == len(expected[1]) > 20
    np.testing.assert_allclose(scores, expected[1], atol=2e-5)
    distances = np.abs(boxes[:, np.newaxis] - expected[0]).max(axis=-1)
    assert distances.min(axis=0).max() < 5e-4 and distances.min(axis=1).max() < 5e-4


@pytest.mark.parametrize("name", ["live", "model.keras", "exported", "model.tflite"])
def test_detections_are_those_in_a_photo_that_was_letterboxed_by_hand(
    model, folder, photos, expected, expected_of_tflite, name
):
    expected = expected_of_tflite if name == "model.tflite" else expected
    detector = Detector.from_model(model) if name == "live" else Detector.load(folder / name)
    for photo, (boxes, scores, _) in zip(photos, expected, strict=True):
        found = detector.detect(photo)
        inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # what is found in the margin is left out
        assert_same(found.boxes, found.scores, (boxes[inside], scores[inside]))


def test_every_signature_and_rounded_pixels_detect_the_same(model, folder, photos):
    results = verify(model, [folder / "exported", folder / "model.tflite"], photos)
    assert len(results) == 6
    for result in results:
        assert result.passed and result.exact and result.box_difference < 1e-3


def test_image_files_of_mixed_sizes_each_have_their_own_coordinates(folder, photos, expected):
    serve = tf.saved_model.load(str(folder / "exported")).signatures["serving_bytes"]
    files = [tf.io.encode_png(photo).numpy() for photo in photos]
    outputs = serve(image_bytes=tf.constant([*files, b"broken"]))
    assert outputs["image_is_valid"].numpy().tolist() == [True, True, True, False]
    for row, detections in enumerate(expected):
        count = int(outputs["num_detections"][row])
        boxes = outputs["detection_boxes"].numpy()[row]
        assert_same(boxes[:count, [1, 0, 3, 2]], outputs["detection_scores"][row, :count], detections)
        assert (boxes[count:] == 0).all()


def test_the_example_for_devices_detects_the_same(folder, photos, expected_of_tflite):
    pytest.importorskip("ai_edge_litert")
    spec = importlib.util.spec_from_file_location("edge_detect", PROJECT / "export/edge/detect.py")
    edge = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(edge)
    detector = edge.Detector(folder / "model.tflite", num_threads=1)
    for photo, detections in zip(photos, expected_of_tflite, strict=True):
        found = detector.detect(photo)
        assert_same(found["boxes"], found["scores"], detections)


def test_evaluation_maps_boxes_back(model, photos, expected, tmp_path):
    examples, nothing = [], np.zeros([0], np.int32)
    for index, photo in enumerate(photos):
        path = tmp_path / f"{index}.png"
        Image.fromarray(photo).save(path)
        empty = {"boxes": np.zeros([0, 4], np.float32), "classes": nothing, "difficult": nothing, "crowd": nothing}
        examples.append(Example(str(index), str(path), *photo.shape[:2], **empty))
    result = evaluate(model, ExampleSet(examples, model.config.classes, []), batch_size=2)
    for photo, found, detections in zip(photos, result.detections, expected, strict=True):
        height, width = photo.shape[:2]
        boxes = np.clip(found.boxes / (width, height, width, height), 0, 1)
        assert_same(boxes, found.scores, detections)


def test_images_for_calibration_are_letterboxed(photos):
    prepared = InputForm(Resizing(HEIGHT, WIDTH, "letterbox"), "uint8").prepare(photos[1])[0]
    assert prepared.dtype == np.uint8
    assert (prepared[:21] == MEAN_COLOUR).all() and (prepared[42:] == MEAN_COLOUR).all()
    np.testing.assert_array_equal(prepared[21:42], np.round(tf.image.resize(photos[1], (21, WIDTH))))
