"""Running an exported TFLite file."""

import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from refinedet_tf.inference.numpy_decoder import decode_detections
from refinedet_tf.ops.resizing import Resizing
from refinedet_tf.serving.metadata import read_metadata
from refinedet_tf.serving.tflite import MAX_THREADS, prepare_image


class TFLiteModel:
    """A TFLite file that this project exported, ready to run.

    Attributes:
        metadata: what the file carries besides the network.
        max_detections: the most detections of one image.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        interpreter: Callable = tf.lite.Interpreter,
        num_threads: int | None = None,
    ):
        """Opens a file.

        Args:
            path: the file.
            interpreter: `tf.lite.Interpreter`, or `ai_edge_litert.interpreter.Interpreter`, which is like it.
            num_threads: threads to run on, at most `MAX_THREADS`; by default as many as there are processors.

        Raises:
            ExportError: the file carries no metadata of this project.
        """
        self.metadata = read_metadata(path)
        self.max_detections = self.metadata.settings["max_detections"]
        form = self.metadata.settings["input"]
        self._resizing = Resizing(form["height"], form["width"], form["resize"])
        self._dtype = tf.as_dtype(form["type"])
        num_threads = num_threads or min(os.cpu_count(), MAX_THREADS)
        self._interpreter = interpreter(model_path=os.fspath(path), num_threads=num_threads)
        self._run = self._interpreter.get_signature_runner("serving_default")

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs for one image that has the form of the input, `[1, h, w, 3]`."""
        return self._run(images=images)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """An image `[h, w, 3]` of any size, RGB, 0..255, as an input."""
        return prepare_image(image, self._resizing, self._dtype)[np.newaxis]

    def detect(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Detections in one image `[h, w, 3]` of any size, in the form that `RefineDet.detect` gives, without padding.

        Returns:
            `boxes` float32 `[k, 4]` (xmin, ymin, xmax, ymax), relative; `scores` `[k]`, descending; `classes` int32
            `[k]`.
        """
        outputs = self.run(self.prepare(image))
        if self.metadata.anchors is not None:
            found = decode_detections(outputs, self.metadata.anchors, self.metadata.settings)
        else:
            count = int(outputs["num_detections"][0])
            found = {
                "boxes": outputs["detection_boxes"][0, :count][:, [1, 0, 3, 2]],
                "scores": outputs["detection_scores"][0, :count],
                "classes": outputs["detection_classes"][0, :count].astype(np.int32),
            }
        boxes = self._resizing.boxes_to_image(found["boxes"], image.shape[:2])
        return {**found, "boxes": np.asarray(boxes)}
