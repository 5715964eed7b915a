"""The entry points of `export/`, and the example for devices, in processes of their own."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from refinedet_tf.inference.detector import Detector, read_image
from tests.conftest import PROJECT

# Runs a script where TensorFlow cannot be imported.
WITHOUT_TENSORFLOW = """
import runpy, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "refinedet_tf", "keras"):
            raise ImportError(f"{name} is not for devices")

sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*arguments):
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=PROJECT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def exported_file(finished_run, shapes_dir, tmp_path_factory):
    """int8 with raw predictions: calibration from the data set, the decoder and the tensors' ranges beside the file."""
    path = tmp_path_factory.mktemp("tflite") / "model.tflite"
    result = run("export/tflite.py", f"--model={finished_run / 'model.keras'}", f"--output={path}", "--quantize=int8",
                 "--postprocess=none", f"--data_dir={shapes_dir}", "--noverify", "--float_layers=conv1,conv_dw_1",
                 f"--ranges={path.with_name('ranges.csv')}")  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert "Least precise" in result.stdout
    return path


def test_ranges_are_those_of_the_layers_in_int8(exported_file):
    with open(exported_file.with_name("ranges.csv"), newline="", encoding="utf-8") as file:
        layers = [row["layer"] for row in csv.DictReader(file)]
    assert layers[0] == "conv_pw_1" and {"TL3_1_pointwise", "P6_pointwise", "odm3_classes_pointwise"} < set(layers)
    assert not {"preprocessing", "conv1", "conv_dw_1"} & set(layers)


def test_the_example_for_devices_detects_without_tensorflow(exported_file, shapes_dir):
    pytest.importorskip("ai_edge_litert")
    photo = next((shapes_dir / "JPEGImages").glob("*.jpg"))
    result = run("-c", WITHOUT_TENSORFLOW, "export/edge/detect.py", f"--model={exported_file}", photo,
                 "--score_threshold=0.02")  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    expected = Detector.load(exported_file).detect(read_image(photo), 0.02)
    assert len(found) == len(expected.scores) > 5
    np.testing.assert_allclose([entry["score"] for entry in found], expected.scores, atol=1e-3)
    # Equal scores come in any order, so each box is looked for among all of the other side.
    boxes = np.array([entry["box"] for entry in found])
    distances = np.abs(boxes[:, np.newaxis] - expected.boxes * 128).max(axis=-1)
    assert distances.min(axis=0).max() < 0.5 and distances.min(axis=1).max() < 0.5


def test_verify_says_what_is_beyond_the_tolerance(tiny_model, exported, tmp_path):
    bias = tiny_model.get_layer("odm3_classes_pointwise").weights[-1]
    before = bias.numpy()
    bias.assign(before + np.float32([0.01, -0.01] * 6))
    tiny_model.save(tmp_path / "changed.keras")
    bias.assign(before)
    result = run("export/verify.py", f"--model={tmp_path / 'changed.keras'}", f"--artifact={exported}",
                 f"--json={tmp_path / 'verify.json'}")  # fmt: skip
    assert result.returncode == 1
    assert "do not detect what the model detects" in result.stderr and "beyond the tolerance" in result.stdout
    rows = json.loads((tmp_path / "verify.json").read_text())
    assert rows[0]["form"] == "model" and rows[0]["passed"]
    assert {row["form"].split()[-1] for row in rows[1:]} == {
        "serving_default", "serving_bytes", "serving_raw", "serving_tunable"
    }  # fmt: skip
    assert not any(row["passed"] for row in rows[1:])


def test_an_export_never_overwrites_a_file(finished_run, exported_file):
    before = exported_file.read_bytes()
    result = run("export/tflite.py", f"--model={finished_run / 'model.keras'}", f"--output={exported_file}")
    assert result.returncode == 1 and "exists" in result.stderr
    assert exported_file.read_bytes() == before
