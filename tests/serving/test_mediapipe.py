"""MediaPipe's ObjectDetector beside the TFLite file it runs; what docs/edge.md says of it."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("mediapipe")

import mediapipe as mp
from mediapipe.tasks.python import BaseOptions, vision

from refinedet_tf.inference.tflite_runner import TFLiteModel
from refinedet_tf.serving.tflite import convert_tflite
from tests.conftest import CUT, coarse_noise

CLASSES = ["circle", "square", "star"]


@pytest.fixture(scope="module")
def image():
    """Of the input's size, so that nothing is resized."""
    return coarse_noise(np.random.default_rng(8), 1)[0].round().astype(np.uint8)


def detect(path, pixels, **options):
    """MediaPipe's detections: boxes (x, y, width, height) in whole pixels, and the (class, score) pairs of each."""
    options = vision.ObjectDetectorOptions(base_options=BaseOptions(model_asset_path=str(path)), **options)
    with vision.ObjectDetector.create_from_options(options) as detector:
        pixels = np.ascontiguousarray(pixels)
        found = detector.detect(mp.Image(image_format=mp.ImageFormat.SRGB, data=pixels)).detections
    boxes = [(box.origin_x, box.origin_y, box.width, box.height) for box in (each.bounding_box for each in found)]
    return boxes, [[(CLASSES.index(each.category_name), each.score) for each in one.categories] for one in found]


def whole_pixels(boxes, size):
    """Rounds as MediaPipe does: left, top, width and height down, each cut at 0 and at the image's size."""
    height, width = size
    corner_and_size = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    sides = np.array([width, height] * 2)
    return np.clip(np.trunc(corner_and_size * sides), 0, sides)


def test_detections_with_one_box_are_merged(tflite_files, image):
    path = tflite_files("none", "op", "uint8")
    ours = TFLiteModel(path).detect(image)
    boxes, categories = detect(path, image)
    rounded = whole_pixels(ours["boxes"], image.shape[:2])
    distinct = np.unique(rounded, axis=0)
    assert len(ours["scores"]) > len(distinct) > 200 and abs(len(boxes) - len(distinct)) < 0.05 * len(distinct)
    # Every box of either side is on the other, but for rounding in another order of operations.
    distances = np.abs(np.array(boxes)[:, np.newaxis] - rounded).max(axis=-1)
    assert distances.min(axis=0).max() <= 1 and distances.min(axis=1).max() <= 1
    for near, pairs in zip(distances <= 1, categories, strict=True):
        for label, score in pairs:
            same = near & (ours["classes"] == label) & (np.abs(ours["scores"] - score) < 1e-5)
            assert same.any(), "each class and score is ours, at that place"
    # It keeps pointers into a list that moves as it grows, and so loses some of what it merges.
    assert len(boxes) < sum(map(len, categories)) <= len(ours["scores"])


def test_across_classes_only_boxes_cut_at_the_border_are_merged(tiny_model, image, tmp_path, monkeypatch):
    detection = dataclasses.replace(CUT, suppression="across_classes", iou_threshold=0.5)
    monkeypatch.setattr(tiny_model, "config", dataclasses.replace(tiny_model.config, detection=detection))
    (tmp_path / "model.tflite").write_bytes(convert_tflite(tiny_model))
    ours = TFLiteModel(tmp_path / "model.tflite").detect(image)
    boxes, categories = detect(tmp_path / "model.tflite", image)
    assert len(ours["scores"]) - 5 <= len(boxes) > 20
    at_border = [x == 0 or y == 0 or x + width >= 127 or y + height >= 63 for x, y, width, height in boxes]
    assert all(cut for cut, pairs in zip(at_border, categories, strict=True) if len(pairs) > 1)
    np.testing.assert_allclose([pairs[0][1] for pairs in categories[:5]], ours["scores"][:5], atol=1e-5)
    best, most = detect(tmp_path / "model.tflite", image, max_results=5)
    assert best == boxes[:5] and most == categories[:5]


def test_images_are_resized_without_half_pixel_centers(tflite_files, image):
    path = tflite_files("none", "op", "uint8")
    rng = np.random.default_rng(1)
    large = np.clip(image.repeat(2, axis=0).repeat(2, axis=1) + rng.integers(-20, 21, (128, 256, 3)), 0, 255)
    large = large.astype(np.uint8)
    best = sorted((score for pairs in detect(path, large)[1] for _, score in pairs), reverse=True)[:20]
    np.testing.assert_allclose(best, TFLiteModel(path).detect(large[::2, ::2])["scores"][:20], atol=1e-3)
    assert np.abs(best - TFLiteModel(path).detect(large)["scores"][:20]).max() > 1e-3
