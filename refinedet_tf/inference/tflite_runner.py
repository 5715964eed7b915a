"""Running an exported TFLite file."""

import os
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from refinedet_tf.errors import ExportError
from refinedet_tf.inference.decoding import decode_batch
from refinedet_tf.serving.inputs import INPUT_NAME, InputForm
from refinedet_tf.serving.metadata import MAX_THREADS, read_metadata
from refinedet_tf.serving.outputs import OUTPUT_NAMES, PREDICTION_NAMES, from_outputs
from refinedet_tf.serving.tflite_structure import check_structure


class TFLiteModel:
    """A TFLite file that this project exported, ready to run.

    Attributes:
        metadata: what the file carries besides the network.
        classes: the class names by index.
        mixed_sizes: images of a batch may differ in size.
        max_detections: the largest number of detections in one image.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        interpreter: Callable = tf.lite.Interpreter,
        num_threads: int | None = None,
    ):
        """Opens a file.

        Args:
            path: the file.
            interpreter: `tf.lite.Interpreter`, or `ai_edge_litert.interpreter.Interpreter`, which has the same methods.
            num_threads: threads to run on, at most `MAX_THREADS`; by default one for each processor.

        Raises:
            ExportError: the file carries no metadata of this project, is damaged, or is not what it claims to be.
        """
        self._path = os.fspath(path)
        self.metadata = read_metadata(path)
        check_structure(path)
        self.classes = self.metadata.classes
        self.mixed_sizes = True
        self.max_detections = self.metadata.settings["max_detections"]
        self._form = InputForm.from_settings(self.metadata.settings["input"])
        num_threads = num_threads or min(os.cpu_count(), MAX_THREADS)
        try:
            self._interpreter = interpreter(model_path=self._path, num_threads=num_threads)
            self._run = self._interpreter.get_signature_runner("serving_default")
            shape = self._run.get_input_details()[INPUT_NAME]["shape"].tolist()
            outputs = set(self._run.get_output_details())
        except (ValueError, RuntimeError, KeyError) as error:
            raise ExportError(f"{self._path} cannot be run: {error}") from error
        if shape != [1, *self._form.resizing.size, 3]:
            raise ExportError(f"{self._path} takes images of shape {shape}, which its settings do not say.")
        missing = set(OUTPUT_NAMES if self.metadata.anchors is None else PREDICTION_NAMES) - outputs
        if missing:
            raise ExportError(f"{self._path} lacks the outputs {', '.join(sorted(missing))}.")

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the outputs for one image in the form of the input, `[1, h, w, 3]`.

        Raises:
            ExportError: an operation of the file cannot be computed.
        """
        try:
            return self._run(images=images)
        except RuntimeError as error:
            raise ExportError(f"{self._path} cannot be run: {error}") from error

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Converts an image `[h, w, 3]` of any size, RGB, 0..255, to the form of the input, `[1, h, w, 3]`."""
        return self._form.prepare(image)

    def detect(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Detects in one image `[h, w, 3]` of any size.

        Returns:
            `boxes` float32 `[k, 4]`, (xmin, ymin, xmax, ymax), relative to the image; `scores` float32 `[k]`,
            descending; `classes` int32 `[k]`.
        """
        found = self._detect(image)
        count = int(found.pop("num_detections")[0])
        return {name: value[0, :count].numpy() for name, value in found.items()}

    def detect_batch(self, images: Iterable[np.ndarray]) -> dict[str, tf.Tensor]:
        """Detects in images `[h, w, 3]` of any sizes, one after the other.

        Returns:
            Detections `[b, k, ...]` as `RefineDet.detect` returns them, k being `max_detections`.
        """
        found = [self._detect(np.asarray(image)) for image in images]
        return {name: tf.concat([image[name] for image in found], axis=0) for name in found[0]}

    def _detect(self, image: np.ndarray) -> dict[str, tf.Tensor]:
        outputs = self.run(self.prepare(image))
        if self.metadata.anchors is not None:
            found = decode_batch(outputs, [self.metadata.anchors], self.metadata.settings)
        else:
            found = from_outputs(outputs)
        return {**found, "boxes": self._form.resizing.boxes_to_image(found["boxes"], image.shape[:2])}
