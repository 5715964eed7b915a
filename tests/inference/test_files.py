import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from refinedet_tf.cli import detect as command
from refinedet_tf.errors import ConfigError, DataError
from refinedet_tf.inference.detector import BATCH_SIZE
from refinedet_tf.inference.files import Selection, detect_files, find_images, image_ids
from tests.conftest import PROJECT
from tests.inference.fake_detector import CLASSES, boxes_of, fake_detector


@pytest.fixture
def photos(tmp_path):
    """Three photos, a broken one, a bomb, and a file that is no image."""
    for name in ("photos/a.jpg", "photos/sub/b.PNG", "photos/sub/deeper/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (100, 80), (50, 60, 70)).save(tmp_path / name)
    (tmp_path / "photos/sub/broken.jpg").write_bytes((tmp_path / "photos/a.jpg").read_bytes()[:300])
    Image.new("1", (20_000, 20_000)).save(tmp_path / "photos/bomb.png")
    (tmp_path / "photos/notes.txt").write_text("no image")
    return tmp_path / "photos"


def names(*inputs):
    return [image.name for image in find_images(inputs)]


def report(folder):
    return json.loads((folder / "detections.json").read_text())


def test_folders_and_patterns_are_searched(photos):
    everything = ["a.jpg", "bomb.png", "sub/b.PNG", "sub/broken.jpg", "sub/deeper/a.jpg"]
    assert names(photos) == everything
    assert names(f"{photos}/**/a.jpg") == ["a.jpg", "sub/deeper/a.jpg"]
    assert names(f"{photos}/*/b.*") == ["sub/b.PNG"]
    assert names(photos / "sub/b.PNG", photos / "a.jpg") == ["b.PNG", "a.jpg"]
    assert names(photos, photos / "a.jpg") == everything, "each image once"
    with pytest.raises(DataError, match=r"Several images are named a\.jpg"):
        find_images([photos / "a.jpg", photos / "sub/deeper/a.jpg"])
    with pytest.raises(DataError, match="There is no image or folder"):
        find_images([photos / "nothing"])
    with pytest.raises(DataError, match="holds no image"):
        find_images([f"{photos}/**/*.bmp"])


def test_results_stand_beside_what_is_skipped(photos, tmp_path):
    output = tmp_path / "out"
    summary = detect_files(
        fake_detector(), find_images([photos]), output, formats=("json", "yolo"), gallery=tmp_path / "g.png"
    )
    assert (summary.images, summary.objects, len(summary.skipped)) == (3, 9, 2)
    assert [entry["file"] for entry in report(output)["images"]] == [
        str(photos / name) for name in ("a.jpg", "sub/b.PNG", "sub/deeper/a.jpg")
    ]
    skipped = {entry["file"].rpartition("/")[2]: entry["reason"] for entry in report(output)["skipped"]}
    assert "36 megapixels" in skipped["bomb.png"] and "cannot be read" in skipped["broken.jpg"]
    assert sorted(str(path.relative_to(output)) for path in output.rglob("*.*")) == [
        "a.jpg", "detections.json", "sub/b.PNG", "sub/deeper/a.jpg", "yolo/classes.txt", "yolo/labels/a.txt",
        "yolo/labels/sub/b.txt", "yolo/labels/sub/deeper/a.txt",
    ]  # fmt: skip
    pixels = np.asarray(Image.open(photos / "sub/b.PNG"))
    expected = fake_detector().detect(pixels, 0.5).draw(pixels)
    np.testing.assert_array_equal(np.asarray(Image.open(output / "sub/b.PNG")), expected)
    assert Image.open(tmp_path / "g.png").size[1] == 360 + 24


def test_a_second_run_leaves_out_the_pictures_of_the_first(photos):
    for _ in range(2):
        summary = detect_files(fake_detector(), find_images([photos]), photos / "out")
        assert summary.images == 3
    with pytest.raises(DataError, match=r"would overwrite .*a\.jpg"):
        detect_files(fake_detector(), find_images([photos]), photos)


def test_selection(photos, tmp_path):
    def classes(**settings):
        detect_files(
            fake_detector(), find_images([photos / "a.jpg"]), tmp_path / "out", selection=Selection(**settings)
        )
        return [found["class"] for found in report(tmp_path / "out")["images"][0]["detections"]]

    person, odd, car = CLASSES
    assert classes(score_threshold=0.1) == [person, odd, car, person]
    assert classes(score_threshold=0.5) == classes() == [person, odd, car]
    assert classes(score_threshold=0.1, only=[person, car]) == [person, car, person]
    assert classes(score_threshold=0.1, only=[person, car], max_boxes=2) == [person, car]
    with pytest.raises(ConfigError, match=r"no class 'persn' \(did you mean 'person'\?\)"):
        classes(only=["persn"])
    with pytest.raises(ConfigError, match=r"no format 'cocco' \(did you mean 'coco'\?\)"):
        detect_files(fake_detector(), find_images([photos / "a.jpg"]), tmp_path, formats=["cocco"])


def test_a_selection_applies_its_own_threshold():
    found = fake_detector().detect(np.zeros((80, 100, 3), np.uint8))
    assert 0 < len(Selection(score_threshold=0.5).apply(found)) == (found.scores >= 0.5).sum() < len(found)


def test_crops_show_the_objects(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 100, (10, 10, 3), np.uint8).repeat(10, 0).repeat(10, 1)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    detect_files(fake_detector(), find_images([tmp_path / "a.png"]), tmp_path / "out", crops=True)
    files = sorted(path.relative_to(tmp_path / "out/crops") for path in (tmp_path / "out/crops").rglob("*.jpg"))
    assert list(map(str, files)) == [f"{CLASSES[1]}/a_2.jpg", "car_van/a_3.jpg", "person/a_1.jpg"]
    left, top, right, bottom = boxes_of(pixels)[0] * 100
    crop = np.asarray(Image.open(tmp_path / "out/crops/person/a_1.jpg")).astype(int)
    shown = pixels[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))]
    assert crop.shape == shown.shape and np.abs(crop - shown).mean() < 10


