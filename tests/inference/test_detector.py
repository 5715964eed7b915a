import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from refinedet_tf.errors import DataError, ExportError, WeightFileError
from refinedet_tf.inference.detector import Detector, read_image


@pytest.fixture(scope="module")
def photo():
    return np.random.default_rng(3).integers(0, 256, (90, 70, 3), dtype=np.uint8)


def test_detections_are_those_of_the_model_without_padding(tiny_model, photo):
    resized = tf.image.resize(tf.cast(photo, tf.float32)[tf.newaxis], tiny_model.config.input_size)
    expected = {name: value[0].numpy() for name, value in tiny_model.detect(resized).items()}
    count = expected["num_detections"]
    found = Detector.from_model(tiny_model).detect(photo)
    assert len(found.scores) == count > 0
    np.testing.assert_allclose(found.scores, expected["scores"][:count], rtol=1e-5)
    np.testing.assert_array_equal(found.classes, expected["classes"][:count])
    np.testing.assert_allclose(found.boxes, np.clip(expected["boxes"][:count], 0, 1), atol=1e-5)


def test_the_score_threshold_cuts_the_tail(tiny_model, photo):
    detector = Detector.from_model(tiny_model)
    everything = detector.detect(photo)
    threshold = float(everything.scores.max() + everything.scores.min()) / 2
    best = detector.detect(photo, threshold)
    kept = everything.scores >= threshold
    assert 0 < kept.sum() < len(kept)
    np.testing.assert_array_equal(best.boxes, everything.boxes[kept])


def test_model_file_and_saved_model_detect_the_same(tiny_model, photo, tmp_path):
    tiny_model.save(tmp_path / "model.keras")
    tiny_model.export(tmp_path / "exported")
    live = Detector.from_model(tiny_model).detect(photo)
    for name in ("model.keras", "exported"):
        detector = Detector.load(tmp_path / name)
        assert detector.classes == tiny_model.config.classes
        found = detector.detect(photo)
        np.testing.assert_array_equal(found.classes, live.classes)
        np.testing.assert_allclose(found.scores, live.scores, rtol=1e-5)
        np.testing.assert_allclose(found.boxes, live.boxes, atol=1e-5)


def test_a_tflite_file_detects_and_pads_as_a_model_does(cut_model, tflite_files, photo):
    images = tf.data.Dataset.from_tensor_slices(np.stack([photo, 255 - photo])).batch(2)
    live = Detector.from_model(cut_model).predict(images)
    detector = Detector.load(tflite_files("none", "op", "float32"))
    assert detector.classes == cut_model.config.classes
    found = detector.predict(images)
    assert {name: value.shape for name, value in found.items()} == {name: v.shape for name, v in live.items()}
    np.testing.assert_array_equal(found["num_detections"], live["num_detections"])
    np.testing.assert_allclose(found["scores"], live["scores"], atol=1e-5)
    assert (found["classes"] == live["classes"]).mean() > 0.99  # near-equal scores may change places
    best = detector.detect(photo, 0.3)
    np.testing.assert_allclose(best.scores, live["scores"][0][live["scores"][0] >= 0.3], atol=1e-5)


def test_photos_are_read_upright(tmp_path):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees when shown
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    upright = read_image(tmp_path / "turned.png")
    assert upright.shape == (40, 20, 3)
    assert (upright[:20] == 255).all() and (upright[20:] == 0).all()


def test_grey_photos_become_rgb(tmp_path):
    Image.new("L", (8, 6), 77).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.full((6, 8, 3), 77, np.uint8))


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8)])
def test_arrays_that_are_no_images_are_refused(tiny_model, image):
    with pytest.raises(DataError, match="uint8"):
        Detector.from_model(tiny_model).detect(image)


def test_what_is_no_model_or_image_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("no image")
    for path in (tmp_path / "empty", tmp_path / "missing.keras"):
        with pytest.raises(WeightFileError, match=path.name):
            Detector.load(path)
    (tmp_path / "other.tflite").write_bytes(b"TFL3")
    with pytest.raises(ExportError, match=r"other\.tflite"):
        Detector.load(tmp_path / "other.tflite")
    with pytest.raises(DataError, match=r"text\.jpg"):
        read_image(tmp_path / "text.jpg")
