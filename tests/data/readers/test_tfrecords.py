import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from refinedet_tf.config import AugmentationConfig
from refinedet_tf.data import record_writer
from refinedet_tf.data.examples import ExampleSet
from refinedet_tf.data.pipeline import evaluation_pipeline, image_pipeline, training_pipeline
from refinedet_tf.data.readers.tfrecords import read_tfrecords
from refinedet_tf.data.readers.voc import read_voc
from refinedet_tf.data.record_writer import to_record, write_tfrecords
from refinedet_tf.errors import DataError
from refinedet_tf.ops.resizing import Resizing
from tests.data.conftest import voc_object

CLASSES = ["dog", 'the "cat"']


@pytest.fixture
def photos(voc_folder):
    """Five images: one without objects, one difficult object, one crowd."""
    voc_folder.add("a", [voc_object("dog", (1, 2, 50, 40)), voc_object(CLASSES[1], (10.3, 0, 20.25, 10), difficult=1)])
    voc_folder.add("b", size=(70, 30))
    for number in range(3):
        voc_folder.add(f"c{number}", [voc_object("dog", (number, 3, 33, 33))], extension=".png")
    found = read_voc(voc_folder.root, ["train"], CLASSES)
    found.examples[2] = dataclasses.replace(found.examples[2], crowd=np.array([True]))
    return found


def assert_equal(first, second):
    assert first.image_id == second.image_id
    assert (first.height, first.width) == (second.height, second.width)
    for name in ("boxes", "classes", "difficult", "crowd"):
        before, after = getattr(first, name), getattr(second, name)
        np.testing.assert_array_equal(before, after)
        assert before.dtype == after.dtype and before.shape == after.shape
    assert first.read_image() == second.read_image()


@pytest.mark.parametrize("shards", [1, 2, 99])
def test_what_was_written_is_read_back_as_it_was(photos, tmp_path, shards):
    paths = write_tfrecords(photos, str(tmp_path / "records"), "train", shards)
    assert len(paths) == min(shards, 5)
    assert sorted(path.name for path in (tmp_path / "records").iterdir()) == [
        "label_map.pbtxt",
        *(f"train.tfrecord-{number:05}-of-{len(paths):05}" for number in range(len(paths))),
    ]
    for classes in (CLASSES, None):
        found = read_tfrecords(tmp_path / "records", ["train"], classes)
        assert found.classes == CLASSES and not found.defects
        for before, after in zip(photos.examples, found.examples, strict=True):
            assert_equal(before, after)


@pytest.mark.parametrize("files", [0, 2], ids=["records", "both"])
def test_batches_from_records_are_those_from_files(photos, tmp_path, files):
    write_tfrecords(photos, str(tmp_path / "records"), "train", 2)
    examples = read_tfrecords(tmp_path / "records", ["train"], CLASSES).examples
    examples[:files] = photos.examples[:files]
    for pipeline in (
        lambda examples: training_pipeline(examples, Resizing(64, 64), 2, AugmentationConfig(), 4, seed=1),
        lambda examples: evaluation_pipeline(examples, Resizing(64, 64), 2),
        image_pipeline,
    ):
        for before, after in zip(pipeline(photos.examples), pipeline(examples), strict=True):
            tf.nest.map_structure(np.testing.assert_array_equal, before, after)


