"""The evaluator on made-up predictions."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from refinedet_tf.data.examples import Example, ExampleSet
from refinedet_tf.errors import DataError
from refinedet_tf.evaluation.evaluator import evaluate
from refinedet_tf.evaluation.images import ImageDetections, clip_boxes, detections_to_images, examples_to_truths
from refinedet_tf.inference.detector import Detector

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


class Predictor:
    """Predictions made up in advance; notes the images it is shown."""

    def __init__(self, predictions):
        self.predictions = predictions
        self.seen = []

    def predict(self, images):
        self.seen += [tuple(batch.shape) for batch in images]
        return self.predictions


@pytest.fixture
def data(tmp_path):
    """The examples with images of their sizes."""
    examples = []
    for index, each in enumerate(EXAMPLES):
        path = tmp_path / f"{index}.png"
        Image.new("RGB", (each.width, each.height)).save(path)
        examples.append(dataclasses.replace(each, image_id=str(index), image_path=str(path)))
    return ExampleSet(examples, NAMES, [])


def in_pixels(predictions, examples):
    return detections_to_images(predictions, [(each.height, each.width) for each in examples])


def test_perfect_predictions_have_ap_1_and_see_every_image_once(data):
    predictor = Predictor(perfect_predictions())
    result = evaluate(predictor, data)
    assert result.ap_11_point == result.ap_area == 1.0
    assert result.coco_ap == pytest.approx(1.0)
    assert [row.ground_truths for row in result.voc.rows] == [1, 2]
    assert [row.detections for row in result.voc.rows] == [2, 2]
    assert predictor.seen == [(1, 100, 200, 3), (1, 300, 150, 3), (1, 80, 80, 3)]


def test_predictions_in_another_order_are_wrong(data):
    shifted = {key: np.roll(values, 1, axis=0) for key, values in perfect_predictions().items()}
    assert evaluate(Predictor(shifted), data).ap_area < 1


def test_a_model_a_detector_and_their_detections_give_the_same_numbers(tiny_model, tiny_config, data):
    named = ExampleSet(data.examples, tiny_config.classes, [])
    by_model = evaluate(tiny_model, named, batch_size=2)
    assert sum(len(image.scores) for image in by_model.detections) > 0
    assert evaluate(by_model.detections, named).as_dict() == by_model.as_dict()
    by_detector = evaluate(Detector.from_model(tiny_model), named)
    for one, other in zip(by_model.detections, by_detector.detections, strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=0.05)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)


def test_classes_in_another_order_are_refused(tiny_model, tiny_config, data):
    swapped = ExampleSet(data.examples, tiny_config.classes[::-1], [])
    for source in (tiny_model, Detector.from_model(tiny_model)):
        with pytest.raises(DataError, match="are circle, square, star; the data's are star, square, circle"):
            evaluate(source, swapped)


def test_result_for_json_and_for_people(data):
    result = evaluate(Predictor(perfect_predictions()), data)
    plain = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert plain["ap_11_point"] == plain["voc"]["mean_ap_11_point"] == 1.0
    assert plain["ap_area"] == plain["voc"]["mean_ap_area"] == 1.0
    assert plain["coco_ap"] == plain["coco"]["AP"] == pytest.approx(1.0)
    assert result.voc.table() in result.table() and result.coco.table() in result.table()


def test_coco_boxes_are_not_those_of_voc(data):
    # Under VOC's rules a box at the right and lower border loses a pixel, and all move by one.
    whole = [example(10, 10, [[0, 0, 10, 10]], [0]), example(10, 10, [[2, 2, 8, 8]], [0])]
    exact = [ImageDetections(each.boxes * 10.0, np.ones(1), np.zeros(1, int)) for each in whole]
    result = evaluate(exact, ExampleSet(whole, NAMES, []))
    assert result.coco_ap == pytest.approx(1.0)
    assert result.ap_area == 1.0  # (2, 2, 8, 8) moved by (1, 1): 36 of 62 pixels
    beyond = [
        ImageDetections(found.boxes + np.array([-5, -5, 5, 5]), found.scores, found.classes) for found in exact[:1]
    ]
    clipped = evaluate(beyond, ExampleSet(whole[:1], NAMES, []))
    assert clipped.coco_ap == pytest.approx(1.0)
    np.testing.assert_array_equal(clipped.detections[0].boxes, [[-5, -5, 15, 15]])


def test_detections_become_pixels():
    detections = {
        "boxes": np.array([[[0.25, 0.5, 0.5, 0.75], [-0.1, -2, 1.0, 1.3], [9, 9, 9, 9]]], np.float32),
        "scores": np.array([[0.9, 0.8, 0.7]], np.float32),
        "classes": np.array([[1, 0, -1]]),
        "num_detections": np.array([2]),
    }
    [image] = detections_to_images(detections, [(100, 200)])
    np.testing.assert_allclose(image.boxes, [[50, 50, 100, 75], [-20, -200, 200, 130]], rtol=1e-6)
    clipped = clip_boxes(image, 199, 99, offset=1)
    np.testing.assert_array_equal(clipped.boxes, [[51, 51, 101, 76], [1, 1, 200, 100]])
    np.testing.assert_array_equal(image.classes, [1, 0])
    np.testing.assert_allclose(image.scores, [0.9, 0.8])


def test_what_is_compared_cannot_be_exchanged():
    (truth,) = examples_to_truths(EXAMPLES[:1])
    found = ImageDetections(truth.boxes, np.ones(2), truth.classes)
    for each in (truth, found):
        with pytest.raises(dataclasses.FrozenInstanceError):
            each.boxes = truth.boxes + 1


def test_detections_are_counted_from_1_as_published():
    # Height 1 pixel in the annotation's terms: the shift by one pixel leaves no overlap.
    thin = [example(100, 100, [[10, 50, 90, 50]], [0])]
    exact = ImageDetections(np.array([[10.0, 50, 90, 50]]), np.ones(1), np.zeros(1, int))
    data = ExampleSet(thin, NAMES, [])
    assert evaluate([exact], data).voc.rows[0].ap_area == 0
    shifted = dataclasses.replace(exact, boxes=exact.boxes - 1)
    assert evaluate([shifted], data).voc.rows[0].ap_area == 1
    for box in ([10, 100, 90, 100], [100, 10, 100, 90]):  # the last row and the last column stay where they are
        at_border = dataclasses.replace(exact, boxes=np.array([box]) - 1.0)
        assert evaluate([at_border], ExampleSet([example(100, 100, [box], [0])], NAMES, [])).voc.rows[0].ap_area == 1


def test_truths_are_the_annotations_pixels():
    boxes = [[48, 240, 195, 371], [8, 12, 352, 498]]
    [truth] = examples_to_truths([example(500, 353, boxes, [0, 1], [False, True])])
    # The relative boxes are float32: 2^-24 of 500 pixels.
    np.testing.assert_allclose(truth.boxes, boxes, atol=1e-4)
    np.testing.assert_array_equal(truth.difficult, [False, True])


@pytest.mark.parametrize("count", [2, 4])
def test_predictions_for_another_number_of_images_are_refused(count, data):
    predictions = {key: np.resize(values, (count, *values.shape[1:])) for key, values in perfect_predictions().items()}
    with pytest.raises(ValueError, match=f"{count} images but 3 examples"):
        evaluate(Predictor(predictions), data)
    with pytest.raises(ValueError, match="1 images but 3 examples"):
        evaluate(in_pixels(perfect_predictions(), EXAMPLES)[:1], data)
