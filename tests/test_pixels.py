"""The same file gives the same pixels and detections by every route."""

import functools
import importlib.util
import json

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

from refinedet_tf.cli import detect as detect_command
from refinedet_tf.data.pipeline import image_pipeline
from refinedet_tf.data.readers.voc import read_voc
from refinedet_tf.inference.detector import Detector
from refinedet_tf.inference.images import read_image
from tests.conftest import PROJECT
from tests.photos import jpegs

COMPARED = 20  # detections of an image; further down scores of a model without training lie too close to each other


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The 40 files as a data set without objects."""
    root = tmp_path_factory.mktemp("pixels")
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for name, contents in jpegs().items():
        (root / f"JPEGImages/{name}.jpg").write_bytes(contents)
        (root / f"Annotations/{name}.xml").write_text("<annotation/>")
    (root / "ImageSets/Main/all.txt").write_text("\n".join(jpegs()))
    return root


@pytest.fixture(scope="module")
def edge_client():
    """The program for devices as a module."""
    pytest.importorskip("ai_edge_litert")
    specification = importlib.util.spec_from_file_location("edge_detect", PROJECT / "export/edge/detect.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_pixels_are_equal_by_every_route(files, edge_client):
    found = read_voc(files, ["all"], ["cat"])
    assert len(found) == 40 and not found.defects
    for example, (pixels,) in zip(found.examples, image_pipeline(found.examples), strict=True):
        assert pixels.shape == (example.height, example.width, 3)
        np.testing.assert_array_equal(read_image(example.image_path), pixels, err_msg=example.image_id)
        np.testing.assert_array_equal(edge_client.read_image(example.image_path), pixels, err_msg=example.image_id)


def assert_same(boxes, scores, expected, message, score_tolerance=1e-5, box_tolerance=1e-4):
    """The same best scores, each with a box that the other side has with it."""
    assert len(expected.scores) > COMPARED, message
    np.testing.assert_allclose(scores[:COMPARED], expected.scores[:COMPARED], atol=score_tolerance, err_msg=message)
    distances = np.abs(boxes[:COMPARED, np.newaxis] - expected.boxes[: 2 * COMPARED]).max(axis=-1)
    assert distances.min(axis=1).max() < box_tolerance, message


def test_serving_bytes_detects_what_a_detector_finds_in_the_file(files, tiny_model, exported):
    paths = sorted(files.glob("JPEGImages/*.jpg"))
    serve = tf.saved_model.load(str(exported)).signatures["serving_bytes"]
    outputs = {name: value.numpy() for name, value in
               serve(image_bytes=tf.constant([path.read_bytes() for path in paths])).items()}  # fmt: skip
    assert outputs["image_is_valid"].all()
    detector = Detector.from_model(tiny_model)
    for index, path in enumerate(paths):
        boxes = outputs["detection_boxes"][index][:, [1, 0, 3, 2]]
        assert_same(boxes, outputs["detection_scores"][index], detector.detect(path), path.name)


def test_the_command_detects_what_a_detector_finds_in_the_file(files, tiny_model, exported, tmp_path, monkeypatch):
    values = flags.FlagValues()
    for name in [name for name in vars(flags) if name.startswith("DEFINE_")]:
        monkeypatch.setattr(flags, name, functools.partial(getattr(flags, name), flag_values=values))
    detect_command.define_flags()
    values(["detect", f"--model={exported}", f"--input={files / 'JPEGImages'}", f"--output_dir={tmp_path}",
            "--score_threshold=0", f"--max_boxes={2 * COMPARED}", "--nolabels"])  # fmt: skip
    monkeypatch.setattr(detect_command, "FLAGS", values)
    detect_command.main()
    report = json.loads((tmp_path / "detections.json").read_text())
    assert len(report["images"]) == 40 and not report["skipped"]
    detector = Detector.from_model(tiny_model)
    for image in report["images"]:
        found, sides = image["detections"], [image["width"], image["height"]] * 2
        boxes, scores = (np.array([entry[key] for entry in found]) for key in ("box", "score"))
        # Scores are written with four decimals, boxes in hundredths of a pixel.
        assert_same(boxes / sides, scores, detector.detect(image["file"]), image["file"], 6e-5, 2e-4)


def test_the_program_for_devices_detects_what_a_detector_finds_in_the_file(files, tflite_files, edge_client):
    model = tflite_files("none", "op", "float32")
    client, detector = edge_client.Detector(model, 1), Detector.load(model, num_threads=1)
    for path in sorted(files.glob("JPEGImages/*.jpg")):
        found = client.detect(edge_client.read_image(path))
        assert_same(found["boxes"], found["scores"], detector.detect(path), path.name)
