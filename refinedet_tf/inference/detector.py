"""One way to detect, whatever form the model has."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps, UnidentifiedImageError

from refinedet_tf.errors import DataError, WeightFileError
from refinedet_tf.inference.tflite_runner import TFLiteModel
from refinedet_tf.model import RefineDet
from refinedet_tf.serving import read_labels
from refinedet_tf.weights import load_model


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best first.

    Attributes:
        boxes: float32 `[k, 4]`, (xmin, ymin, xmax, ymax) relative to the image, clipped to it.
        scores: float32 `[k]`, 0..1.
        classes: int32 `[k]`, indices into the detector's class names.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


class Detector:
    """Detects objects with a Keras model, a SavedModel or a TFLite file; `Detector.load` opens any of them.

    Attributes:
        classes: the class names by index.
    """

    def __init__(self, run: Callable[[tf.Tensor], dict[str, tf.Tensor]], classes: list[str]):
        """Wraps a function from uint8 RGB `[b, h, w, 3]` of any size to detections as `RefineDet.detect` gives."""
        self._run = run
        self.classes = classes

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Detector":
        """Opens a .keras file, a SavedModel folder or a .tflite file that this project exported.

        Raises:
            WeightFileError: there is no such model, or it cannot be opened.
            ExportError: the .tflite file is no export of this project.
        """
        if os.path.isdir(path):
            return cls._from_saved_model(os.fspath(path))
        if os.fspath(path).endswith(".tflite"):
            return cls.from_tflite(TFLiteModel(path))
        return cls.from_model(load_model(path))

    @classmethod
    def from_model(cls, model: RefineDet) -> "Detector":
        """Wraps a model that lives in this process."""

        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)])
        def run(images: tf.Tensor) -> dict[str, tf.Tensor]:
            found = model.detect(model.resizing.resize(images))
            return {**found, "boxes": model.resizing.boxes_to_image(found["boxes"], tf.shape(images)[1:3])}

        return cls(run, list(model.config.classes))

    @classmethod
    def from_tflite(cls, model: TFLiteModel) -> "Detector":
        """Wraps an open TFLite file, which takes one image at a time."""

        def run(images: tf.Tensor) -> dict[str, tf.Tensor]:
            return pad_detections([model.detect(image) for image in np.asarray(images)], model.max_detections)

        return cls(run, model.metadata.classes)

    @classmethod
    def _from_saved_model(cls, path: str) -> "Detector":
        try:
            loaded = tf.saved_model.load(path)
            serve = loaded.signatures["serving_default"]
            classes = read_labels(path)
        except (OSError, KeyError, tf.errors.NotFoundError) as error:
            raise WeightFileError(f"{path} is no SavedModel that this project exported: {error}") from error

        def run(images: tf.Tensor) -> dict[str, tf.Tensor]:
            outputs = serve(images=images)
            return {
                "boxes": tf.gather(outputs["detection_boxes"], [1, 0, 3, 2], axis=-1),
                "scores": outputs["detection_scores"],
                "classes": outputs["detection_classes"],
                "num_detections": outputs["num_detections"],
            }

        detector = cls(run, classes)
        detector._loaded = loaded  # the signature alone does not keep the variables alive
        return detector

    def detect(self, image: np.ndarray | str | os.PathLike, score_threshold: float = 0.0) -> Detections:
        """Detects the objects in one image.

        Args:
            image: uint8 RGB `[h, w, 3]` of any size, or an image file.
            score_threshold: lower scores are left out, besides those that the model's own threshold leaves out.
                Boxes beside the image are left out, too.

        Raises:
            DataError: the file is no readable image, or the array no uint8 RGB image.
        """
        if not isinstance(image, np.ndarray):
            image = read_image(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise DataError(f"An image must be uint8 [h, w, 3] RGB; this one is {image.dtype} {list(image.shape)}.")
        found = {name: value[0].numpy() for name, value in self._run(tf.constant(image[np.newaxis])).items()}
        keep = np.arange(len(found["scores"])) < found["num_detections"]
        keep &= found["scores"] >= score_threshold
        boxes = np.clip(found["boxes"], 0, 1)
        keep &= (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        return Detections(boxes[keep], found["scores"][keep], found["classes"][keep])

    def predict(self, images: tf.data.Dataset) -> dict[str, np.ndarray]:
        """Detections of all images of a data set of batches, uint8 `[b, h, w, 3]`, as `keras.Model.predict` gives."""
        batches = [self._run(batch) for batch in images]
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def pad_detections(images: list[dict[str, np.ndarray]], length: int) -> dict[str, tf.Tensor]:
    """Detections of images, each with its own number of them, as a batch in the form that `RefineDet.detect` gives.

    Args:
        images: of each image `boxes` `[k, 4]`, `scores` `[k]` and `classes` `[k]`, with k at most `length`.
        length: of the batch's tensors.
    """
    batch = {
        name: tf.stack([
            np.pad(image[name], [(0, length - len(image[name]))] + [(0, 0)] * (image[name].ndim - 1),
                   constant_values=padding)
            for image in images
        ])
        for name, padding in (("boxes", 0), ("scores", 0), ("classes", -1))
    }  # fmt: skip
    return {**batch, "num_detections": tf.constant([len(image["scores"]) for image in images])}


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads a photo as a person sees it: upright, RGB.

    Returns:
        uint8 `[h, w, 3]`.

    Raises:
        DataError: the file is missing or no complete image.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise DataError(f"{os.fspath(path)} cannot be read as an image: {error}") from error
