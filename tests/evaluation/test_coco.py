"""COCO average precision on cases that can be worked out by hand."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from refinedet_tf.evaluation.coco import CLASS_METRICS, METRICS, coco_average_precision
from refinedet_tf.evaluation.images import ImageDetections, ImageTruth

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


def metrics(detections, truths, classes):
    return coco_average_precision(detections, truths, classes).metrics


def test_perfect_detections_have_ap_1_at_every_size_and_nothing_is_printed(capfd):
    result = metrics(
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
    result = metrics([found([[200, 200, 400, 325]], [0.9])], [truth([LARGE])], ["a"])
    assert result["AP"] == pytest.approx(0.3)
    assert result["AR100"] == pytest.approx(0.3)
    assert (result["AP50"], result["AP75"]) == (pytest.approx(1.0), 0.0)
    assert np.isnan(result["AP_small"]) and np.isnan(result["AP_medium"])


def test_precision_is_read_at_101_points_of_recall():
    # Ranked: hit, miss, hit; a third object is missed. Recall 1/3 with precision 1 (points 0 to 0.33),
    # 2/3 with precision 2/3 (0.34 to 0.66), then nothing.
    boxes = [[0, 0, 50, 50], [100, 0, 150, 50], [200, 0, 250, 50]]
    result = metrics([found([boxes[0], [300, 300, 350, 350], boxes[1]], [0.9, 0.8, 0.7])], [truth(boxes)], ["a"])
    assert result["AP50"] == pytest.approx((34 + 33 * 2 / 3) / 101)
    assert result["AP"] == pytest.approx(result["AP50"])


def test_boxes_have_no_extra_pixel():
    # 10 x 8.99 inside 10 x 10: IoU 0.899, a hit up to 0.85; with an extra pixel it would be 9.99 / 11 = 0.908.
    result = metrics([found([[0, 0, 10, 8.99]], [0.9])], [truth([[0, 0, 10, 10]])], ["a"])
    assert result["AP"] == pytest.approx(0.8)


def test_difficult_objects_neither_help_nor_hurt():
    result = metrics([found([LARGE, MEDIUM], [0.9, 0.8])], [truth([LARGE, MEDIUM], difficult=[True, False])], ["a"])
    assert result["AP"] == pytest.approx(1.0)
    assert np.isnan(result["AP_large"])


def test_detections_in_ignored_objects_are_no_errors_of_any_class():
    part = [210, 210, 390, 300]  # lies in LARGE, with an IoU of 0.41 to it
    detections = [found([part, LARGE, MEDIUM], [0.9, 0.8, 0.7], np.array([0, 1, 0])), found([LARGE], [0.6])]
    truths = [truth([MEDIUM, SMALL], [0, 1]), truth([])]
    with_ignored = [ImageTruth(truths[0].boxes, truths[0].classes, truths[0].difficult, ignored=np.array([LARGE]))]
    result = coco_average_precision(detections, [*with_ignored, truths[1]], ["a", "b"])
    assert result.classes["a"]["AP"] == pytest.approx(1.0) and result.classes["b"]["AP"] == 0
    assert coco_average_precision(detections, truths, ["a", "b"]).classes["a"]["AP"] == pytest.approx(0.5)
    assert np.isnan(result.metrics["AP_large"])


def test_nothing_found_is_0_and_nothing_to_find_is_nan():
    assert metrics([found([], [])], [truth([MEDIUM])], ["a"])["AP"] == 0
    assert np.isnan(metrics([found([MEDIUM], [0.9])], [truth([])], ["a"])["AP"])


def test_unknown_class_is_named():
    with pytest.raises(ValueError, match="detection has class 2, but there are 1 classes"):
        metrics([found([MEDIUM], [0.9], np.array([2]))], [truth([MEDIUM])], ["a"])


def test_classes_have_their_own_numbers_and_the_means_come_last():
    boxes = [[0, 0, 50, 50], [100, 0, 150, 50]]
    result = coco_average_precision(
        [found([*boxes, [0, 100, 50, 150]], [0.9, 0.8, 0.7], np.array([0, 0, 1]))],
        [truth([*boxes, [0, 100, 50, 150], [200, 200, 210, 210]], [0, 0, 1, 1])],
        ["a", "b", "c"],
    )
    assert result.classes["a"] == {name: pytest.approx(1.0, nan_ok=True) for name in CLASS_METRICS} | {
        "AP_small": pytest.approx(np.nan, nan_ok=True), "AP_large": pytest.approx(np.nan, nan_ok=True)}  # fmt: skip
    assert result.classes["b"]["AP50"] == pytest.approx(51 / 101)  # recall 1/2: points 0 to 0.5
    assert (result.classes["b"]["AR100"], result.classes["b"]["AP_small"]) == (0.5, 0.0)
    assert all(np.isnan(value) for value in result.classes["c"].values())
    for name in ("AP", "AP50", "AP75"):
        assert result.metrics[name] == pytest.approx((result.classes["a"][name] + result.classes["b"][name]) / 2)
    lines = [line.split() for line in result.table().splitlines() if not line.startswith("-")]
    assert [line[0] for line in lines] == ["class", "a", "b", "c", "mean", "AP", "AR1"]
    assert lines[3][1:] == ["-"] * len(CLASS_METRICS)
    plain = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert set(plain) == {*METRICS, "classes"} and plain["AP_large"] is None


def test_stated_areas_decide_on_the_size():
    boxes = [[0, 0, 50, 50], [100, 0, 150, 50]]
    truths = [ImageTruth(np.array(boxes, float), np.zeros(2, int), np.zeros(2, bool), np.array([900.0, 2500.0]))]
    result = metrics([found(boxes[:1], [0.9])], truths, ["a"])
    assert (result["AR_small"], result["AR_medium"]) == (pytest.approx(1.0), 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_equals_pycocotools_called_with_files(seed, tmp_path):
    rng = np.random.default_rng(seed)
    detections, truths = [], []
    for _ in range(12):
        corners = rng.uniform(0, 200, (rng.integers(0, 7), 2))
        boxes = np.concatenate([corners, corners + rng.uniform(5, 150, corners.shape)], axis=1)
        classes = rng.integers(0, 3, len(boxes))
        truths.append(ImageTruth(boxes, classes, rng.random(len(boxes)) < 0.2))
        near = np.repeat(boxes, 2, axis=0) + rng.normal(0, 6, (2 * len(boxes), 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        wrong = rng.random(len(near)) < 0.2
        detections.append(ImageDetections(near, rng.random(len(near)), np.where(wrong, 0, np.repeat(classes, 2))))

    images = [{"id": 10 + index, "width": 400, "height": 400} for index in range(12)]
    annotations, results = [], []
    for image, truth_, found_ in zip(images, truths, detections, strict=True):
        for box, label, crowd in zip(truth_.boxes, truth_.classes, truth_.difficult, strict=True):
            width, height = box[2:] - box[:2]
            annotations.append({"id": len(annotations) + 1, "image_id": image["id"], "category_id": int(label) + 1,
                                "bbox": [*box[:2], width, height], "area": width * height,
                                "iscrowd": int(crowd)})  # fmt: skip
        for box, label, score in zip(found_.boxes, found_.classes, found_.scores, strict=True):
            results.append({"image_id": image["id"], "category_id": int(label) + 1, "score": float(score),
                            "bbox": [*box[:2], *(box[2:] - box[:2])]})  # fmt: skip
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 3, "name": "c"}]
    (tmp_path / "truth.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    (tmp_path / "found.json").write_text(json.dumps(results))
    coco = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "found.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    expected = [value if value >= 0 else np.nan for value in evaluation.stats]
    result = metrics(detections, truths, ["a", "b", "c"])
    np.testing.assert_allclose([result[name] for name in METRICS], expected, rtol=1e-12)
