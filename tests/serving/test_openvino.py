"""What docs/edge.md says of OpenVINO; run where it is installed."""

import numpy as np
import pytest

from refinedet_tf.inference.tflite_runner import TFLiteModel

openvino = pytest.importorskip("openvino")
frontend = pytest.importorskip("openvino.frontend")


def test_it_runs_raw_predictions_of_a_tflite_file(tflite_files, tiny_images):
    path = tflite_files("none", "none", "float32")
    expected = TFLiteModel(path).run(tiny_images[:1])
    found = list(openvino.Core().compile_model(path, "CPU")(tiny_images[:1]).values())
    assert len(found) == len(expected) == 4
    for name, values in expected.items():
        same_shape = [each for each in found if each.shape == values.shape]
        assert min(np.abs(each - values).max() for each in same_shape) < 1e-3, name


def test_it_has_no_operation_for_our_suppressions(tflite_files, exported):
    for path, operation in (
        (tflite_files("none", "op", "float32"), "TFLite_Detection_PostProcess"),
        (exported, "CombinedNonMaxSuppression"),
    ):
        with pytest.raises(frontend.OpConversionFailure, match=operation):
            openvino.Core().compile_model(openvino.convert_model(path), "CPU")
