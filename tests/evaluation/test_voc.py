"""VOC average precision: golden numbers by hand, and a slow direct implementation beside the fast one."""

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refinedet_tf.evaluation.images import ImageDetections, ImageTruth
from refinedet_tf.evaluation.voc import pixel_iou, voc_average_precision

BOX = [10, 10, 49, 49]
FAR = [200, 200, 239, 239]


def found(*rows):
    """Detections of one image from (box, score) or (box, score, class)."""
    return ImageDetections(
        np.array([row[0] for row in rows], float).reshape(-1, 4),
        np.array([row[1] for row in rows], float),
        np.array([row[2] if len(row) > 2 else 0 for row in rows], int),
    )


def truth(*rows, ignored=()):
    """Objects of one image from (box,), (box, class) or (box, class, difficult), and ignored boxes."""
    return ImageTruth(
        np.array([row[0] for row in rows], float).reshape(-1, 4),
        np.array([row[1] if len(row) > 1 else 0 for row in rows], int),
        np.array([row[2] if len(row) > 2 else False for row in rows], bool),
        ignored=np.array(ignored, float).reshape(-1, 4),
    )


def one_class(detections, truths):
    return voc_average_precision(detections, truths, ["thing"]).rows[0]


def slow_iou(box, other):
    """The IoU of boxes that include their last pixel."""
    width = min(box[2], other[2]) - max(box[0], other[0]) + 1
    height = min(box[3], other[3]) - max(box[1], other[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(each[2] - each[0] + 1) * (each[3] - each[1] + 1) for each in (box, other)]
    return width * height / (sum(areas) - width * height)


def slow_rows(detections, truths, class_count, iou_threshold=0.5):
    """The definition read aloud, one detection at a time, in whole numbers and fractions."""
    rows = []
    for index in range(class_count):
        ranked = []
        for image, detected in enumerate(detections):
            for box, score, own in zip(detected.boxes, detected.scores, detected.classes, strict=True):
                if own == index:
                    ranked.append((score, image, box))
        ranked.sort(key=lambda entry: -entry[0])  # sorted() keeps the order of equals
        claimed = set()
        hits, misses, curve = 0, 0, []
        for _, image, box in ranked:
            best, best_object = 0.0, None
            for number, (other, own) in enumerate(zip(truths[image].boxes, truths[image].classes, strict=True)):
                if own == index and slow_iou(box, other) > best:
                    best, best_object = slow_iou(box, other), number
            if best > iou_threshold and truths[image].difficult[best_object]:
                continue
            if best > iou_threshold and (image, best_object) not in claimed:
                claimed.add((image, best_object))
                hits += 1
            elif any(slow_iou(box, other) > iou_threshold for other in truths[image].ignored):
                continue
            else:
                misses += 1
            curve.append((hits, Fraction(hits, hits + misses)))
        total = sum(
            int(own == index and not hard)
            for each in truths
            for own, hard in zip(each.classes, each.difficult, strict=True)
        )
        if not total:
            rows.append((None, None, curve))
            continue
        eleven = [
            max((precision for hits, precision in curve if Fraction(hits, total) >= Fraction(tenth, 10)), default=0)
            for tenth in range(11)
        ]
        area = sum(
            max((precision for hits, precision in curve if hits >= step), default=0) * Fraction(1, total)
            for step in range(1, total + 1)
        )
        rows.append((float(sum(eleven) / 11), float(area), curve))
    return rows


def random_case(rng, images=4, class_count=3):
    """Detections that are often shifted objects, many equal scores, difficult and ignored objects."""
    detections, truths = [], []
    for _ in range(images):
        objects = rng.integers(0, 5)
        corners = rng.integers(0, 40, (objects, 2))
        boxes = np.concatenate([corners, corners + rng.integers(4, 30, (objects, 2))], axis=1)
        classes = rng.integers(0, class_count, objects)
        ignored = boxes[:1] + rng.integers(0, 4, (1, 4))
        truths.append(ImageTruth(boxes.astype(float), classes, rng.random(objects) < 0.3, ignored=ignored))
        count = rng.integers(0, 9)
        if objects:
            chosen = rng.integers(0, objects, count)
            near = boxes[chosen] + rng.integers(-4, 5, (count, 4))
            near[:, 2:] = np.maximum(near[:, 2:], near[:, :2])
            own = np.where(rng.random(count) < 0.8, classes[chosen], rng.integers(0, class_count, count))
        else:
            near = np.tile([0, 0, 20, 20], (count, 1))
            own = rng.integers(0, class_count, count)
        detections.append(ImageDetections(near.astype(float), rng.integers(0, 6, count) / 5, own))
    return detections, truths


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_agrees_with_a_slow_direct_implementation(seed):
    detections, truths = random_case(np.random.default_rng(seed))
    rows = voc_average_precision(detections, truths, ["a", "b", "c"]).rows
    for row, (eleven, area, curve) in zip(rows, slow_rows(detections, truths, 3), strict=True):
        np.testing.assert_allclose(row.precision, [float(precision) for _, precision in curve], rtol=1e-12)
        if eleven is None:
            assert np.isnan(row.ap_11_point) and np.isnan(row.ap_area)
        else:
            np.testing.assert_allclose(row.recall, [hits / row.ground_truths for hits, _ in curve], rtol=1e-12)
            assert row.ap_11_point == pytest.approx(eleven, abs=1e-12)
            assert row.ap_area == pytest.approx(area, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_order_of_images_and_of_detections_does_not_matter_without_equal_scores(seed):
    rng = np.random.default_rng(seed)
    detections, truths = random_case(rng)
    detections = [ImageDetections(each.boxes, rng.random(len(each.scores)), each.classes) for each in detections]
    expected = voc_average_precision(detections, truths, "abc").as_dict()
    order = rng.permutation(len(truths))
    shuffled = []
    for index in order:
        each = detections[index]
        inner = rng.permutation(len(each.scores))
        shuffled.append(ImageDetections(each.boxes[inner], each.scores[inner], each.classes[inner]))
    assert voc_average_precision(shuffled, [truths[index] for index in order], "abc").as_dict() == expected


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_only_the_order_of_scores_counts(seed):
    detections, truths = random_case(np.random.default_rng(seed))
    squashed = [ImageDetections(each.boxes, np.tanh(each.scores) / 7, each.classes) for each in detections]
    assert (
        voc_average_precision(squashed, truths, "abc").as_dict()
        == voc_average_precision(detections, truths, "abc").as_dict()
    )


def test_perfect_detections_have_ap_1():
    result = voc_average_precision(
        [found((BOX, 0.9, 0), (FAR, 0.8, 1)), found((FAR, 0.7, 0))],
        [truth((BOX, 0), (FAR, 1)), truth((FAR, 0))],
        ["a", "b"],
    )
    assert [row.ap_11_point for row in result.rows] == [1.0, 1.0]
    assert [row.ap_area for row in result.rows] == [1.0, 1.0]
    assert result.mean_ap_11_point == result.mean_ap_area == 1.0


def test_nothing_found_is_ap_0():
    row = one_class([found()], [truth((BOX,))])
    assert (row.ap_11_point, row.ap_area, row.ground_truths, row.detections) == (0.0, 0.0, 1, 0)


def test_right_place_in_the_wrong_image_or_class_is_a_false_positive():
    assert one_class([found(), found((BOX, 0.9))], [truth((BOX,)), truth()]).ap_area == 0
    result = voc_average_precision([found((BOX, 0.9, 1))], [truth((BOX, 0))], ["a", "b"])
    assert result.rows[0].ap_area == 0
    assert result.rows[1].precision.tolist() == [0.0]


def test_second_detection_of_an_object_is_a_false_positive():
    # Ranked: hit, duplicate, hit. Precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
    row = one_class([found((BOX, 0.9), (BOX, 0.8), (FAR, 0.7))], [truth((BOX,), (FAR,))])
    np.testing.assert_allclose(row.precision, [1, 1 / 2, 2 / 3])
    np.testing.assert_allclose(row.recall, [0.5, 0.5, 1])
    assert row.ap_area == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    assert row.ap_11_point == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_duplicate_does_not_pass_on_to_a_second_object_that_it_also_overlaps():
    # Both detections overlap the first object most, and the second one with an IoU above 0.5 as well.
    near = [12, 10, 51, 49]
    row = one_class([found((BOX, 0.9), (BOX, 0.8))], [truth((BOX,), (near,))])
    np.testing.assert_allclose(row.precision, [1, 1 / 2])


def test_difficult_objects_neither_help_nor_hurt():
    easy = truth((BOX,))
    with_difficult = truth((BOX,), (FAR, 0, True))
    detections = [found((FAR, 0.95), (FAR, 0.94), (BOX, 0.9), ([100, 100, 120, 120], 0.8))]
    row = one_class(detections, [with_difficult])
    assert row.ground_truths == 1 and row.detections == 4
    np.testing.assert_allclose(row.precision, [1, 1 / 2])
    assert row.ap_area == 1.0
    assert one_class(detections, [easy]).ap_area == pytest.approx(1 / 3)


def test_detections_on_ignored_objects_are_no_errors_of_any_class():
    detections = [found((FAR, 0.95, 0), (FAR, 0.94, 1), (BOX, 0.9, 0), ([100, 100, 120, 120], 0.8, 0))]
    rows = voc_average_precision(detections, [truth((BOX, 0), (BOX, 1), ignored=[FAR])], ["a", "b"]).rows
    np.testing.assert_allclose(rows[0].precision, [1, 1 / 2])
    assert (rows[0].ground_truths, rows[0].detections, rows[1].ground_truths) == (1, 3, 1)
    assert len(rows[1].precision) == 0
    # The object of the class comes first, even if the ignored box fits better.
    near = truth(([10, 10, 49, 45],), ignored=[BOX])
    assert one_class([found((BOX, 0.9))], [near]).ap_area == 1.0


def test_class_with_difficult_objects_only_is_left_out_of_the_mean():
    result = voc_average_precision([found((BOX, 0.9, 0), (FAR, 0.9, 1))], [truth((BOX, 0), (FAR, 1, True))], ["a", "b"])
    assert np.isnan(result.rows[1].ap_11_point) and np.isnan(result.rows[1].ap_area)
    assert result.mean_ap_11_point == result.mean_ap_area == 1.0
    assert result.as_dict()["classes"]["b"]["ap_area"] is None


def test_iou_of_exactly_one_half_is_no_true_positive():
    # 10 x 10 pixels against the left 5 x 10 of them: 50 / 100.
    row = one_class([found(([0, 0, 4, 9], 0.9))], [truth(([0, 0, 9, 9],))])
    assert row.ap_area == 0
    row = one_class([found(([0, 0, 5, 9], 0.9))], [truth(([0, 0, 9, 9],))])
    assert row.ap_area == 1


def test_boxes_include_their_last_pixel():
    # Without the extra pixel the second box would have no area and the third would not touch the first.
    ious = pixel_iou(np.array([[0, 0, 1, 1]]), np.array([[0, 0, 0, 1], [1, 1, 2, 2], [2, 0, 3, 1]]))
    np.testing.assert_allclose(ious, [[2 / 4, 1 / 7, 0]])


def test_eleven_points_and_area_differ_on_a_known_curve():
    # Four objects, ranked hit, miss, hit, miss, miss, hit; the fourth is never found.
    boxes = [[100 * i, 0, 100 * i + 50, 50] for i in range(4)]
    miss = [0, 500, 50, 550]
    row = one_class(
        [found((boxes[0], 0.9), (miss, 0.8), (boxes[1], 0.7), (miss, 0.6), (miss, 0.5), (boxes[2], 0.4))],
        [truth(*((box,) for box in boxes))],
    )
    np.testing.assert_allclose(row.precision, [1, 1 / 2, 2 / 3, 1 / 2, 2 / 5, 1 / 2])
    # Recall 0, .1, .2 | .3, .4, .5 | .6, .7 | .8, .9, 1.
    assert row.ap_11_point == pytest.approx((3 * 1 + 3 * 2 / 3 + 2 * 1 / 2 + 0) / 11)
    assert row.ap_area == pytest.approx((1 + 2 / 3 + 1 / 2 + 0) / 4)


@pytest.mark.parametrize("hits", range(1, 11))
def test_recall_of_exact_tenths_reaches_its_point(hits):
    boxes = [[100 * i, 0, 100 * i + 50, 50] for i in range(10)]
    row = one_class([found(*((box, 0.9) for box in boxes[:hits]))], [truth(*((box,) for box in boxes))])
    assert row.ap_11_point == pytest.approx((hits + 1) / 11)
    assert row.ap_area == pytest.approx(hits / 10)


def test_equal_scores_rank_in_the_order_given():
    hit_first = one_class([found((BOX, 0.5), (FAR, 0.5))], [truth((BOX,))])
    miss_first = one_class([found((FAR, 0.5), (BOX, 0.5))], [truth((BOX,))])
    assert (hit_first.ap_area, miss_first.ap_area) == (1.0, 0.5)
    by_image = one_class([found((FAR, 0.5)), found((BOX, 0.5))], [truth(), truth((BOX,))])
    assert by_image.ap_area == 0.5


def test_table_shows_three_decimals_a_dash_and_the_means_last():
    result = voc_average_precision(
        [found((BOX, 0.9, 0), (BOX, 0.8, 2), (FAR, 0.9, 2))],
        [truth((BOX, 0), (BOX, 2))],
        ["aeroplane", "cat", "dog"],
    )
    lines = [line.split() for line in result.table().splitlines() if not line.startswith("-")]
    assert lines[1:] == [
        ["aeroplane", "1", "1", "1.000", "1.000"],
        ["cat", "0", "0", "-", "-"],
        ["dog", "1", "2", "0.500", "0.500"],
        ["mean", "2", "3", "0.750", "0.750"],
    ]
    assert len({len(line) for line in result.table().splitlines()}) == 1


def test_as_dict_survives_json():
    detections, truths = random_case(np.random.default_rng(1))
    result = voc_average_precision(detections, truths, ["a", "b", "c"])
    plain = result.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["classes"]["a"]["ap_area"] == result.rows[0].ap_area
    empty = voc_average_precision([found()], [truth()], ["a"]).as_dict()
    assert empty["mean_ap_area"] is None


def test_unusable_input_is_named():
    with pytest.raises(ValueError, match="2 images with detections but 1 with ground truth"):
        voc_average_precision([found(), found()], [truth()], ["a"])
    with pytest.raises(ValueError, match="no image"):
        voc_average_precision([], [], ["a"])
    with pytest.raises(ValueError, match="detection has class 3, but there are 2 classes"):
        voc_average_precision([found((BOX, 0.5, 3))], [truth()], ["a", "b"])
    with pytest.raises(ValueError, match="ground truth has class -1"):
        voc_average_precision([found()], [truth((BOX, -1))], ["a"])
    with pytest.raises(ValueError, match=r"scores has shape \(2,\) for 1 boxes"):
        ImageDetections(np.zeros([1, 4]), np.zeros(2), np.zeros(1))
    with pytest.raises(ValueError, match="boxes has shape"):
        ImageTruth(np.zeros([1, 5]), np.zeros(1), np.zeros(1))
