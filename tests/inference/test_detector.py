import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from refinedet_tf.errors import ConfigError, DataError, ExportError, WeightFileError
from refinedet_tf.inference.detector import BATCH_SIZE, Detections, Detector
from refinedet_tf.inference.images import MAX_PIXELS, read_image
from refinedet_tf.inference.tflite_runner import TFLiteModel
from refinedet_tf.visualization import draw_detections


@pytest.fixture(scope="module")
def photo():
    return np.random.default_rng(3).integers(0, 256, (90, 70, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def live(tiny_model):
    return Detector.from_model(tiny_model)


@pytest.fixture(scope="module")
def served(exported):
    return Detector.load(exported)


def test_detections_are_those_of_the_model_without_padding(tiny_model, live, photo):
    resized = tf.image.resize(tf.cast(photo, tf.float32)[tf.newaxis], tiny_model.config.input_size)
    expected = {name: value[0].numpy() for name, value in tiny_model.detect(resized).items()}
    count = expected["num_detections"]
    found = live.detect(photo)
    assert len(found.scores) == count > 0
    np.testing.assert_allclose(found.scores, expected["scores"][:count], rtol=1e-5)
    np.testing.assert_array_equal(found.classes, expected["classes"][:count])
    np.testing.assert_allclose(found.boxes, np.clip(expected["boxes"][:count], 0, 1), atol=1e-5)


def test_the_score_threshold_cuts_the_tail(live, photo):
    everything = live.detect(photo)
    threshold = float(everything.scores.max() + everything.scores.min()) / 2
    best = live.detect(photo, threshold)
    kept = everything.scores >= threshold
    assert 0 < kept.sum() < len(kept)
    np.testing.assert_array_equal(best.boxes, everything.boxes[kept])


def test_model_file_and_saved_model_detect_the_same(tiny_model, live, served, photo, tmp_path):
    tiny_model.save(tmp_path / "model.keras")
    expected = live.detect(photo)
    for detector in (Detector.load(tmp_path / "model.keras"), served):
        assert detector.classes == tiny_model.config.classes
        found = detector.detect(photo)
        np.testing.assert_array_equal(found.classes, expected.classes)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-5)


@pytest.fixture(scope="module")
def photos():
    """More than a batch of photos of three sizes, mixed."""
    rng = np.random.default_rng(4)
    sizes = [(90, 70), (40, 60), (90, 70), (64, 128), (40, 60)] * 2
    assert len(sizes) > BATCH_SIZE
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def assert_same(found, expected):
    np.testing.assert_array_equal(found.classes, expected.classes)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-5)


@pytest.mark.parametrize("form", ["model", "saved_model"])
def test_a_list_of_mixed_sizes_gives_what_each_image_gives_alone(live, served, photos, form, monkeypatch):
    detector = served if form == "saved_model" else live
    batches, run = [], detector._run
    monkeypatch.setattr(detector, "_run", lambda images: batches.append(len(images)) or run(images))
    found = detector.detect(photos, 0.3)
    # A SavedModel's batches hold images of one size.
    assert batches == ([BATCH_SIZE, 2] if form == "model" else [3, 1, 4, 1, 1])
    assert len(found) == len(photos) and sum(map(len, found)) > len(photos)
    for image, detections in zip(photos, found, strict=True):
        assert_same(detections, detector.detect(image, 0.3))
    assert detector.detect([]) == []


def test_every_form_of_an_image_gives_the_same(live, photo, tmp_path):
    picture = Image.fromarray(photo)
    exif = Image.Exif()
    exif[0x0112] = 8  # to be turned counterclockwise by 90 degrees when shown
    picture.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "turned.png", exif=exif)
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    forms = [
        photo,
        picture,
        Image.open(tmp_path / "turned.png"),
        encoded.getvalue(),
        tmp_path / "turned.png",
        str(tmp_path / "turned.png"),
    ]
    expected = live.detect(photo)
    for found in [*live.detect(tuple(forms)), *map(live.detect, forms)]:
        assert_same(found, expected)