def test_features_have_the_names_and_forms_of_the_object_detection_api(photos):
    features = tf.io.parse_single_example(
        to_record(photos.examples[0], CLASSES).SerializeToString(),
        {
            "image/encoded": tf.io.FixedLenFeature([], tf.string),
            "image/format": tf.io.FixedLenFeature([], tf.string),
            "image/height": tf.io.FixedLenFeature([], tf.int64),
            "image/width": tf.io.FixedLenFeature([], tf.int64),
            "image/filename": tf.io.FixedLenFeature([], tf.string),
            "image/source_id": tf.io.FixedLenFeature([], tf.string),
            "image/object/class/text": tf.io.VarLenFeature(tf.string),
            "image/object/class/label": tf.io.VarLenFeature(tf.int64),
            "image/object/difficult": tf.io.VarLenFeature(tf.int64),
            "image/object/is_crowd": tf.io.VarLenFeature(tf.int64),
            **{
                f"image/object/bbox/{side}": tf.io.VarLenFeature(tf.float32)
                for side in ("xmin", "xmax", "ymin", "ymax")
            },
        },
    )
    values = {
        name: (value.values if isinstance(value, tf.SparseTensor) else value).numpy()
        for name, value in features.items()
    }
    assert (values["image/height"], values["image/width"], values["image/format"]) == (40, 50, b"jpeg")
    assert (values["image/filename"], values["image/source_id"]) == (b"a.jpg", b"a")
    assert values["image/object/class/label"].tolist() == [1, 2]
    assert values["image/object/class/text"].tolist() == [b"dog", b'the "cat"']
    np.testing.assert_array_equal(values["image/object/bbox/xmin"], np.float32([1 / 50, 10.3 / 50]))
    np.testing.assert_array_equal(values["image/object/bbox/ymax"], np.float32([1, 0.25]))
    assert values["image/object/difficult"].tolist() == [0, 1]


