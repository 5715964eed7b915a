"""Running an exported ONNX file."""

import json
import os
from pathlib import Path

import numpy as np
import tensorflow as tf

from refinedet_tf.errors import ExportError
from refinedet_tf.serving.checksums import check_onnx
from refinedet_tf.serving.outputs import OUTPUT_NAMES, from_outputs

CLASSES, SETTINGS = "classes", "detector.json"


class OnnxModel:
    """An ONNX file that this project exported, ready to run with ONNX Runtime.

    Attributes:
        classes: the class names by index.
        mixed_sizes: images of a batch must have one size.
        settings: the detection settings that the file applies.
    """

    def __init__(self, path: str | os.PathLike, *, num_threads: int | None = None):
        """Opens a file.

        Args:
            path: the file.
            num_threads: threads to run on; by default one for each processor.

        Raises:
            OSError: the file cannot be read.
            ExportError: onnxruntime is not installed, or the file is no export of this project or damaged.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise ExportError("ONNX files need onnxruntime: pip install refinedet-tf[onnx].") from error

        self.mixed_sizes = False
        content = Path(path).read_bytes()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        options.intra_op_num_threads = num_threads or 0
        try:
            check_onnx(content)
            self._session = onnxruntime.InferenceSession(
                content, options, providers=onnxruntime.get_available_providers()
            )
            metadata = self._session.get_modelmeta().custom_metadata_map
            self.classes = json.loads(metadata[CLASSES])
            self.settings = json.loads(metadata[SETTINGS])
        # ONNX Runtime raises errors of its own kinds, which have no common base.
        except Exception as error:
            raise ExportError(f"{os.fspath(path)} is not an ONNX file that this project exported: {error}") from error

    def detect_batch(self, images: np.ndarray) -> dict[str, tf.Tensor]:
        """Detects in images, uint8 RGB `[b, h, w, 3]` of any size.

        Returns:
            Detections `[b, k, ...]` as `RefineDet.detect` returns them.
        """
        # An empty batch kills ONNX Runtime before 1.31, which divides by zero; and in files written on TensorFlow 2.15
        # the number of anchors cannot be derived from it. A blank image stands in.
        filled = np.asarray(images) if len(images) else np.zeros((1, *np.shape(images)[1:]), np.uint8)
        values = self._session.run(list(OUTPUT_NAMES), {"images": filled})
        return from_outputs({name: value[: len(images)] for name, value in zip(OUTPUT_NAMES, values, strict=True)})
