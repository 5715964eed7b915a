"""ONNX files beside the model they were made from."""

import dataclasses

import numpy as np
import pytest

from refinedet_tf.errors import ExportError
from refinedet_tf.export import export_onnx
from refinedet_tf.inference.detector import Detector
from refinedet_tf.inference.onnx_runner import OnnxModel
from refinedet_tf.verification import verify
from tests.inference.test_damaged_exports import damage

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("tf2onnx")


@pytest.fixture(scope="module")
def onnx_file(tiny_model, tmp_path_factory):
    """A letterboxing model, which has more in its graph than a warping one."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_model, "resizing", dataclasses.replace(tiny_model.resizing, mode="letterbox"))
        export_onnx(tiny_model, path)
    return path


@pytest.fixture
def letterboxing(tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model, "resizing", dataclasses.replace(tiny_model.resizing, mode="letterbox"))
    return tiny_model


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(2)
    sizes = ((9, 14), (14, 9))
    return [rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(rows, 0).repeat(columns, 1) for rows, columns in sizes]


def test_an_onnx_file_agrees_with_the_model(letterboxing, onnx_file, photos):
    result = verify(letterboxing, [onnx_file], photos)[1]
    assert result.passed and result.exact and result.unmatched == 0 and result.expected > 100
    assert result.score_difference < 1e-4 and result.box_difference < 1e-3


def test_the_batch_is_free(onnx_file, photos):
    model = OnnxModel(onnx_file)
    assert model.classes == ["circle", "square", "star"] and model.settings["max_detections"] == 500
    assert model.settings["score_thresholds"] == {"star": 0.4}
    batch = np.stack([photos[0], 255 - photos[0], photos[0]])
    together = model.detect_batch(batch)
    for row in range(3):
        alone = model.detect_batch(batch[row : row + 1])
        np.testing.assert_allclose(together["scores"][row], alone["scores"][0], atol=1e-5)
        assert together["num_detections"][row] == alone["num_detections"][0] > 20
    assert model.detect_batch(batch[:0])["boxes"].shape == (0, 500, 4)


def test_openvino_runs_the_file(onnx_file, photos):
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(onnx_file, "CPU")
    batch = np.stack([photos[0], 255 - photos[0]])
    outputs = {output.any_name: value for output, value in compiled({"images": batch}).items()}
    expected = OnnxModel(onnx_file).detect_batch(batch)
    np.testing.assert_array_equal(outputs["num_detections"], expected["num_detections"])
    np.testing.assert_allclose(outputs["detection_scores"], expected["scores"], atol=1e-4)


def test_damaged_files_are_refused(onnx_file, tmp_path):
    rng = np.random.default_rng(3)
    content = onnx_file.read_bytes()
    for kind in ["flip"] * 20 + ["cut"] * 10 + ["noise"] * 10:
        (tmp_path / "damaged.onnx").write_bytes(damage(content, rng, kind))
        with pytest.raises(ExportError, match=r"damaged\.onnx is not an ONNX file that this project exported"):
            Detector.load(tmp_path / "damaged.onnx")


def test_an_export_never_overwrites_a_file(tiny_model, onnx_file):
    with pytest.raises(ExportError, match="exists"):
        export_onnx(tiny_model, onnx_file)
