import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from refinedet_tf.config import AugmentationConfig, Config, DataConfig, ModelConfig
from refinedet_tf.data.examples import Example, ExampleSet
from refinedet_tf.data.inspection import anchor_coverage, as_text, inspect_data
from refinedet_tf.data.pipeline import count_dropped_boxes, evaluation_pipeline, training_pipeline
from refinedet_tf.data.readers.tfrecords import read_tfrecords
from refinedet_tf.data.readers.voc import read_voc
from refinedet_tf.data.record_writer import write_tfrecords
from refinedet_tf.ops import images as image_ops
from refinedet_tf.ops.anchors import generate_anchors
from refinedet_tf.ops.resizing import Resizing
from tests.data.conftest import voc_object

CONFIG = Config(model=ModelConfig(classes=["cat"], input_size=[64, 128]), data=DataConfig(max_boxes=100))
CAT = voc_object("cat", (10, 10, 20, 20))


def kinds(defects):
    return sorted((Path(defect["where"].split(",")[0]).name, defect["what"].split(":")[0]) for defect in defects)


def resaved(path, mode="RGB", **options):
    Image.open(path).convert(mode).save(path, **options)


@pytest.fixture
def damaged(voc_folder):
    cut = voc_folder.add("cut", [CAT])
    cut.write_bytes(cut.read_bytes()[:-200])
    voc_folder.add("png", [CAT], extension=".png").rename(voc_folder.root / "JPEGImages/png.jpg")
    resaved(voc_folder.add("cmyk", [CAT]), "CMYK")
    resaved(voc_folder.add("grey", [CAT]), "L")
    exif = Image.Exif()
    exif[0x0112] = 6
    resaved(voc_folder.add("turned", [CAT]), exif=exif)
    voc_folder.add("empty_xml")
    (voc_folder.root / "Annotations/empty_xml.xml").write_text("")
    voc_folder.add("floats", [voc_object("cat", (10.25, 10.5, 20.75, 20.0))])
    voc_folder.add("nothing")
    voc_folder.add("crowded", [voc_object("cat", (i % 25, i // 25, i % 25 + 20, i // 25 + 15)) for i in range(500)])
    return voc_folder


def test_a_damaged_data_set_is_read_to_the_end_and_each_defect_named(damaged):
    found = read_voc(damaged.root, ["train"], ["cat"])
    report = inspect_data({"train": found}, CONFIG)
    assert kinds(report["errors"]) == [
        ("cut.jpg", "unreadable image, skipped"),
        ("empty_xml.xml", "unreadable annotation, image skipped"),
    ]
    assert kinds(report["notes"]) == [
        ("cmyk.jpg", "not RGB, converted"),
        ("crowded.jpg", "more than data.max_boxes = 100 boxes, training uses the first"),
        ("grey.jpg", "not RGB, converted"),
        ("png.jpg", "file format differs from the name"),
        ("turned.jpg", "EXIF orientation, image and boxes are upright"),
        ("turned.xml", "size is that of the stored pixels, boxes were turned with the image"),
    ]
    text = as_text(report)
    assert all(defect["where"] in text for defect in report["errors"] + report["notes"])
    values = report["splits"]["train"]
    assert (values["images"], values["images_without_boxes"], values["boxes"]) == (7, 1, 505)
    assert values["boxes_per_image"]["max"] == 500

    examples = {example.image_id: example for example in found.examples}
    np.testing.assert_array_equal(examples["floats"].boxes, np.float32([[0.205, 0.2625, 0.415, 0.5]]))
    colors = {name: image_ops.decode(tf.constant(example.read_image())).numpy() for name, example in examples.items()}
    assert all(image.shape == ((50, 40, 3) if name == "turned" else (40, 50, 3)) for name, image in colors.items())
    assert (np.ptp(colors["grey"], axis=2) == 0).all()
    as_rgb = np.asarray(Image.open(examples["cmyk"].image_path).convert("RGB")).astype(int)
    assert np.abs(colors["cmyk"] - as_rgb).max() <= 1

    batches = list(training_pipeline(found.examples, Resizing(64, 64), 7, AugmentationConfig(), 100, seed=0))
    assert len(batches) == 1 and np.isfinite(batches[0][0]).all()
    assert len(list(evaluation_pipeline(found.examples, Resizing(64, 64), 1))) == 7
    assert count_dropped_boxes(found.examples, 100) == 400


def test_the_damaged_data_set_survives_as_records(damaged, tmp_path):
    found = read_voc(damaged.root, ["train"], ["cat"])
    write_tfrecords(found, str(tmp_path / "records"), "train", 2)
    again = read_tfrecords(tmp_path / "records", ["train"], ["cat"])
    assert [len(example.boxes) for example in again.examples] == [len(example.boxes) for example in found.examples]
    assert not again.defects


def test_of_many_defects_of_a_kind_three_are_shown():
    def shown(count):
        defects = [{"where": f"{number}.jpg", "what": "not RGB, converted"} for number in range(count)]
        return as_text({"splits": {}, "errors": [], "notes": defects}).splitlines()[1:]

    assert shown(3) == ["notes: 3", "  3 x not RGB, converted", "    0.jpg", "    1.jpg", "    2.jpg"]
    assert shown(4) == ["notes: 4", "  4 x not RGB, converted", "    0.jpg", "    1.jpg", "    2.jpg", "    ..."]


def test_counts_are_those_of_the_data(voc_folder):
    voc_folder.add("a", [CAT, voc_object("dog", (0, 0, 9, 9), difficult=1)])
    voc_folder.add("b", [CAT], size=(60, 40))
    voc_folder.add("c", split="val")
    sets = {split: read_voc(voc_folder.root, [split], ["cat", "dog", "bird"]) for split in ("train", "val")}
    report = inspect_data(sets, CONFIG)
    train = report["splits"]["train"]
    assert train["boxes_per_class"] == {"cat": 2, "dog": 1, "bird": 0}
    assert train["image_sizes"] == {"50 x 40": 1, "60 x 40": 1}
    assert train["boxes_per_image"] == {"min": 1, "median": 1.5, "mean": 1.5, "max": 2}
    assert (train["difficult"], train["crowd"]) == (1, 0)
    assert report["splits"]["val"]["images_without_boxes"] == 1
    assert report["errors"] == report["notes"] == []
    assert json.loads(json.dumps(report)) == report


def test_boxes_given_twice_and_images_in_two_splits_are_errors(voc_folder):
    first = voc_folder.add("a", [CAT, CAT, CAT, voc_object("dog", (10, 10, 20, 20))])
    for name, split in (("same", "val"), ("again", "train")):
        voc_folder.add(name, split=split).write_bytes(first.read_bytes())
    voc_folder.add("other", split="val")
    one, two = voc_folder.add("one", split="val"), voc_folder.add("two", split="val")
    two.write_bytes(one.read_bytes())
    report = inspect_data(
        {split: read_voc(voc_folder.root, [split], ["cat", "dog"]) for split in ("train", "val")}, CONFIG
    )
    assert kinds(report["errors"]) == [("a.jpg", "identical image in two splits"), ("a.jpg", "repeated box")]
    assert report["errors"][0]["what"].endswith("cat 3 times")
    assert "same.jpg" in report["errors"][1]["what"]
    assert kinds(report["notes"]) == [("one.jpg", "identical image")]


def test_coverage_is_that_of_plain_loops_and_counted_by_size(photo):
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 1, (300, 2, 2)), axis=1).reshape(300, 4).astype(np.float32)
    sizes = [32.0, 64.0, 128.0, 256.0]
    best = anchor_coverage(corners, (64, 128), sizes)
    anchors = generate_anchors((64, 128), sizes)
    for box, value in zip(corners[::30], best[::30], strict=True):
        assert value == pytest.approx(max(iou(box, anchor) for anchor in anchors), rel=1e-4)

    example = dataclasses.replace(
        photo, boxes=corners, classes=np.zeros(300, np.int32), crowd=np.zeros(300, bool), difficult=np.zeros(300, bool)
    )
    rows = inspect_example(example)
    sides = np.sqrt((corners[:, 2] - corners[:, 0]) * 128 * (corners[:, 3] - corners[:, 1]) * 64)
    for row, (low, high) in zip(
        rows, [(0, 16), (16, 32), (32, 64), (64, 128), (128, 256), (256, 1e9), (0, 1e9)], strict=True
    ):
        inside = (sides >= low) & (sides < high)
        assert (row["boxes"], row["reached"]) == (inside.sum(), (inside & (best >= 0.5)).sum())


def iou(first, second):
    first, second = first.astype(float), second.astype(float)
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - shared)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (8, 8)).save(path)
    nothing = np.zeros(0, bool)
    return Example("photo", str(path), 8, 8, np.zeros((0, 4), np.float32), nothing.astype(np.int32), nothing, nothing)


def inspect_example(example):
    report = inspect_data({"train": ExampleSet([example], ["cat"], [])}, CONFIG)
    return report["splits"]["train"]["anchor_coverage"]


def test_without_boxes_there_is_nothing_to_cover(photo):
    assert {row["boxes"] for row in inspect_example(photo)} == {0}
