"""What is written is read back equal, by other readers than the writers."""

import csv
import errno
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from refinedet_tf.data.readers.coco import read_coco
from refinedet_tf.data.readers.voc import read_voc
from refinedet_tf.data.readers.yolo import read_yolo
from refinedet_tf.inference.results import WRITERS, GrowingFile, ImageResult
from tests.inference.fake_detector import CLASSES, fake_detector

SIZES = {"a.jpg": (301, 200), "sub/b.png": (77, 133), "sub/empty.jpg": (50, 40)}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images."""
    folder = tmp_path_factory.mktemp("images")
    for index, (name, size) in enumerate(SIZES.items()):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", size, (20 * index, 0, 0)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def results(images):
    """The detections in them; none in the last."""
    detector = fake_detector()
    found = [detector.detect(images / name) for name in SIZES]
    found[-1] = found[-1][:0]
    return [
        ImageResult(f"photos/{name}", name, index, *size, detections)
        for index, ((name, size), detections) in enumerate(zip(SIZES.items(), found, strict=True), start=1)
    ]


def write(name, results, folder):
    writer = WRITERS[name](folder, CLASSES, {"model": "m.keras", "score_threshold": 0.5})
    for result in results:
        writer.add(result)
    writer.skip("photos/broken.jpg", "photos/broken.jpg cannot be read")
    return writer


def assert_examples_are(examples, results, decimals=0.01):
    """Examples hold the detections, up to the rounding of pixels."""
    assert len(examples) == len(results)
    for example, result in zip(examples, results, strict=True):
        assert (example.width, example.height) == (result.width, result.height)
        np.testing.assert_array_equal(example.classes, result.found.classes)
        np.testing.assert_allclose(example.boxes, result.found.boxes, atol=decimals / min(result.width, result.height))


def test_json_is_whole_after_every_image(results, tmp_path):
    writer = WRITERS["json"](tmp_path, CLASSES, {"model": "m.keras", "score_threshold": 0.5})
    expected = {"model": "m.keras", "score_threshold": 0.5, "images": [], "skipped": []}
    for number, result in enumerate(results):
        writer.add(result)
        writer.skip(f"{number}.jpg", "its reason")
        expected["skipped"].append({"file": f"{number}.jpg", "reason": "its reason"})
        pixels = result.found.boxes * np.float32([result.width, result.height] * 2)
        expected["images"].append({
            "file": result.file, "width": result.width, "height": result.height,
            "detections": [
                {"class": CLASSES[label], "score": pytest.approx(score, abs=1e-4), "box": pytest.approx(box, abs=6e-3)}
                for label, score, box in zip(result.found.classes, result.found.scores, pixels, strict=True)
            ],
        })  # fmt: skip
        assert json.loads((tmp_path / "detections.json").read_text()) == expected
    writer.close()
    assert json.loads((tmp_path / "detections.json").read_text()) == expected


def test_coco_files_are_read_by_pycocotools_and_the_reader(results, images, tmp_path):
    writer = write("coco", results, tmp_path)
    rows = json.loads((tmp_path / "coco/results.json").read_text())
    assert len(rows) == 8 and {row["image_id"] for row in rows} == {1, 2}
    writer.close()
    truth = COCO(str(tmp_path / "coco/instances.json"))
    assert {truth.imgs[key]["file_name"]: key for key in truth.imgs} == dict(zip(SIZES, (1, 2, 3), strict=True))
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "coco/results.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1), "every result is found at its own place"

    (tmp_path / "data/annotations").mkdir(parents=True)
    shutil.copytree(images, tmp_path / "data/all")
    shutil.copy(tmp_path / "coco/instances.json", tmp_path / "data/annotations/instances_all.json")
    read = read_coco(tmp_path / "data", ["all"], None)
    assert read.classes == CLASSES and not read.defects
    assert_examples_are(read.examples, results)


def test_voc_files_are_read_by_the_reader(results, images, tmp_path):
    write("voc", results, tmp_path).close()
    assert (tmp_path / "voc/Annotations/sub/empty.xml").is_file()
    (tmp_path / "voc/ImageSets/Main").mkdir(parents=True)
    (tmp_path / "voc/ImageSets/Main/all.txt").write_text("a\nsub/b\nsub/empty\n")
    shutil.copytree(images, tmp_path / "voc/JPEGImages")
    read = read_voc(tmp_path / "voc", ["all"], CLASSES)
    assert not read.defects
    assert_examples_are(read.examples, results)


def test_csv_has_a_line_for_each_object(results, tmp_path):
    write("csv", results, tmp_path)  # not closed: what is written is written
    with open(tmp_path / "detections.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    expected = [(result, index) for result in results for index in range(len(result.found))]
    for row, (result, index) in zip(rows, expected, strict=True):
        assert (row["file"], row["class"]) == (result.file, result.found.names[index])
        assert (int(row["width"]), int(row["height"])) == (result.width, result.height)
        assert float(row["score"]) == pytest.approx(result.found.scores[index], abs=1e-4)
        corners = [float(row[key]) for key in ("xmin", "ymin", "xmax", "ymax")]
        relative = np.array(corners) / ([result.width, result.height] * 2)
        np.testing.assert_allclose(relative, result.found.boxes[index], atol=1e-4)


def test_yolo_files_hold_centers_and_sizes(results, tmp_path):
    write("yolo", results, tmp_path).close()
    assert (tmp_path / "yolo/classes.txt").read_text().splitlines() == CLASSES
    assert (tmp_path / "yolo/labels/sub/empty.txt").read_text() == ""
    for name, result in (("a", results[0]), ("sub/b", results[1])):
        rows = np.loadtxt(tmp_path / f"yolo/labels/{name}.txt")
        np.testing.assert_array_equal(rows[:, 0], result.found.classes)
        corners = np.concatenate([rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2], axis=1)
        np.testing.assert_allclose(corners, result.found.boxes, atol=2e-6)


def test_yolo_files_beside_the_images_are_a_data_set(results, images, tmp_path):
    write("yolo", results, tmp_path).close()
    shutil.copytree(images, tmp_path / "yolo/images")
    read = read_yolo(tmp_path / "yolo", None, CLASSES)
    assert not read.defects and not read.notes, "each image has its file"
    assert_examples_are(read.examples, results)


class SmallDisk(io.FileIO):
    """A file on a disk of 100 bytes."""

    def write(self, content):
        room = 100 - self.tell()
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(content[:room])


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("refinedet_tf.inference.results.io.FileIO", SmallDisk)
    file = GrowingFile(tmp_path / "list.json", "[0", "\n, -1]")
    added = []
    with pytest.raises(OSError, match=r"No space left on device: .*list\.json"):
        while True:
            file.append(f", {len(added) + 1}", "\n, -1]")
            added.append(len(added) + 1)
    assert len(added) > 10
    assert json.loads((tmp_path / "list.json").read_text()) == [0, *added, -1]