def write_features(path, *records):
    """Records of plain values, as another program may have written them."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            features = {}
            for name, value in record.items():
                kind = {bytes: "bytes_list", float: "float_list", int: "int64_list"}[type(value[0])]
                features[name] = tf.train.Feature(**{kind: {"value": value}})
            writer.write(tf.train.Example(features={"feature": features}).SerializeToString())


def record(box=(0.1, 0.2, 0.5, 0.6), **changes):
    values = {
        "image/encoded": [tf.io.encode_png(np.zeros((20, 40, 3), np.uint8)).numpy()],
        "image/source_id": [b"1"],
        "image/object/class/label": [2],
    }
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    return {
        **values,
        **{f"image/object/bbox/{side}": [value] for side, value in sides},
        **{f"image/{name}": value for name, value in changes.items()},
    }


def test_files_of_others_need_neither_names_nor_flags(tmp_path):
    write_features(tmp_path / "coco_val.record-00000-of-00001", record())
    for split in ("coco_val", "coco_val.record-00000-of-00001", "coco_val.record-?????-of-00001"):
        (example,) = read_tfrecords(tmp_path, [split], ["cat", "dog"]).examples
        np.testing.assert_array_equal(example.boxes, np.float32([[0.1, 0.2, 0.5, 0.6]]))
        assert example.classes.tolist() == [1] and not example.crowd.any() and not example.difficult.any()
    (tmp_path / "label_map.pbtxt").write_text(
        "item {\n name: 'horse'\n id: 7 }\nitem { id: 2, display_name: 'x'\n name: \"dog\"}"
    )
    assert read_tfrecords(tmp_path, ["coco_val"], None).classes == ["dog", "horse"]
    assert read_tfrecords(tmp_path, ["coco_val"], ["horse", "dog"]).examples[0].classes.tolist() == [1]
    with pytest.raises(DataError, match=r"pbtxt has no class cat\. model\.classes has: cat, dog\. .* dog, horse"):
        read_tfrecords(tmp_path, ["coco_val"], ["cat", "dog"])


def test_labels_and_names_that_the_recipe_lacks_are_listed(tmp_path):
    write_features(tmp_path / "train.record", record(), record(**{"object/class/text": [b"bird"]}))
    with pytest.raises(DataError, match=r"'label 2': .*'bird': .*Listed are: cat"):
        read_tfrecords(tmp_path, ["train"], ["cat"])


def test_every_defect_is_named_and_the_rest_survives(tmp_path):
    good = record()
    write_features(
        tmp_path / "train.record",
        good,
        record(height=[40], width=[20]),
        record(encoded=[good["image/encoded"][0][:-30]]),
        {key: value for key, value in good.items() if key != "image/encoded"},
        record(**{"object/bbox/xmin": [0.1, 0.2]}),
        record((0.5, 0.2, 0.5, 0.6)),
        record((0.5, 0.2, 0.1, 0.6)),
        record((float("nan"), 0.2, 0.5, 0.6)),
        record((1.5, 0.2, 1.6, 0.6)),
        record((-0.2, 0.2, 0.5, 0.6)),
        record((-0.04, 0.2, 0.5, 1.04)),
    )
    found = read_tfrecords(tmp_path, ["train"], ["cat", "dog"])
    assert [len(example.boxes) for example in found.examples] == [1, 1, 0, 0, 0, 0, 1, 1]
    assert [defect.what.split(":")[0] for defect in found.defects] == [
        "wrong size, the image's own was used",
        "unreadable image, skipped",
        "missing image, skipped",
        "objects with missing values, image skipped",
        "box without area, dropped",
        "inverted box, dropped",
        "unreadable box, dropped",
        "box outside the image, dropped",
        "box partly outside the image, clipped",
    ]


def test_a_file_cut_short_is_an_error_that_names_it(photos, tmp_path):
    (path,) = write_tfrecords(photos, str(tmp_path), "train", 1)
    path = Path(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"train\.tfrecord-00000-of-00001 is damaged after record 4"):
        read_tfrecords(tmp_path, ["train"], CLASSES)
    path.write_bytes(b"no record file at all")
    with pytest.raises(DataError, match="damaged after record 0, or not an uncompressed TFRecord file"):
        read_tfrecords(tmp_path, ["train"], CLASSES)


def test_missing_files_are_errors_that_name_them(photos, tmp_path):
    paths = write_tfrecords(photos, str(tmp_path), "train", 3)
    with pytest.raises(DataError, match=r"no records val; its record files: train\.tfrecord-00000"):
        read_tfrecords(tmp_path, ["val"], CLASSES)
    tf.io.gfile.remove(paths[1])
    with pytest.raises(DataError, match=r"1 of 3 files are missing, the first is .*-00001-of-00003"):
        read_tfrecords(tmp_path, ["train"], CLASSES)


def test_records_of_a_run_that_was_stopped_are_taken_for_nothing(photos, tmp_path, monkeypatch):
    class Stopped(Exception):
        """Stands for whatever ends the writing."""

    def write_one(example, classes):
        if example is photos.examples[-1]:
            raise Stopped
        return to_record(example, classes)

    with monkeypatch.context() as patch:
        patch.setattr(record_writer, "to_record", write_one)
        with pytest.raises(Stopped):
            write_tfrecords(photos, str(tmp_path), "train", 2)
    assert [path.name for path in tmp_path.iterdir() if "tfrecord" in path.name] == []
    (tmp_path / "~train.tfrecord-00000-of-00002").write_bytes(b"what a killed process leaves")
    with pytest.raises(DataError, match="no records train"):
        read_tfrecords(tmp_path, ["train"], CLASSES)
    write_tfrecords(photos, str(tmp_path), "train", 2)
    assert len(read_tfrecords(tmp_path, ["train"], CLASSES)) == 5


def test_a_folder_that_cannot_be_written_is_named(photos, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"records train cannot be written to .*file/records: .*[Nn]ot a directory"):
        write_tfrecords(photos, str(tmp_path / "file/records"), "train", 1)
    with pytest.raises(DataError, match=r"records train cannot be written to nowhere://bucket: .*'nowhere'"):
        write_tfrecords(photos, "nowhere://bucket", "train", 1)


def test_ignored_objects_do_not_become_background_in_records(photos, tmp_path):
    photos.examples[0] = dataclasses.replace(photos.examples[0], ignored=np.float32([[0, 0, 1, 1]]))
    with pytest.raises(DataError, match="no place for ignored objects"):
        write_tfrecords(photos, str(tmp_path / "records"), "train", 1)
    assert not (tmp_path / "records").exists()


def test_records_are_not_overwritten_nor_mixed(photos, tmp_path):
    write_tfrecords(photos, str(tmp_path), "train", 2)
    with pytest.raises(DataError, match="records exist already"):
        write_tfrecords(photos, str(tmp_path), "train", 3)
    other = ExampleSet(photos.examples, ["a", "b"], [])
    with pytest.raises(DataError, match=r"label_map\.pbtxt has other classes: dog, the"):
        write_tfrecords(other, str(tmp_path), "val", 1)
    for shard in range(3):
        (tmp_path / f"train.tfrecord-{shard:05}-of-00003").write_bytes(b"")
    with pytest.raises(DataError, match="two sets train, with different numbers of files"):
        read_tfrecords(tmp_path, ["train"], CLASSES)
