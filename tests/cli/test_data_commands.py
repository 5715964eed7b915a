"""The commands for data as a user runs them, in processes of their own."""

import json
import shutil

import numpy as np
from PIL import Image

from refinedet_tf.data.readers.tfrecords import read_tfrecords
from refinedet_tf.data.readers.voc import read_voc
from refinedet_tf.visualization import class_color
from tests.cli.test_commands import run

SHAPES = ["circle", "square", "triangle", "star"]


def test_inspect_data_reports_draws_and_fails_on_errors(shapes_dir, tiny_recipe, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(shapes_dir, damaged)
    cut = damaged / "JPEGImages/000000.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    code, output, error = run("-m", "refinedet_tf", "inspect-data", f"--config={tiny_recipe}", f"--data_dir={damaged}",
                              "--set=model.classes=[circle,square,triangle]", f"--json={tmp_path / 'report.json'}",
                              f"--picture={tmp_path / 'samples.png'}", "--samples=2", "--strict")  # fmt: skip
    assert code == 1, error
    report = json.loads((tmp_path / "report.json").read_text())
    assert [values["images"] for values in report["splits"].values()] == [7, 4]
    assert list(report["splits"]) == ["train", "val"]
    whats = [defect["what"].split(":")[0] for defect in report["errors"]]
    assert whats.count("unreadable image, skipped") == 1
    # The recipe lacks the stars; both splits have some, and the rest is reported all the same.
    assert [defect["where"] for defect in report["errors"] if "'star'" in defect["what"]] == ["train", "val"]
    assert str(cut) in output and "train: 7 images" in output
    picture = np.asarray(Image.open(tmp_path / "samples.png")).astype(int)
    assert picture.shape[1] > 2 * 360
    assert any((np.abs(picture - class_color(index)).sum(axis=-1) == 0).sum() > 50 for index in range(4))


def test_make_tfrecords_writes_every_split(shapes_dir, tmp_path):
    code, output, error = run("-m", "refinedet_tf", "make-tfrecords", f"--data_dir={shapes_dir}",
                              "--splits=train,val", f"--classes={','.join(SHAPES)}",
                              f"--output_dir={tmp_path / 'records'}", "--shards=3")  # fmt: skip
    assert code == 0, error
    assert "Wrote 8 images to 3 files" in output
    for split in ("train", "val"):
        before = read_voc(shapes_dir, [split], SHAPES).examples
        after = read_tfrecords(tmp_path / "records", [split], SHAPES).examples
        for first, second in zip(before, after, strict=True):
            assert first.read_image() == second.read_image()
            np.testing.assert_array_equal(first.boxes, second.boxes)
            np.testing.assert_array_equal(first.classes, second.classes)
