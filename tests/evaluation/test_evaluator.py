"""The evaluator on made-up predictions."""

import numpy as np
import pytest
import tensorflow as tf

from refinedet_tf.data.examples import Example
from refinedet_tf.evaluation.evaluator import detections_to_images, evaluate, examples_to_truths

NAMES = ["cat", "dog"]


def example(height, width, pixel_boxes, classes, difficult=None):
    boxes = np.array(pixel_boxes, np.float32).reshape(-1, 4) / np.array([width, height] * 2, np.float32)
    flags = np.zeros(len(classes), bool) if difficult is None else np.array(difficult)
    return Example("id", "id.jpg", height, width, boxes, np.array(classes, np.int32), flags, np.zeros_like(flags))


EXAMPLES = [
    example(100, 200, [[20, 10, 120, 90], [150, 5, 199, 60]], [0, 1]),
    example(300, 150, [[1, 1, 150, 300]], [1]),
    example(80, 80, [[30, 30, 60, 60]], [0], [True]),
]


def perfect_predictions(capacity=4):
    """What a model would return that has learned the annotations, padded with -1 and boxes that must not count."""
    count = len(EXAMPLES)
    predictions = {
        "boxes": np.tile(np.array([0, 0, 1, 1], np.float32), (count, capacity, 1)),
        "scores": np.full([count, capacity], 0.99, np.float32),
        "classes": np.full([count, capacity], -1, np.int32),
        "num_detections": np.array([len(each.classes) for each in EXAMPLES], np.int32),
    }
    for index, each in enumerate(EXAMPLES):
        predictions["boxes"][index, : len(each.boxes)] = each.boxes
        predictions["classes"][index, : len(each.classes)] = each.classes
    return predictions


def images():
    return tf.data.Dataset.from_tensor_slices(np.zeros([len(EXAMPLES), 8, 8, 3], np.float32)).batch(2)


def test_perfect_predictions_have_ap_1_and_see_every_image_once():
    seen = []

    def predict(dataset):
        seen.extend(batch.shape for batch in dataset)
        return perfect_predictions()

    result = evaluate(predict, EXAMPLES, NAMES, images())
    assert result.mean_ap_11_point == result.mean_ap_area == 1.0
    assert [row.ground_truths for row in result.rows] == [1, 2]
    assert [row.detections for row in result.rows] == [2, 2]
    assert [tuple(shape) for shape in seen] == [(2, 8, 8, 3), (1, 8, 8, 3)]


def test_predictions_in_another_order_are_wrong():
    shifted = {key: np.roll(values, 1, axis=0) for key, values in perfect_predictions().items()}
    assert evaluate(lambda dataset: shifted, EXAMPLES, NAMES, images()).mean_ap_area < 1


def test_detections_become_pixels_clipped_to_the_image():
    detections = {
        "boxes": np.array([[[0.25, 0.5, 0.5, 0.75], [-0.1, -2, 1.0, 1.3], [9, 9, 9, 9]]], np.float32),
        "scores": np.array([[0.9, 0.8, 0.7]], np.float32),
        "classes": np.array([[1, 0, -1]]),
        "num_detections": np.array([2]),
    }
    [image] = detections_to_images(detections, [(100, 200)])
    np.testing.assert_array_equal(image.boxes, [[50, 50, 100, 75], [0, 0, 199, 99]])
    np.testing.assert_array_equal(image.classes, [1, 0])
    np.testing.assert_allclose(image.scores, [0.9, 0.8])


def test_detections_are_counted_from_1_as_published():
    # Height 1 pixel in the annotation's terms: the shift by one pixel leaves no overlap.
    thin = [example(100, 100, [[10, 50, 90, 50]], [0])]
    boxes = thin[0].boxes[None]
    predictions = {"boxes": boxes, "scores": np.ones([1, 1]), "classes": np.zeros([1, 1]), "num_detections": [1]}
    assert evaluate(lambda dataset: predictions, thin, NAMES, images()).rows[0].ap_area == 0
    predictions["boxes"] = boxes - 0.01
    assert evaluate(lambda dataset: predictions, thin, NAMES, images()).rows[0].ap_area == 1


def test_truths_are_the_annotations_pixels():
    boxes = [[48, 240, 195, 371], [8, 12, 352, 498]]
    [truth] = examples_to_truths([example(500, 353, boxes, [0, 1], [False, True])])
    # The relative boxes are float32: 2^-24 of 500 pixels.
    np.testing.assert_allclose(truth.boxes, boxes, atol=1e-4)
    np.testing.assert_array_equal(truth.difficult, [False, True])


@pytest.mark.parametrize("count", [2, 4])
def test_predictions_for_another_number_of_images_are_refused(count):
    predictions = {key: np.resize(values, (count, *values.shape[1:])) for key, values in perfect_predictions().items()}
    with pytest.raises(ValueError, match=f"{count} images but 3 examples"):
        evaluate(lambda dataset: predictions, EXAMPLES, NAMES, images())