def test_detections_know_their_names_and_draw_themselves(photo, tmp_path):
    boxes, scores, classes = np.array([[0.1, 0.1, 0.5, 0.6], [0.3, 0.2, 0.9, 0.9]]), np.array([0.9, 0.4]), [2, 0]
    found = Detections(boxes, scores, np.array(classes), ["circle", "square", "star"])
    assert found.names == ["star", "circle"] and len(found) == 2 and found[scores < 0.5].names == ["circle"]
    Image.fromarray(photo).save(tmp_path / "photo.png")
    expected = draw_detections(photo, boxes, classes, scores, class_names=found.class_names)
    np.testing.assert_array_equal(found.draw(tmp_path / "photo.png"), expected)
    without = draw_detections(photo, boxes, classes, scores, class_names=found.class_names, labels=False)
    np.testing.assert_array_equal(found.draw(photo, labels=False), without)
    assert (without != expected).any()


def test_a_work_folder_opens_its_best_model(tiny_model, tmp_path):
    tiny_model.save(tmp_path / "model.keras")
    assert Detector.load(tmp_path).classes == tiny_model.config.classes
    (tmp_path / "best.keras").write_text("the best one")
    with pytest.raises(WeightFileError, match=r"best\.keras"):
        Detector.load(tmp_path)


def test_threads_are_those_of_a_tflite_file(tflite_files, monkeypatch, tmp_path):
    threads = []
    interpreter = tf.lite.Interpreter

    def remember(*args, num_threads, **kwargs):
        threads.append(num_threads)
        return interpreter(*args, num_threads=num_threads, **kwargs)

    monkeypatch.setitem(TFLiteModel.__init__.__kwdefaults__, "interpreter", remember)
    Detector.load(tflite_files("none", "op", "float32"), num_threads=1)
    assert threads == [1]
    with pytest.raises(ConfigError, match="num_threads applies to"):
        Detector.load(tmp_path / "model.keras", num_threads=1)


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


def test_gray_photos_become_rgb(tmp_path):
    Image.new("L", (8, 6), 77).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read_image(tmp_path / "gray.png"), np.full((6, 8, 3), 77, np.uint8))


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8)])
def test_arrays_that_are_no_images_are_refused(live, image):
    with pytest.raises(DataError, match="The image must be uint8"):
        live.detect(image)
    with pytest.raises(DataError, match="Image 1 of the list must be uint8"):
        live.detect([np.zeros((4, 4, 3), np.uint8), image])


def test_what_is_no_model_or_image_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(WeightFileError, match=r"missing\.keras"):
        Detector.load(tmp_path / "missing.keras")
    (tmp_path / "other.tflite").write_bytes(b"TFL3")
    for name in ("empty", "other.tflite"):
        with pytest.raises(ExportError, match=name):
            Detector.load(tmp_path / name)
    with pytest.raises(DataError, match=r"text\.jpg cannot be read as an image: its format is unknown"):
        read_image(tmp_path / "text.jpg")
    with pytest.raises(DataError, match=r"gone\.jpg cannot be read as an image: No such file"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match="The image must be a path, bytes, a PIL image or an array, not float"):
        read_image(1.5)


def test_bytes_are_not_shown_in_errors(photo):
    encoded = io.BytesIO()
    Image.fromarray(photo).save(encoded, "JPEG")
    for content in (b"no image", encoded.getvalue()[:500]):
        with pytest.raises(DataError, match="A photo cannot be read as an image: ") as caught:
            read_image(content, "A photo")
        assert (
            str(caught.value).startswith("A photo")
            and "b'" not in str(caught.value)
            and "BytesIO" not in str(caught.value)
        )


def test_an_image_that_claims_too_many_pixels_is_not_decoded(tmp_path, monkeypatch):
    def refuse(self, *args):
        raise AssertionError("decoded")

    for name, size in (("large.png", (MAX_PIXELS // 4000 + 1, 4000)), ("bomb.png", (20_000, 20_000))):
        Image.new("1", size).save(tmp_path / name)
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "convert", refuse)
        for name in ("large.png", "bomb.png"):
            with pytest.raises(DataError, match=rf"{name} has more than 36 megapixels"):
                read_image(tmp_path / name)
    Image.new("1", (MAX_PIXELS // 4000, 4000)).save(tmp_path / "allowed.png")
    assert read_image(tmp_path / "allowed.png").shape == (4000, 9000, 3)
