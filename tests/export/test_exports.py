"""The entry points of `export/`, and the example for devices, in processes of their own."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from refinedet_tf.inference.detector import Detector, read_image
from refinedet_tf.inference.tflite_runner import TFLiteModel
from tests.commands import refinedet
from tests.conftest import PROJECT
from tests.photos import png_that_claims

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
    assert layers[0] == "conv_pw_1" and {"TL3_1", "P6", "odm3_classes"} < set(layers)
    assert not {"preprocessing", "conv1", "conv_dw_1"} & set(layers)


@pytest.fixture(scope="module")
def photos(shapes_dir, tmp_path_factory):
    """A folder with a photo, the same turned by its EXIF tag, a broken file and one that claims many pixels."""
    folder = tmp_path_factory.mktemp("photos")
    photo = Image.open(next((shapes_dir / "JPEGImages").glob("*.jpg")))
    photo.save(folder / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees when shown
    photo.transpose(Image.Transpose.ROTATE_90).save(folder / "b.png", exif=exif)
    (folder / "c.jpg").write_bytes(b"no image")
    (folder / "d.png").write_bytes(png_that_claims(20_000, 20_000))
    return folder


def test_the_example_for_devices_detects_without_tensorflow(exported_file, photos):
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    result = run("-c", WITHOUT_TENSORFLOW, "export/edge/detect.py", f"--model={exported_file}", photos,
                 "--score_threshold=0.02")  # fmt: skip
    # Two files cannot be read: one line for each, and the results of the others.
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "c.jpg cannot be read as an image" in errors[0]
    assert "d.png" in errors[1] and "pixels" in errors[1] and "Traceback" not in result.stderr
    upright, turned = (json.loads(line) for line in result.stdout.splitlines())
    assert (upright["file"], turned["file"]) == (str(photos / "a.png"), str(photos / "b.png"))
    assert upright["detections"] == turned["detections"]
    found = upright["detections"]
    # On the same runtime: int8 kernels of other releases round differently, which changes what is suppressed.
    detector = Detector.from_export(TFLiteModel(exported_file, interpreter=litert.Interpreter))
    expected = detector.detect(read_image(photos / "a.png"), 0.02)
    assert len(found) == len(expected.scores) > 5
    np.testing.assert_allclose([entry["score"] for entry in found], expected.scores, atol=1e-3)
    # Equal scores come in any order, so each box is looked for among all of the other side.
    boxes = np.array([entry["box"] for entry in found])
    distances = np.abs(boxes[:, np.newaxis] - expected.boxes * 128).max(axis=-1)
    assert distances.min(axis=0).max() < 0.5 and distances.min(axis=1).max() < 0.5


def test_the_example_for_devices_says_in_one_line_what_is_no_model(photos):
    pytest.importorskip("ai_edge_litert")
    result = run("-c", WITHOUT_TENSORFLOW, "export/edge/detect.py", f"--model={photos / 'a.png'}", photos)
    assert result.returncode == 1 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and "a.png cannot be opened as an exported model" in line


def test_the_example_for_devices_reads_frames(exported_file, photos, tmp_path):
    pytest.importorskip("ai_edge_litert")
    cv2 = pytest.importorskip("cv2")
    pixels = read_image(photos / "a.png")
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, pixels.shape[1::-1])
    for _ in range(3):
        writer.write(np.ascontiguousarray(pixels[:, :, ::-1]))
    writer.release()
    result = run("-c", WITHOUT_TENSORFLOW, "export/edge/detect.py", f"--model={exported_file}",
                 f"--camera={tmp_path / 'clip.avi'}", "--score_threshold=0.02")  # fmt: skip
    assert result.returncode == 0, result.stderr
    frames = [json.loads(line) for line in result.stdout.splitlines()]
    assert [frame["frame"] for frame in frames] == [0, 1, 2] and all(frame["detections"] for frame in frames)


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
    code, _, error = refinedet("export-tflite", f"--model={finished_run / 'model.keras'}", f"--output={exported_file}")
    assert code == 1 and "exists" in error
    assert exported_file.read_bytes() == before
