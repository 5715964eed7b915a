"""Error analysis on planted errors, by hand, and beside the authors' package where it is installed."""

import dataclasses

import numpy as np
import pytest

from refinedet_tf.evaluation.analysis.cost import average_precision_101, cost_by_size, cost_of_errors
from refinedet_tf.evaluation.analysis.curves import best_score_thresholds, calibration, class_curves
from refinedet_tf.evaluation.analysis.errors import BACKGROUND, CORRECT, IGNORED, KINDS, find_errors
from refinedet_tf.evaluation.analysis.labels import suspicious_labels, worst_images
from refinedet_tf.evaluation.coco import coco_average_precision
from refinedet_tf.evaluation.images import ImageDetections, ImageTruth, examples_to_truths
from tests.evaluation.analysis.planted import CLASSES, PLANTED, planted


@pytest.fixture(scope="module")
def case():
    data, detections, log = planted()
    return data, detections, log, find_errors(detections, examples_to_truths(data.examples), len(CLASSES))


def random_case(seed, images=20, one_of_each=False):
    """Detections near objects and elsewhere, every score different."""
    rng = np.random.default_rng(seed)
    detections, truths = [], []
    for _ in range(images):
        corners = rng.uniform(0, 150, (3 if one_of_each else rng.integers(1, 6), 2))
        boxes = np.concatenate([corners, corners + rng.uniform(10, 80, corners.shape)], axis=1)
        classes = np.arange(3) if one_of_each else rng.integers(0, 3, len(boxes))
        truths.append(ImageTruth(boxes, classes, np.zeros(len(boxes), bool)))
        near = np.repeat(boxes, 4, axis=0) + rng.normal(0, 12, (4 * len(boxes), 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 2)
        labels = np.where(rng.random(len(near)) < 0.7, np.repeat(classes, 4), rng.integers(0, 3, len(near)))
        detections.append(ImageDetections(near, rng.random(len(near)), labels))
    return detections, truths


def test_the_planted_errors_are_found(case):
    data, _, log, errors = case
    assert errors.counts() == PLANTED
    for name, kind in KINDS.items():
        where = {(errors.image[index], errors.target[index]) for index in np.flatnonzero(errors.kind == kind)}
        expected = {(image, -1 if name == "background" else 4 * image + number)
                    for planted_kind, image, number in log if planted_kind == name}  # fmt: skip
        assert where == expected
    missed = {(index // 4, index % 4) for index in np.flatnonzero(errors.missed)}
    assert missed == {(image, number) for kind, image, number in log if kind == "missed"}
    assert (errors.kind == CORRECT).sum() == 4 * len(data) - 10 - 5 - 3


def test_without_its_errors_the_detector_is_perfect(case):
    data, detections, _, errors = case
    overall, classes = cost_of_errors(errors, len(CLASSES))
    assert overall.ap == pytest.approx(
        coco_average_precision(detections, examples_to_truths(data.examples), CLASSES).metrics["AP50"]
    )
    assert overall.counts == PLANTED and overall.objects == 4 * len(data)
    assert overall.ap == pytest.approx(np.mean([each.ap for each in classes]))
    assert all(overall.gain[name] > 0 for name in ("localization", "classification", "missed"))
    # Low scores: these errors rank below all correct detections and cost nothing.
    assert all(overall.gain[name] == 0 for name in ("duplicate", "background", "both"))
    only_shifts = [image for image in range(len(data)) if {
        kind for kind, where, _ in case[2] if where == image} <= {"localization"}]  # fmt: skip
    truths = examples_to_truths(data.examples)
    some = find_errors([detections[i] for i in only_shifts], [truths[i] for i in only_shifts], 3)
    overall, _ = cost_of_errors(some, 3)
    assert overall.ap < 1 and overall.ap + overall.gain["localization"] == pytest.approx(1.0)


def test_sizes_add_up(case):
    data, _, _, errors = case
    by_size = cost_by_size(errors, len(CLASSES))
    assert sum(cost.objects for cost in by_size.values()) == 4 * len(data)
    assert by_size["small"].objects == 0 and np.isnan(by_size["small"].ap)
    assert by_size["small"].counts["background"] == 4  # 20 x 20 pixels
    for name in ("localization", "classification", "missed"):
        assert by_size["medium"].counts[name] + by_size["large"].counts[name] == PLANTED[name]


def test_confusion_tells_where_the_wrong_classes_went(case):
    data, _, log, errors = case
    matrix = errors.confusion(3)
    expected = np.zeros([4, 4], int)
    for kind, image, number in log:
        label = data.examples[image].classes[number]
        if kind == "classification":
            expected[label, (label + 1) % 3] += 1
        elif kind in ("missed", "localization"):
            expected[label, 3] += 1
            expected[3, label] += kind == "localization"
        else:
            expected[3, (label + 1) % 3 if kind == "both" else label] += 1
    for index in range(3):
        objects = sum((each.classes == index).sum() for each in data.examples)
        expected[index, index] = objects - expected[index].sum()
    np.testing.assert_array_equal(matrix, expected)


def test_difficult_objects_are_neither_errors_nor_missed():
    truth = ImageTruth(np.array([[0, 0, 50, 50], [100, 0, 150, 50.0]]), np.array([0, 0]), np.array([True, False]))
    found = ImageDetections(np.array([[0, 0, 50, 50], [10, 10, 30, 30], [100, 0, 150, 50.0]]),
                            np.array([0.9, 0.8, 0.7]), np.zeros(3, int))  # fmt: skip
    errors = find_errors([found], [truth], 1)
    assert errors.kind.tolist() == [IGNORED, IGNORED, CORRECT]
    assert set(errors.counts().values()) == {0}
    assert cost_of_errors(errors, 1)[0].ap == 1.0
    assert find_errors([ImageDetections(np.zeros([0, 4]), np.zeros(0), np.zeros(0, int))], [truth], 1).counts() == {
        **dict.fromkeys(KINDS, 0), "missed": 1}  # fmt: skip


def test_detections_in_ignored_boxes_are_no_errors_of_any_class():
    nothing, ignored = np.zeros([0, 4]), np.array([[0, 0, 50, 50.0]])
    empty = ImageTruth(nothing, np.zeros(0, int), np.zeros(0, bool), ignored=ignored)
    truth = ImageTruth(np.array([[0, 0, 50, 40.0]]), np.zeros(1, int), np.zeros(1, bool), ignored=ignored)
    found = ImageDetections(np.array([[0, 0, 50, 50], [10, 10, 30, 30], [40, 40, 90, 90.0]]),
                            np.array([0.9, 0.8, 0.7]), np.array([0, 1, 1]))  # fmt: skip
    assert find_errors([found], [empty], 2).kind.tolist() == [IGNORED, IGNORED, BACKGROUND]
    assert find_errors([found], [truth], 2).kind.tolist() == [CORRECT, IGNORED, BACKGROUND]


@pytest.mark.parametrize("seed", range(4))
def test_ap_is_that_of_coco(seed):
    # 23 objects of each class: no recall equals a point such as 0.07, which pycocotools rounds upwards.
    detections, truths = random_case(seed, images=23, one_of_each=True)
    ignored = np.random.default_rng(seed).uniform([0, 0, 60, 60], [60, 60, 230, 230], (2, 4))
    truths = [dataclasses.replace(truth, ignored=ignored) for truth in truths]
    overall, _ = cost_of_errors(find_errors(detections, truths, 3), 3)
    assert overall.ap == pytest.approx(coco_average_precision(detections, truths, "abc").metrics["AP50"], abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_costs_and_counts_are_those_of_the_authors_package(seed):
    tidecv = pytest.importorskip("tidecv")
    detections, truths = random_case(seed)
    objects, found = tidecv.Data("truth"), tidecv.Data("found", max_dets=1000)
    for image, (truth, each) in enumerate(zip(truths, detections, strict=True)):
        for box, label in zip(truth.boxes, truth.classes, strict=True):
            objects.add_ground_truth(image, int(label), [*box[:2], *(box[2:] - box[:2])])
        for box, score, label in zip(each.boxes, each.scores, each.classes, strict=True):
            found.add_detection(image, int(label), float(score), [*box[:2], *(box[2:] - box[:2])])
    tide = tidecv.TIDE()
    run = tide.evaluate(objects, found, mode=tidecv.TIDE.BOX)
    expected = tide.get_main_errors()["found"]
    names = {"Cls": "classification", "Loc": "localization", "Both": "both", "Dupe": "duplicate",
             "Bkg": "background", "Miss": "missed"}  # fmt: skip
    overall, _ = cost_of_errors(find_errors(detections, truths, 3), 3)
    assert 100 * overall.ap == pytest.approx(run.ap, abs=1e-6)
    for short, name in names.items():
        assert 100 * overall.gain[name] == pytest.approx(expected[short], abs=1e-6), name
    counts = {type_.short_name: count for type_, count in run.count_errors().items()}
    assert {names[short]: count for short, count in counts.items()} == overall.counts


def test_average_precision_by_hand():
    scores, hits = np.array([0.9, 0.8, 0.7]), np.array([True, False, True])
    assert average_precision_101(scores, hits, 3) == pytest.approx((34 + 33 * 2 / 3) / 101)
    assert average_precision_101(scores, np.zeros(3, bool), 3) == 0
    assert average_precision_101(np.zeros(0), np.zeros(0, bool), 3) == 0
    assert np.isnan(average_precision_101(scores, hits, 0))


def test_the_best_threshold_keeps_what_pays():
    # One class, four objects; hits at 0.9, 0.8, 0.6, misses at 0.7 and 0.3, 0.2.
    boxes = np.array([[100.0 * i, 0, 100 * i + 50, 50] for i in range(7)])
    truth = ImageTruth(boxes[:4], np.zeros(4, int), np.zeros(4, bool))
    found = ImageDetections(boxes[[0, 1, 4, 2, 5, 6]], np.array([0.9, 0.8, 0.7, 0.6, 0.3, 0.2]), np.zeros(6, int))
    errors = find_errors([found], [truth], 2)
    curves = class_curves(errors, 2)
    np.testing.assert_allclose(curves[0].precision, [1, 1, 2 / 3, 3 / 4, 3 / 5, 1 / 2])
    np.testing.assert_allclose(curves[0].recall, [1 / 4, 1 / 2, 1 / 2, 3 / 4, 3 / 4, 3 / 4])
    assert best_score_thresholds(curves, ["a", "b"]) == {"a": 0.45}
    assert curves[0].at(0.45) == (pytest.approx(0.75), pytest.approx(0.75), pytest.approx(0.75))
    assert curves[0].at(0.6) == curves[0].at(0.45)
    assert curves[0].at(0.95)[1:] == (0.0, 0.0) and np.isnan(curves[0].at(0.95)[0])


@pytest.mark.parametrize("seed", range(3))
def test_no_threshold_is_better_than_the_best(seed):
    detections, truths = random_case(seed)
    coarse = [dataclasses.replace(each, scores=np.ceil(each.scores * 10) / 10) for each in detections]  # many ties
    curves = class_curves(find_errors(coarse, truths, 3), 3)
    thresholds = best_score_thresholds(curves, "abc")
    for name, curve in zip("abc", curves, strict=True):
        best = curve.at(thresholds[name])[2]
        assert best == pytest.approx(max(curve.at(score)[2] for score in curve.scores))
        kept = [(each.scores >= thresholds[name]) & (each.classes == "abc".index(name)) for each in coarse]
        errors = find_errors(
            [ImageDetections(each.boxes[keep], each.scores[keep], each.classes[keep])
             for each, keep in zip(coarse, kept, strict=True)], truths, 3)  # fmt: skip
        hits, count = (errors.kind == CORRECT).sum(), len(errors.kind)
        assert best == pytest.approx(2 * hits / (count + curve.objects))


def test_calibration_by_hand():
    boxes = np.array([[100.0 * i, 0, 100 * i + 50, 50] for i in range(6)])
    truth = ImageTruth(boxes[:3], np.zeros(3, int), np.zeros(3, bool))
    found = ImageDetections(boxes[[0, 1, 3, 4]], np.array([0.92, 0.98, 0.94, 0.5]), np.zeros(4, int))
    result = calibration(find_errors([found], [truth], 1))
    assert result.counts.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 3]
    assert result.precision[9] == pytest.approx(2 / 3) and result.mean_score[9] == pytest.approx(2.84 / 3)
    assert result.error == pytest.approx((abs(2.84 - 2) + 0.5) / 4)


def test_suspicious_labels_and_worst_images(case):
    data, _, log, errors = case
    suspicions = suspicious_labels(errors, errors, data)
    confident = [each for each in suspicions if each.score is not None]
    assert len(confident) == PLANTED["background"] + PLANTED["classification"]
    assert sorted((each.score for each in confident), reverse=True) == [each.score for each in confident]
    assert {each.image for each in confident} == {
        image for kind, image, _ in log if kind in ("background", "classification")}  # fmt: skip
    unfound = [each for each in suspicions if each.score is None]
    assert len(unfound) == PLANTED["missed"] + PLANTED["localization"]
    by_kind = {(image, number): kind for kind, image, number in log}
    assert all(by_kind[each.image, _number(data, each)] in ("missed", "localization") for each in unfound)
    assert [by_kind[each.image, _number(data, each)] for each in unfound[:3]] == ["missed"] * 3
    worst = worst_images(errors, data, limit=100)
    assert {each.image for each in worst} == {image for _, image, _ in log}
    assert sorted((each.badness for each in worst), reverse=True) == [each.badness for each in worst]
    [only] = [each for each in worst if each.image == worst[0].image]
    planted_here = sorted(kind for kind, image, _ in log if image == only.image)
    found_here = sorted(kind for part in only.reason.split(", ")
                        for kind in [part.split()[1]] * int(part.split()[0]))  # fmt: skip
    assert found_here == planted_here


def _number(data, suspicion):
    boxes = data.examples[suspicion.image].boxes * 400
    return int(np.abs(boxes - suspicion.box).sum(axis=1).argmin())
