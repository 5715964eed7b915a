"""Exports of a trained model, one call each: a SavedModel for servers, TFLite and ONNX files for devices."""

import os
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refinedet_tf.data.examples import Example
from refinedet_tf.data.pipeline import image_pipeline
from refinedet_tf.errors import ExportError
from refinedet_tf.inference import numpy_decoder
from refinedet_tf.inference.tflite_runner import TFLiteModel
from refinedet_tf.model import RefineDet
from refinedet_tf.serving.onnx import convert_onnx
from refinedet_tf.serving.saved_model import export_saved_model
from refinedet_tf.serving.tensor_ranges import TensorRange, measure_tensor_ranges, write_tensor_ranges
from refinedet_tf.serving.tflite import convert_tflite

__all__ = ["TFLiteExport", "export_onnx", "export_saved_model", "export_tflite"]

DECODER = "decode_detections.py"
MEASURED_IMAGES = 8


@dataclass(frozen=True)
class TFLiteExport:
    """What `export_tflite` has written.

    Attributes:
        path: the TFLite file.
        decoder: the NumPy decoder beside it, for a file that returns raw predictions, else None.
        ranges: the int8 tensors and their precision, if they were asked for, else None.
    """

    path: Path
    decoder: Path | None = None
    ranges: list[TensorRange] | None = None


def export_tflite(
    model: RefineDet,
    path: str | os.PathLike,
    *,
    quantize: str = "none",
    postprocess: str = "op",
    input_type: str = "uint8",
    calibration: Iterable[np.ndarray | Example] = (),
    float_layers: Collection[str] = (),
    ranges: str | os.PathLike | None = None,
) -> TFLiteExport:
    """Writes a TFLite file; with `postprocess="none"` also `decode_detections.py` beside it, which needs NumPy only.

    Args:
        model: a trained model.
        path: the file to write; it must not exist.
        quantize: `none` (float32), `float16` (weights only), `dynamic` (int8 weights) or `int8` (the whole network).
        postprocess: `op` to suppress inside the file, `none` to return raw predictions.
        input_type: `uint8` or `float32`, always RGB, 0..255.
        calibration: for `int8`: a few hundred images to measure the ranges of tensors on, uint8 RGB `[h, w, 3]` of any
            size, or examples as `read_data` returns them.
        float_layers: for `int8`: names of layers that stay in float32.
        ranges: for `int8`: a CSV file to write the range and the precision of every tensor to.

    Raises:
        ExportError: the file exists, there are no images to calibrate with, or the model has no such layer.
    """
    path = Path(path)
    if path.exists():
        raise ExportError(f"{path} exists; choose another file.")
    images = _pixels(calibration) if quantize == "int8" else []
    form = {"postprocess": postprocess, "input_type": input_type}
    content = convert_tflite(model, quantize=quantize, calibration_images=images, float_layers=float_layers, **form)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    decoder = None
    if postprocess == "none":
        decoder = Path(shutil.copy(numpy_decoder.__file__, path.with_name(DECODER)))
    measured = None
    if quantize == "int8" and ranges:
        inputs = [TFLiteModel(path).prepare(image) for image in images[:MEASURED_IMAGES]]
        layers = [layer.name for layer in model.layers]
        measured = measure_tensor_ranges(convert_tflite(model, **form), content, inputs, layers)
        write_tensor_ranges(measured, ranges)
    return TFLiteExport(path, decoder, measured)


def export_onnx(model: RefineDet, path: str | os.PathLike) -> None:
    """Writes an ONNX file for ONNX Runtime or OpenVINO, with decoding and suppression inside.

    The input is `images`, uint8 RGB `[b, h, w, 3]` of any size; the outputs are those of a SavedModel's
    `serving_default`.

    Args:
        model: a trained model.
        path: the file to write; it must not exist.

    Raises:
        ExportError: the file exists, or tf2onnx is not installed.
    """
    path = Path(path)
    if path.exists():
        raise ExportError(f"{path} exists; choose another file.")
    content = convert_onnx(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _pixels(images: Iterable[np.ndarray | Example]) -> list[np.ndarray]:
    """Reads those images that are given as examples."""
    images = list(images)
    examples = [image for image in images if isinstance(image, Example)]
    decoded = (batch[0].numpy() for batch in image_pipeline(examples)) if examples else iter(())
    return [next(decoded) if isinstance(image, Example) else image for image in images]
