import numpy as np
import pytest
import tensorflow as tf

from refinedet_tf.ops import detections as ops
from refinedet_tf.ops.anchors import generate_anchors
from tests import slow_reference as slow

ANCHORS = generate_anchors((64, 64), (32, 64, 128, 256))


def random_predictions(rng, batch=2, classes=3, spread=2.0):
    """Scores without ties, a third of the anchors filtered, boxes moved by about a tenth of their size."""
    count = len(ANCHORS)
    arm_objectness = rng.normal(0, 1, (batch, count, 2))
    arm_objectness[rng.uniform(size=(batch, count)) < 0.33, 0] += 8
    predictions = {
        "arm_objectness": arm_objectness,
        "arm_offsets": rng.normal(0, 1, (batch, count, 4)),
        "odm_classes": rng.normal(0, spread, (batch, count, 1 + classes)),
        "odm_offsets": rng.normal(0, 1, (batch, count, 4)),
    }
    return {name: value.astype(np.float32) for name, value in predictions.items()}


def one_image(predictions, index):
    return {name: value[index] for name, value in predictions.items()}


@pytest.mark.parametrize("suppression", ["per_class", "across_classes"])
@pytest.mark.parametrize(
    ("top_k", "max_detections", "score_threshold", "iou_threshold"),
    [
        (1000, 500, 0.01, 0.45),
        (40, 25, 0.01, 0.45),
        (7, 500, 0.3, 0.2),
        (0, 60, 0.01, 0.7),
        (1, 2, 0.01, 0.45),
    ],
)
def test_detections_equal_the_pipeline_in_plain_loops(
    top_k, max_detections, score_threshold, iou_threshold, suppression
):
    predictions = random_predictions(np.random.default_rng(top_k + max_detections))
    boxes, scores = ops.decode_predictions(predictions, ANCHORS, 0.01)
    found = ops.suppress(
        boxes,
        scores,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        pre_suppression_top_k=top_k,
        max_detections=max_detections,
        suppression=suppression,
    )
    for index in range(2):
        expected = slow.detections_of_image(
            one_image(predictions, index),
            ANCHORS,
            objectness_threshold=0.01,
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            top_k=top_k,
            max_detections=max_detections,
            across_classes=suppression == "across_classes",
        )
        count = int(found["num_detections"][index])
        assert count == len(expected) > 0
        np.testing.assert_allclose(found["scores"][index, :count], [row[0] for row in expected], rtol=1e-5)
        np.testing.assert_array_equal(found["classes"][index, :count], [row[1] for row in expected])
        np.testing.assert_allclose(found["boxes"][index, :count], [row[2] for row in expected], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("suppression", ["per_class", "across_classes"])
def test_rows_behind_the_last_detection_are_padding(suppression):
    boxes = tf.constant([[[0.1, 0.1, 0.4, 0.4], [0.6, 0.6, 0.9, 0.9]], [[0.1, 0.1, 0.4, 0.4], [0.6, 0.6, 0.9, 0.9]]])
    scores = tf.constant([[[0.9, 0.0], [0.0, 0.8]], [[0.0, 0.0], [0.0, 0.0]]])
    found = ops.suppress(
        boxes,
        scores,
        score_threshold=0.01,
        iou_threshold=0.45,
        pre_suppression_top_k=0,
        max_detections=4,
        suppression=suppression,
    )
    np.testing.assert_array_equal(found["num_detections"], [2, 0])
    np.testing.assert_array_equal(found["classes"], [[0, 1, -1, -1], [-1, -1, -1, -1]])
    np.testing.assert_array_equal(found["scores"], np.array([[0.9, 0.8, 0, 0], [0, 0, 0, 0]], np.float32))
    np.testing.assert_array_equal(found["boxes"][0, :2], boxes[0])
    np.testing.assert_array_equal(found["boxes"][0, 2:], np.zeros([2, 4]))
    np.testing.assert_array_equal(found["boxes"][1], np.zeros([4, 4]))
    assert (found["classes"].dtype, found["num_detections"].dtype) == (tf.int32, tf.int32)


def suppress_three(iou_threshold=0.45, score_threshold=0.01, scores=(0.9, 0.8, 0.7), suppression="per_class"):
    """The second box has IoU 1/2 with the first; the third 1/3 with the first, 5/7 with the second."""
    boxes = tf.constant([[[-1.0, -1.0, 2.0, 0.0], [0.0, -1.0, 3.0, 0.0], [0.5, -1.0, 3.5, 0.0]]])
    scores = tf.constant([[[score] for score in scores]])
    return ops.suppress(
        boxes,
        scores,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        pre_suppression_top_k=0,
        max_detections=3,
        suppression=suppression,
    )


@pytest.mark.parametrize("suppression", ["per_class", "across_classes"])
def test_a_box_is_compared_with_kept_boxes_only(suppression):
    # The second goes because of the first; the third overlaps the second most, which is no longer there.
    np.testing.assert_allclose(suppress_three(suppression=suppression)["scores"], [[0.9, 0.7, 0]])
    np.testing.assert_array_equal(suppress_three(suppression=suppression)["boxes"][0, 1], [0.5, -1, 3.5, 0])


@pytest.mark.parametrize("suppression", ["per_class", "across_classes"])
def test_overlap_equal_to_the_threshold_is_kept(suppression):
    np.testing.assert_allclose(
        suppress_three(0.5, scores=(0.9, 0.8, 0.0), suppression=suppression)["scores"], [[0.9, 0.8, 0]]
    )
    np.testing.assert_allclose(
        suppress_three(0.4999, scores=(0.9, 0.8, 0.0), suppression=suppression)["scores"], [[0.9, 0, 0]]
    )


@pytest.mark.parametrize("suppression", ["per_class", "across_classes"])
def test_score_equal_to_the_threshold_is_no_detection(suppression):
    found = suppress_three(1.0, score_threshold=0.5, scores=(0.75, 0.5, 0.25), suppression=suppression)
    np.testing.assert_array_equal(found["scores"], [[0.75, 0, 0]])


@pytest.mark.parametrize(
    ("suppression", "classes", "scores"),
    [("per_class", [1, 0, 2], [0.5, 0.3, 0.25]), ("across_classes", [1, -1, -1], [0.5, 0, 0])],
)
def test_classes_suppress_one_another_only_where_asked_for(suppression, classes, scores):
    """The first anchor is of two classes, and the second overlaps it fully with a third."""
    boxes = tf.constant([[[0.1, 0.1, 0.4, 0.4], [0.1, 0.1, 0.4, 0.4]]])
    found = ops.suppress(
        boxes,
        tf.constant([[[0.3, 0.5, 0.0], [0.0, 0.0, 0.25]]]),
        score_threshold=0.01,
        iou_threshold=0.45,
        pre_suppression_top_k=0,
        max_detections=3,
        suppression=suppression,
    )
    np.testing.assert_array_equal(found["classes"], [classes])
    np.testing.assert_array_equal(found["scores"], np.float32([scores]))
    count = np.count_nonzero(scores)
    np.testing.assert_array_equal(found["boxes"][0, :count], tf.repeat(boxes[0, :1], count, axis=0))


def test_across_classes_equal_scores_are_told_apart():
    """Three separate boxes of three classes with the same score keep their own class and box, in order."""
    boxes = tf.constant([[[0.0, 0.0, 0.2, 0.2], [0.3, 0.3, 0.5, 0.5], [0.6, 0.6, 0.8, 0.8]]])
    found = ops.suppress(
        boxes,
        tf.constant([[[0.0, 0.0, 0.7], [0.7, 0.0, 0.0], [0.0, 0.7, 0.1]]]),
        score_threshold=0.2,
        iou_threshold=1.0,
        pre_suppression_top_k=0,
        max_detections=5,
        suppression="across_classes",
    )
    np.testing.assert_array_equal(found["classes"], [[2, 0, 1, -1, -1]])
    np.testing.assert_array_equal(found["boxes"][:, :3], boxes)
    np.testing.assert_array_equal(found["scores"], np.float32([[0.7, 0.7, 0.7, 0, 0]]))


@pytest.mark.parametrize("k", [1, 4, 19, 20, 50])
def test_keep_top_k_keeps_the_best_of_each_class_of_each_image(k):
    scores = np.random.default_rng(k).uniform(0.1, 1, (3, 20, 5)).astype(np.float32)
    kept = ops.keep_top_k(scores, k)
    for image in range(3):
        for label in range(5):
            expected = scores[image, :, label].copy()
            expected[np.argsort(-expected)[k:]] = 0
            np.testing.assert_array_equal(kept[image, :, label], expected)


def test_keep_top_k_of_zero_keeps_all_and_ties_with_the_last_stay():
    scores = tf.constant([[[0.5], [0.2], [0.5], [0.9], [0.5]]])
    np.testing.assert_array_equal(ops.keep_top_k(scores, 0), scores)
    np.testing.assert_array_equal(ops.keep_top_k(scores, 2)[0, :, 0], np.array([0.5, 0, 0.5, 0.9, 0.5], np.float32))


def test_objectness_is_the_softmax_of_both_logits():
    logits = np.random.default_rng(0).normal(0, 5, (2, 50, 2)).astype(np.float32)
    objectness = ops.objectness({"arm_objectness": tf.constant(logits)})
    np.testing.assert_allclose(objectness, tf.nn.softmax(logits)[..., 1], rtol=1e-5)
    certain = ops.objectness({"arm_objectness": tf.constant([[[-1e4, 1e4], [1e4, -1e4]]])})
    np.testing.assert_array_equal(certain, [[1, 0]])


def test_filter_takes_every_class_of_anchors_below_the_threshold_and_none_at_it():
    predictions = random_predictions(np.random.default_rng(5))
    predictions["arm_objectness"][:, :10] = 1.5  # two equal logits: exactly one half
    boxes, scores = ops.decode_predictions(predictions, ANCHORS, 0.5)
    objectness = ops.objectness(predictions).numpy()
    assert not scores.numpy()[objectness < 0.5].any()
    assert (scores.numpy()[:, :10] > 0).all()
    everything = tf.nn.softmax(predictions["odm_classes"])[..., 1:].numpy()
    np.testing.assert_array_equal(scores.numpy()[objectness >= 0.5], everything[objectness >= 0.5])
    unfiltered_boxes, unfiltered = ops.decode_predictions(predictions, ANCHORS, 0.0)
    np.testing.assert_array_equal(unfiltered, everything)
    np.testing.assert_array_equal(unfiltered_boxes, boxes)
