"""The report: what it holds, that it is self-contained, and images made worse."""

import base64
import dataclasses
import io
import json
import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from refinedet_tf.evaluation.analysis import figures
from refinedet_tf.evaluation.analysis.analysis import analyze
from refinedet_tf.evaluation.analysis.report import write_report
from refinedet_tf.evaluation.evaluator import evaluate
from refinedet_tf.evaluation.images import ImageDetections
from refinedet_tf.evaluation.robustness import (
    CORRUPTIONS,
    RobustnessRow,
    blur,
    brighten,
    compress,
    evaluate_robustness,
    halve,
)
from tests.evaluation.analysis.planted import PLANTED, SIZE, planted


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The planted errors with images of noise, analyzed and written."""
    folder = tmp_path_factory.mktemp("report")
    data, detections, log = planted()
    noise = np.random.default_rng(0).integers(0, 255, (20, 20, 3)).astype(np.uint8)
    Image.fromarray(noise).resize((SIZE, SIZE)).save(folder / "photo.jpg")
    examples = [dataclasses.replace(each, image_path=str(folder / "photo.jpg")) for each in data.examples]
    data = dataclasses.replace(data, examples=examples, classes=["cat", "<dog>", "cow"])
    analysis = analyze(evaluate(detections, data), data)
    rows = [RobustnessRow("blur, 1 pixel", 0.5, 0.25, float("nan"))]
    page = write_report(analysis, data, folder / "out", title="model & more", robustness=rows)
    return analysis, data, log, page


def test_json_holds_the_planted_numbers(report):
    analysis, data, _, page = report
    content = json.loads((page.parent / "evaluation.json").read_text())
    assert content["errors"]["all"]["counts"] == PLANTED
    assert content["ap_area"] == analysis.result.ap_area
    assert content["score_thresholds"] == analysis.score_thresholds and set(analysis.score_thresholds) == set(
        data.classes
    )
    assert sum(sum(row) for row in content["confusion"]["counts"]) == analysis.confusion.sum()
    assert content["robustness"] == [
        {"name": "blur, 1 pixel", "ap_11_point": 0.5, "ap_area": 0.25, "coco_ap": None}
    ]  # fmt: skip
    # Scores of duplicates and the like are below 0.5, all others above 0.6.
    assert all(0.5 <= value < 0.75 for value in analysis.score_thresholds.values())
    shown = content["errors"]["counts_at_thresholds"]
    assert shown["duplicate"] == shown["background"] == shown["both"] == 0
    rates = content["at_thresholds"]["cat"]
    assert rates["f1"] == pytest.approx(
        2 * rates["precision"] * rates["recall"] / (rates["precision"] + rates["recall"])
    )


def test_the_page_needs_nothing_else(report):
    analysis, _, _, page = report
    text = page.read_text()
    links = re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', text)
    assert links == []
    assert "model &amp; more" in text and "&lt;dog&gt;" in text and "<dog>" not in text
    assert text.count("<svg") == 5
    assert text.count("data:image/jpeg;base64,") == len(analysis.worst) + len(analysis.suspicions)
    for each in analysis.worst:
        assert each.reason in text and each.image_id in text
    assert "blur, 1 pixel" in text
    assert analysis.worst[0].badness >= analysis.worst[-1].badness


def test_the_picture_of_an_image_has_its_own_errors(report, monkeypatch):
    analysis, data, log, _ = report
    drawn = []
    monkeypatch.setattr(figures, "_picture", lambda image, *parts: drawn.append(parts))
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    for index, example in enumerate(data.examples):
        figures.error_picture(image, analysis, index)
        boxes, texts, _, dashed = (np.array(part) for part in drawn[-1])
        objects = example.boxes * SIZE
        # Objects that are not found are dashed, everything else is a detection; all are of this image.
        places = [np.abs(objects - box).max(axis=1).argmin() for box in boxes[dashed]]
        np.testing.assert_allclose(boxes[dashed].reshape(-1, 4), objects[places].reshape(-1, 4), rtol=1e-5)
        assert texts[dashed].tolist() == [f"not found: {data.classes[example.classes[place]]}" for place in places]
        assert {number for kind, at, number in log if at == index and kind == "missed"} <= set(places)
        found = analysis.result.detections[index].boxes.clip(0, SIZE)
        assert all((np.abs(found - box).max(axis=1) < 1e-3).any() for box in boxes[~dashed])


def test_curves_have_their_numbers_and_axes(report, monkeypatch):
    analysis, _, _, _ = report
    monkeypatch.setattr(figures, "_svg", lambda figure: figure)
    (panel,) = figures.precision_recall_figure(analysis).axes
    assert panel.get_xlim() == panel.get_ylim() == (0, 1.02)
    curves, dots = panel.lines[::2], panel.lines[1::2]
    for curve, line, dot in zip(analysis.curves, curves, dots, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), np.stack([curve.recall, curve.precision], axis=1))
        precision, recall, _ = curve.at(analysis.score_thresholds[line.get_label()])
        assert dot.get_xydata().tolist() == [[recall, precision]]
    (panel,) = figures.threshold_figure(analysis).axes
    assert (panel.get_xlim(), panel.get_ylim()) == ((0, 1), (0, 1.02))
    for curve, line in zip(analysis.curves, panel.lines, strict=True):
        np.testing.assert_allclose(line.get_xdata(), np.arange(1, 100) / 100)
        assert [curve.at(threshold)[2] for threshold in line.get_xdata()] == line.get_ydata().tolist()


def test_a_suspicion_is_shown_with_what_is_around_it():
    image = np.random.default_rng(0).integers(0, 255, (100, 200, 3)).astype(np.uint8)
    for box, size in (
        ([80, 40, 100, 50], (60 + 1, 50 + 1)),  # a margin of 20, the larger side
        ([80, 40, 90, 45], (50 + 1, 45 + 1)),  # a margin of 20, a tenth of the image
        ([0, 0, 30, 30], (60 + 1, 60 + 1)),
        ([150, 60, 200, 100], (100, 90)),
    ):
        url = figures.suspicion_picture(image, box, is_label=True)
        picture = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
        assert picture.size == tuple(max(1, round(side * 240 / max(size))) for side in size), box


def test_thresholds_given_decide_on_what_is_shown(report):
    analysis, data, _, _ = report
    lower = analyze(analysis.result, data, dict.fromkeys(data.classes, 0.0))
    assert lower.shown.counts() == PLANTED
    assert lower.score_thresholds == analysis.score_thresholds
    assert len(analyze(analysis.result, data, {}).shown.score) == 0


def test_a_perfect_detector_has_a_page_too(report, tmp_path):
    _, data, _, _ = report
    truth = data.examples[0]
    found = ImageDetections(truth.boxes * float(SIZE), np.full(4, 0.9), truth.classes)
    one = dataclasses.replace(data, examples=[truth])
    analysis = analyze(evaluate([found], one), one)
    assert analysis.worst == [] and analysis.suspicions == []
    assert "There is no error." in write_report(analysis, one, tmp_path).read_text()
    nothing = dataclasses.replace(found, boxes=np.zeros([0, 4]), scores=np.zeros(0), classes=np.zeros(0, int))
    analysis = analyze(evaluate([nothing], one), one)
    assert analysis.score_thresholds == {} and analysis.shown.counts()["missed"] == 4
    write_report(analysis, one, tmp_path)


def test_images_are_made_worse_as_named():
    rng = np.random.default_rng(1)
    image = tf.constant(np.kron(rng.integers(0, 255, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8))
    for change in CORRUPTIONS.values():
        assert change(image).shape == image.shape and change(image).dtype == tf.uint8
    np.testing.assert_array_equal(CORRUPTIONS["unchanged"](image), image)
    np.testing.assert_array_equal(brighten(image, 0.5), np.round(image.numpy() * np.float32(0.5)))
    assert brighten(image, 1.5).numpy().max() == 255
    flat = tf.fill([20, 30, 3], tf.constant(77, tf.uint8))
    for change in (lambda x: blur(x, 2.0), halve):
        np.testing.assert_array_equal(change(flat), flat)
    # Away from the border, beside a direct convolution.
    weights = np.exp(-0.5 * (np.arange(-3, 4)) ** 2)
    kernel = np.outer(weights, weights) / weights.sum() ** 2
    expected = (image.numpy()[17:24, 21:28].astype(float) * kernel[..., np.newaxis]).sum(axis=(0, 1))
    np.testing.assert_allclose(blur(image, 1.0)[20, 24], expected, atol=0.51)
    detail = [np.abs(np.diff(each.numpy().astype(float), axis=1)).mean()
              for each in (image, compress(image, 10), halve(image))]  # fmt: skip
    assert detail[2] < detail[0]
    assert (
        np.abs(compress(image, 95).numpy().astype(int) - image.numpy()).mean()
        < np.abs(compress(image, 10).numpy().astype(int) - image.numpy()).mean()
    )


def test_robustness_sees_every_image_in_every_way(report):
    _, data, _, _ = report
    few = dataclasses.replace(data, examples=data.examples[:3])

    means = []

    class Bright:
        """Finds every object in images that are not too dark."""

        def predict(self, images):
            means.append([float(np.mean(batch)) for batch in images])
            visible = min(means[-1]) > 100
            return {
                "boxes": np.stack([each.boxes for each in few.examples]),
                "scores": np.full([3, 4], 0.9),
                "classes": np.stack([each.classes for each in few.examples]),
                "num_detections": np.full(3, 4 if visible else 0),
            }

    rows = evaluate_robustness(Bright(), few)
    assert [row.name for row in rows] == list(CORRUPTIONS)
    assert all(len(each) == 3 for each in means)
    assert {row.name: row.ap_area for row in rows} == {
        name: 0.0 if name == "half as bright" else 1.0 for name in CORRUPTIONS}  # fmt: skip
