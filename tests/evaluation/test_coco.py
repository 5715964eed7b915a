"""COCO average precision on cases that can be worked out by hand."""

import numpy as np
import pytest

from refinedet_tf.evaluation.coco import coco_average_precision
from refinedet_tf.evaluation.voc import ImageDetections, ImageTruth

SMALL, MEDIUM, LARGE = [5, 5, 25, 25], [100, 100, 150, 150], [200, 200, 400, 400]


def found(boxes, scores, classes=None):
    boxes = np.array(boxes, float).reshape(-1, 4)
    return ImageDetections(boxes, np.array(scores, float), np.zeros(len(boxes), int) if classes is None else classes)


def truth(boxes, classes=None, difficult=None):
    boxes = np.array(boxes, float).reshape(-1, 4)
    return ImageTruth(
        boxes,
        np.zeros(len(boxes), int) if classes is None else np.array(classes),
        np.zeros(len(boxes), bool) if difficult is None else np.array(difficult),
    )


def test_perfect_detections_have_ap_1_at_every_size_and_nothing_is_printed(capfd):
    result = coco_average_precision(
        [found([SMALL, MEDIUM, LARGE], [0.9, 0.8, 0.7], np.array([0, 1, 1])), found([SMALL], [0.6], np.array([1]))],
        [truth([SMALL, MEDIUM, LARGE], [0, 1, 1]), truth([SMALL], [1])],
        ["a", "b"],
    )
    # The best detection alone of each image and class finds all of class a, and 2 of 3 objects of class b.
    assert result.pop("AR1") == pytest.approx((1 + 2 / 3) / 2)
    assert result == {name: pytest.approx(1.0) for name in (
        "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
        "AR10", "AR100", "AR_small", "AR_medium", "AR_large")}  # fmt: skip
    assert capfd.readouterr() == ("", "")


def test_loose_box_counts_up_to_its_iou():
    # 200 x 125 inside 200 x 200: IoU 0.625, so a hit at 0.5, 0.55 and 0.6 of the ten thresholds.
    result = coco_average_precision([found([[200, 200, 400, 325]], [0.9])], [truth([LARGE])], ["a"])
    assert result["AP"] == pytest.approx(0.3)
    assert result["AR100"] == pytest.approx(0.3)
    assert (result["AP50"], result["AP75"]) == (pytest.approx(1.0), 0.0)
    assert np.isnan(result["AP_small"]) and np.isnan(result["AP_medium"])


def test_precision_is_read_at_101_points_of_recall():
    # Ranked: hit, miss, hit; a third object is missed. Recall 1/3 with precision 1 (points 0 to 0.33),
    # 2/3 with precision 2/3 (0.34 to 0.66), then nothing.
    boxes = [[0, 0, 50, 50], [100, 0, 150, 50], [200, 0, 250, 50]]
    result = coco_average_precision(
        [found([boxes[0], [300, 300, 350, 350], boxes[1]], [0.9, 0.8, 0.7])], [truth(boxes)], ["a"]
    )
    assert result["AP50"] == pytest.approx((34 + 33 * 2 / 3) / 101)
    assert result["AP"] == pytest.approx(result["AP50"])


def test_boxes_have_no_extra_pixel():
    # 10 x 8.99 inside 10 x 10: IoU 0.899, a hit up to 0.85; with an extra pixel it would be 9.99 / 11 = 0.908.
    result = coco_average_precision([found([[0, 0, 10, 8.99]], [0.9])], [truth([[0, 0, 10, 10]])], ["a"])
    assert result["AP"] == pytest.approx(0.8)


def test_difficult_objects_neither_help_nor_hurt():
    result = coco_average_precision(
        [found([LARGE, MEDIUM], [0.9, 0.8])], [truth([LARGE, MEDIUM], difficult=[True, False])], ["a"]
    )
    assert result["AP"] == pytest.approx(1.0)
    assert np.isnan(result["AP_large"])


def test_nothing_found_is_0_and_nothing_to_find_is_nan():
    assert coco_average_precision([found([], [])], [truth([MEDIUM])], ["a"])["AP"] == 0
    assert np.isnan(coco_average_precision([found([MEDIUM], [0.9])], [truth([])], ["a"])["AP"])


def test_unknown_class_is_named():
    with pytest.raises(ValueError, match="detection has class 2, but there are 1 classes"):
        coco_average_precision([found([MEDIUM], [0.9], np.array([2]))], [truth([MEDIUM])], ["a"])
