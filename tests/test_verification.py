"""Verification finds what agrees and what does not."""

import dataclasses
import json

import numpy as np
import pytest

from refinedet_tf import verification
from refinedet_tf.data.readers.voc import read_voc
from refinedet_tf.errors import ExportError
from refinedet_tf.inference import saved_model_runner
from refinedet_tf.inference.detector import Detections
from refinedet_tf.inference.saved_model_runner import read_settings
from refinedet_tf.verification import match, table, verify, write_json


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(2)
    sizes = ((9, 14), (14, 9))
    return [rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(rows, 0).repeat(columns, 1) for rows, columns in sizes]


@pytest.fixture(scope="module")
def results(tiny_model, exported, images):
    return verify(tiny_model, [exported], images)


def test_without_labeled_images_some_are_drawn_of_both_orientations():
    drawn = verification._compared_images([])
    assert [image.shape for image in drawn] == [(240, 320, 3), (320, 240, 3)] * (verification.COMPARED_IMAGES // 2)
    assert len({image.tobytes() for image in drawn}) == verification.COMPARED_IMAGES


def test_every_signature_agrees_with_the_model(results):
    signatures = ("serving_default", "serving_bytes", "serving_raw", "serving_tunable")
    assert [result.form for result in results] == ["model", *(f"saved_model {name}" for name in signatures)]
    for result in results:
        assert_agrees(result)


def test_a_float32_file_agrees_with_the_model(cut_model, tflite_files, images):
    assert_agrees(verify(cut_model, [tflite_files("none", "op", "uint8")], images)[1])


def assert_agrees(result):
    assert result.passed and result.exact and result.unmatched == 0 and result.expected > 100
    assert result.score_difference < 1e-4 and result.box_difference < 1e-3 and result.mean_iou > 0.999
    assert result.milliseconds > 0 and 0.5 < result.megabytes < 10


def test_results_are_a_table_and_json(results, tmp_path):
    write_json(results, tmp_path / "verify.json")
    rows = json.loads((tmp_path / "verify.json").read_text())
    assert rows == [dataclasses.asdict(result) for result in results]
    lines = table(results).splitlines()
    assert all(row["form"] in line for row, line in zip(rows, lines[1:], strict=True))
    failed = dataclasses.replace(results[0], passed=False)
    assert "beyond the tolerance" in table([failed]) and "beyond" not in table(results)


def test_a_changed_model_does_not_pass(tiny_model, exported, images):
    bias = tiny_model.get_layer("odm3_classes_pointwise").weights[-1]
    before = bias.numpy()
    bias.assign(before + np.float32([0.01, -0.01] * 6))
    try:
        result = verify(tiny_model, [exported], images)[1]
    finally:
        bias.assign(before)
    assert not result.passed and result.score_difference > 1e-4


def test_an_export_with_other_classes_is_refused(tiny_model, exported, images, monkeypatch):
    monkeypatch.setattr(
        tiny_model, "config", dataclasses.replace(tiny_model.config, classes=["circle", "star", "square"])
    )
    with pytest.raises(ExportError, match=r"has the classes .*'circle', 'square', 'star'.*, the model has"):
        verify(tiny_model, [exported], images)


def detections(boxes, classes, scores=None):
    scores = np.linspace(0.9, 0.5, len(boxes)) if scores is None else scores
    return Detections(np.array(boxes, np.float32).reshape(-1, 4), np.float32(scores), np.int32(classes), "ab")


def test_counterparts_have_one_class_and_are_one_to_one():
    box, near, far = [0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.52], [0.6, 0.6, 0.9, 0.9]
    ours = detections([box, box, far], [0, 1, 0])
    theirs = detections([near, box, near], [0, 0, 1])
    pairs = match(ours, theirs)
    assert sorted(pair[:2] for pair in pairs) == [(0, 1), (1, 2)]
    assert [pair[2] for pair in pairs] == pytest.approx([1.0, 0.4 / 0.42], abs=1e-5)
    assert match(ours, detections([], [])) == []


def test_average_precision_is_compared_on_labelled_images(shapes_dir, exported, tiny_model, monkeypatch):
    # The tiny model's classes are three of the four that were drawn.
    examples = [
        dataclasses.replace(example, classes=example.classes % 3)
        for example in read_voc(shapes_dir, ["val"], ["circle", "square", "triangle", "star"]).examples
    ]
    values = iter([0.8, 0.79, 0.78, 0.8, 0.8])
    monkeypatch.setattr(verification, "_average_precision", lambda *_: next(values))
    settings = {**read_settings(str(exported)), "weights": "bfloat16"}
    monkeypatch.setattr(saved_model_runner, "read_settings", lambda path: settings)
    images = [np.zeros((64, 128, 3), np.uint8)]
    results = verify(tiny_model, [exported], images, examples)
    assert [result.ap_loss for result in results] == pytest.approx([0, 0.01, 0.02, 0, 0])
    assert [result.passed for result in results] == [True, True, False, True, True]