def test_two_images_of_one_stem_have_no_place_in_yolo_files(tmp_path):
    for name in ("a.jpg", "a.png"):
        Image.new("RGB", (10, 10)).save(tmp_path / name)
    images = find_images([tmp_path / "a.jpg", tmp_path / "a.png"])
    assert detect_files(fake_detector(), images, tmp_path / "out").images == 2
    with pytest.raises(DataError, match="Several images are named a;"):
        detect_files(fake_detector(), images, tmp_path / "out", formats=["yolo"])


def test_numbers_in_names_are_the_ids_for_coco(tmp_path):
    def ids(*names):
        return image_ids([SimpleNamespace(name=name) for name in names])

    assert ids("000000000139.jpg", "sub/000000000285.jpg") == [139, 285]
    assert ids("x/1.jpg", "y/1.jpg") == ids("1.jpg", "b.jpg") == [1, 2]


def many(folder, count=3 * BATCH_SIZE):
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(folder / f"{number:03}.png")
    return find_images([folder])


def test_an_error_leaves_complete_results_of_what_was_done(tmp_path):
    def interrupt(batch):
        if batch == 3:
            raise KeyboardInterrupt

    images = many(tmp_path / "photos")
    with pytest.raises(KeyboardInterrupt):
        detect_files(fake_detector(interrupt), images, tmp_path / "out", formats=["json", "coco"])
    done = [str(image.path) for image in images[: 2 * BATCH_SIZE]]
    assert [entry["file"] for entry in report(tmp_path / "out")["images"]] == done
    instances = json.loads((tmp_path / "out/coco/instances.json").read_text())
    assert len(instances["images"]) == len(done) and len(instances["annotations"]) == 3 * len(done)


KILLED = """
import os, signal, sys
from refinedet_tf.inference.files import detect_files, find_images
from tests.inference.fake_detector import fake_detector
kill = lambda batch: os.kill(os.getpid(), signal.SIGKILL) if batch == 3 else None
formats = ["json", "coco", "csv", "yolo", "voc"]
detect_files(fake_detector(kill), find_images([sys.argv[1]]), sys.argv[2], formats=formats)
"""


def test_a_kill_leaves_complete_results_of_what_was_done(tmp_path):
    images, output = many(tmp_path / "photos"), tmp_path / "out"
    command = [sys.executable, "-c", KILLED, tmp_path / "photos", output]
    result = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(PROJECT)}, stderr=subprocess.DEVNULL)
    assert result.returncode == -signal.SIGKILL
    done = images[: 2 * BATCH_SIZE]
    assert [entry["file"] for entry in report(output)["images"]] == [str(image.path) for image in done]
    assert len(json.loads((output / "coco/results.json").read_text())) == 3 * len(done)
    assert len((output / "detections.csv").read_text().splitlines()) == 1 + 3 * len(done)
    for folder, suffix in (("yolo/labels", "txt"), ("voc/Annotations", "xml"), (".", "png")):
        assert len(list((output / folder).glob(f"*.{suffix}"))) == len(done)


def test_nothing_readable_is_an_error(tmp_path):
    (tmp_path / "broken.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"None of the 1 images could be read.*broken\.jpg"):
        detect_files(fake_detector(), find_images([tmp_path / "broken.jpg"]), tmp_path / "out")


def test_the_command_hands_every_flag_on(photos, tmp_path, monkeypatch, capsys):
    given = {
        "model": "m.keras", "input": [str(photos)], "output_dir": str(tmp_path / "out"), "format": ["csv", "json"],
        "score_threshold": 0.6, "only": ["person"], "max_boxes": 1, "labels": False, "crops": True,
        "gallery": str(tmp_path / "gallery.png"),
    }  # fmt: skip
    monkeypatch.setattr(command, "FLAGS", SimpleNamespace(**given))
    monkeypatch.setattr("refinedet_tf.inference.detector.Detector.load", lambda path: fake_detector())
    command.main()
    assert "3 objects in 3 images (2 skipped)" in capsys.readouterr().out
    written = report(tmp_path / "out")
    assert written["model"] == "m.keras" and written["score_threshold"] == 0.6
    for entry in written["images"]:
        assert [(found["class"], found["score"]) for found in entry["detections"]] == [("person", 0.9)]
    assert (tmp_path / "out/detections.csv").exists() and (tmp_path / "gallery.png").exists()
    assert len(list((tmp_path / "out/crops/person").rglob("*.jpg"))) == 3
    pixels = np.asarray(Image.open(photos / "sub/b.PNG"))
    unlabeled = fake_detector().detect(pixels, 0.8).draw(pixels, labels=False)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/sub/b.PNG")), unlabeled)

    monkeypatch.setattr(command, "FLAGS", SimpleNamespace(**{**given, "score_threshold": 0.95, "only": None}))
    command.main()
    assert "0 objects in 3 images" in capsys.readouterr().out
