"""Records written by Beam on the DirectRunner; run where apache-beam is installed."""

import json
import os

import numpy as np
import pytest

pytest.importorskip("apache_beam")

import tensorflow as tf

from refinedet_tf.config import DataConfig
from refinedet_tf.data import beam_records
from refinedet_tf.data.beam_records import write_tfrecords_at_scale
from refinedet_tf.data.readers import read_data
from refinedet_tf.data.readers.tfrecords import read_tfrecords
from refinedet_tf.data.record_writer import write_tfrecords
from refinedet_tf.errors import DataError
from tests.data.conftest import VocFolder, voc_object
from tests.data.test_round_trip import write_coco, write_yolo

CLASSES = ["dog", "cat"]
PROCESSES = ("--runner=DirectRunner", "--direct_num_workers=2", "--direct_running_mode=multi_processing")
THREADS = ("--runner=DirectRunner", "--direct_num_workers=2", "--direct_running_mode=multi_threading")


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    """Twelve photos with up to three objects; one is cut, one is missing, one box is inverted."""
    folder = VocFolder(tmp_path_factory.mktemp("beam") / "VOC2007")
    rng = np.random.default_rng(3)
    for number in range(12):
        corners = np.sort(rng.integers(0, [40, 30], (number % 4, 2, 2)), axis=1)
        corners[:, 1] += 3
        objects = [voc_object(CLASSES[i % 2], box, i % 2) for i, box in enumerate(corners.reshape(-1, 4))]
        if number == 5:
            objects.append(voc_object("dog", (20, 20, 10, 10)))
        path = folder.add(f"{number:02}", objects)
        if number == 7:
            path.write_bytes(path.read_bytes()[:300])
        if number == 8:
            path.unlink()
    return folder.root


def contents(folder, name="train"):
    """The records of a set, in no order."""
    paths = tf.io.gfile.glob(f"{folder}/{name}.tfrecord-?????-of-?????")
    return sorted(tf.data.TFRecordDataset(paths).as_numpy_iterator())


def defects(folder):
    lines = [line for path in folder.glob("*.defects-*.jsonl") for line in path.read_text().splitlines()]
    return sorted((row["where"], row["what"]) for row in map(json.loads, lines))


@pytest.fixture(scope="module")
def expected(voc, tmp_path_factory):
    """What one process writes."""
    folder = tmp_path_factory.mktemp("expected")
    found = read_data("voc", voc, ["train"], CLASSES)
    write_tfrecords(found, str(folder), "train", 2)
    assert len(found) == 10 and len(found.defects) == 3
    return folder, sorted((defect.where, defect.what) for defect in found.defects)


def test_two_processes_write_what_one_writes(voc, expected, tmp_path):
    write_tfrecords_at_scale("voc", str(voc), ["train"], str(tmp_path), classes=CLASSES, shards=3, options=PROCESSES)
    folder, problems = expected
    assert contents(tmp_path) == contents(folder)
    assert defects(tmp_path) == problems
    assert sorted(os.listdir(tmp_path)) == sorted([
        "label_map.pbtxt", *(f"train.tfrecord-{shard:05}-of-00003" for shard in range(3)),
        *(path.name for path in tmp_path.glob("train.defects-*.jsonl"))])  # fmt: skip
    found = read_tfrecords(tmp_path, ["train"], None)
    assert found.classes == CLASSES and len(found) == 10 and not found.defects


class FailsTwice(beam_records.ToRecord):
    """Fails at its fourth and fifth image, as a worker that is lost in the middle of a bundle."""

    images = 0

    def process(self, image):
        type(self).images += 1
        if type(self).images in (4, 5):
            raise RuntimeError("lost")
        yield from super().process(image)


def test_a_bundle_that_is_done_again_loses_and_repeats_nothing(voc, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(beam_records, "ToRecord", FailsTwice)
    FailsTwice.images = 0
    write_tfrecords_at_scale("voc", str(voc), ["train"], str(tmp_path), classes=CLASSES,
                             options=["--runner=BundleBasedDirectRunner"])  # fmt: skip
    assert FailsTwice.images > 12, "it failed and was tried again"
    folder, problems = expected
    assert contents(tmp_path) == contents(folder) and defects(tmp_path) == problems


def test_other_formats_list_their_classes(voc, tmp_path):
    found = read_data("voc", voc, ["train"], CLASSES)
    write_yolo(found, tmp_path / "yolo")
    (tmp_path / "yolo/data.yaml").write_text(f"names: {CLASSES}\ntrain: images\n")
    write_coco(found, tmp_path / "coco")
    coco = DataConfig(format="coco", annotations="result.json", images="images")
    for name, recipe in (("yolo", "yolo"), ("coco", coco)):
        out = tmp_path / f"{name}_records"
        write_tfrecords_at_scale(recipe, str(tmp_path / name), ["train"], str(out), options=THREADS)
        one = read_data(recipe, tmp_path / name, ["train"])
        write_tfrecords(one, str(tmp_path / f"{name}_one"), "train", 1)
        assert contents(out) == contents(tmp_path / f"{name}_one") and len(contents(out)) == 10


def test_mistakes_are_named_before_anything_is_written(voc, tmp_path):
    out = tmp_path / "out"
    for recipe, classes, message in (
        ("voc", None, "VOC lists its classes nowhere"),
        ("tfrecord", CLASSES, "has record files already"),
        (DataConfig(rename={"dog": "cat"}), CLASSES, "set rename, other_classes and split"),
    ):
        with pytest.raises(DataError, match=message):
            write_tfrecords_at_scale(recipe, str(voc), ["train"], str(out), classes=classes)
    assert not out.exists()
    (out).mkdir()
    (out / "train.tfrecord-00000-of-00001").write_bytes(b"")
    with pytest.raises(DataError, match="exist already"):
        write_tfrecords_at_scale("voc", str(voc), ["train"], str(out), classes=CLASSES)
    assert os.listdir(out) == ["train.tfrecord-00000-of-00001"]
