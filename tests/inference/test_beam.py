"""The Beam pipeline on the DirectRunner; run where apache-beam is installed."""

import json
import re

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("apache_beam")

import pyarrow.parquet
import tensorflow as tf
from apache_beam.options.pipeline_options import (
    DirectOptions,
    FlinkRunnerOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    SparkRunnerOptions,
    WorkerOptions,
)

from refinedet_tf.errors import DataError
from refinedet_tf.inference import beam
from refinedet_tf.inference.detector import BATCH_SIZE, Detector
from refinedet_tf.inference.files import Selection, detect_files, find_images
from refinedet_tf.inference.images import upright_size
from tests.conftest import PROJECT

THREADS = ("--runner=DirectRunner", "--direct_num_workers=2", "--direct_running_mode=multi_threading")
PROCESSES = ("--runner=DirectRunner", "--direct_num_workers=2", "--direct_running_mode=multi_processing")
THRESHOLD = 0.3


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """More photos than two batches, of several sizes, some of them turned, and three unusable files."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(5)
    turned = Image.Exif()
    turned[0x0112] = 6
    for number in range(2 * BATCH_SIZE + 3):
        size = [(90, 70), (40, 60), (64, 128)][number % 3]
        picture = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
        if number % 3:
            picture.save(folder / f"{number:02}.png")
        else:
            picture.save(folder / f"{number:02}.jpg", exif=turned)
    content = (folder / "01.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    (folder / "text.png").write_text("no image")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    return folder


@pytest.fixture(scope="module")
def expected(exported, photos):
    """What `Detector` finds in each photo, by path."""
    paths = sorted(map(str, photos.glob("[0-9][0-9].*")))
    found = Detector.load(exported).detect(paths, THRESHOLD)
    assert sum(map(len, found)) > len(paths)
    return dict(zip(paths, found, strict=True))


def run(exported, inputs, output, **settings):
    settings = {"score_threshold": THRESHOLD, "options": THREADS, **settings}
    beam.detect_at_scale(list(map(str, inputs)), str(exported), str(output / "out"), **settings)
    skipped = {row["file_name"]: row["reason"] for row in lines(output / "out", "skipped-*.jsonl")}
    return lines(output / "out", "detections-*.jsonl"), skipped


def lines(folder, pattern):
    return [json.loads(line) for path in sorted(folder.glob(pattern)) for line in path.read_text().splitlines()]


def assert_same(rows, expected):
    assert sorted(row["file_name"] for row in rows) == sorted(expected), "each image once"
    for row in rows:
        found = expected[row["file_name"]]
        sides = np.array([row["width"], row["height"]] * 2)
        corners = [[x, y, x + w, y + h] for x, y, w, h in (item["bbox"] for item in row["annotations"])]
        np.testing.assert_allclose(np.reshape(corners, (-1, 4)), found.boxes * sides, atol=0.011)
        np.testing.assert_allclose([item["score"] for item in row["annotations"]], found.scores, atol=1.1e-4)
        assert [item["category"] for item in row["annotations"]] == found.names
        assert [item["category_id"] - 1 for item in row["annotations"]] == found.classes.tolist()


def assert_same_as_the_command(rows, skipped, exported, photos, folder):
    """Image by image what `refinedet detect` writes: it rounds as the pipeline does."""
    selection = Selection(THRESHOLD)
    detect_files(Detector.load(exported), find_images([photos]), folder / "command", selection=selection)
    report = json.loads((folder / "command/detections.json").read_text())
    assert {entry["file"] for entry in report["skipped"]} == {name for name in skipped if "*" not in name}
    written = {entry["file"]: entry["detections"] for entry in report["images"]}
    assert sorted(written) == sorted(row["file_name"] for row in rows)
    for row in rows:
        found = written[row["file_name"]]
        assert [item["category"] for item in row["annotations"]] == [item["class"] for item in found]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (item["bbox"] for item in row["annotations"])]
        np.testing.assert_allclose(boxes, [item["box"] for item in found], atol=0.0101)
        scores = [item["score"] for item in row["annotations"]]
        np.testing.assert_allclose(scores, [item["score"] for item in found], atol=1.01e-4)


def test_two_processes_find_what_the_command_finds(exported, photos, expected, tmp_path):
    rows, skipped = run(exported, [photos / "*.*", photos / "nothing*"], tmp_path, options=PROCESSES)
    assert_same(rows, expected)
    assert {name.rpartition("/")[2] for name in skipped} == {"bomb.png", "cut.png", "text.png", "nothing*"}
    reasons = {name.rpartition("/")[2]: reason for name, reason in skipped.items()}
    assert "36 megapixels" in reasons["bomb.png"] and "cannot be decoded" in reasons["cut.png"]
    assert "format is unknown" in reasons["text.png"] and "no such file" in reasons["nothing*"]
    assert_same_as_the_command(rows, skipped, exported, photos, tmp_path)


def test_parquet_has_the_same_rows(exported, photos, expected, tmp_path):
    run(exported, [photos / "0*"], tmp_path, file_format="parquet")
    rows = [
        row
        for path in tmp_path.glob("out/detections-*.parquet")
        for row in pyarrow.parquet.read_table(path).to_pylist()
    ]
    assert_same(rows, {path: found for path, found in expected.items() if "/0" in path})
    with pytest.raises(DataError, match="no format 'csv'"):
        run(exported, [photos / "0*"], tmp_path, file_format="csv")


def write_records(path, images):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for image in images:
            values = {"image/encoded": image.read_bytes(), "image/filename": str(image).encode()}
            features = {
                key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value])) for key, value in values.items()
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def test_records_give_what_files_give(exported, photos, expected, tmp_path):
    images = sorted(photos.glob("[0-9][0-9].*"))
    (tmp_path / "records").mkdir()
    write_records(tmp_path / "records/a.tfrecord", images[:9])
    write_records(tmp_path / "records/b.tfrecord", images[9:])
    with tf.io.TFRecordWriter(str(tmp_path / "records/c.tfrecord")) as writer:
        writer.write(b"no example")
        writer.write(b"")
    content = (tmp_path / "records/b.tfrecord").read_bytes()
    (tmp_path / "records/b.tfrecord").write_bytes(content[:-20])
    rows, skipped = run(exported, [tmp_path / "records/*"], tmp_path, records=True)
    assert_same(rows, {path: found for path, found in expected.items() if path != str(images[-1])})
    assert {name.rpartition("/")[2] for name in skipped} == {
        "b.tfrecord", "c.tfrecord, record 1", "c.tfrecord, record 2",
    }  # fmt: skip


class FailsTwice(beam.SavedModelHandler):
    """Fails at its second and third batch, as a worker that is lost in the middle of a bundle."""

    batches = 0

    def run_inference(self, batch, model, inference_args=None):
        type(self).batches += 1
        if type(self).batches in (2, 3):
            raise RuntimeError("lost")
        return super().run_inference(batch, model, inference_args)


def test_a_bundle_that_is_done_again_loses_and_repeats_nothing(exported, photos, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(beam, "SavedModelHandler", FailsTwice)
    FailsTwice.batches = 0
    rows, skipped = run(exported, [photos / "*.*"], tmp_path, options=["--runner=BundleBasedDirectRunner"])
    assert FailsTwice.batches > 3, "it failed and was tried again"
    assert_same(rows, expected)
    assert len(skipped) == 3


def test_the_size_of_a_photo_is_that_of_its_upright_pixels(tmp_path):
    for orientation, size in ((1, (30, 20)), (3, (30, 20)), (6, (20, 30)), (8, (20, 30))):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
        assert upright_size((tmp_path / "a.jpg").read_bytes(), "a.jpg") == size


def test_beam_knows_the_options_on_the_page():
    page = (PROJECT / "docs/detection.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([\w ]+) \| `(--runner=.*?)` \|", page, flags=re.MULTILINE))
    given = {name: PipelineOptions(row.replace("=N", "=4").split()) for name, row in rows.items()}
    assert list(given) == ["this machine", "Dataflow", "Flink", "Spark"]
    direct, flow = given["this machine"].view_as(DirectOptions), given["Dataflow"].view_as(GoogleCloudOptions)
    assert (direct.direct_running_mode, direct.direct_num_workers) == ("multi_processing", 4)
    assert (flow.project, flow.region, flow.temp_location) == ("P", "R", "gs://B/tmp")
    assert given["Dataflow"].view_as(WorkerOptions).sdk_container_image == "IMAGE"
    assert given["Flink"].view_as(FlinkRunnerOptions).flink_master == "HOST:8081"
    assert given["Spark"].view_as(SparkRunnerOptions).spark_master_url == "spark://HOST:7077"
    for name in ("Flink", "Spark"):
        portable = given[name].view_as(PortableOptions)
        assert (portable.environment_type, portable.environment_config) == ("DOCKER", "IMAGE")
