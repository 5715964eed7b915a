"""One way to detect objects, whatever form the model has."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from refinedet_tf.errors import ConfigError
from refinedet_tf.inference.images import ImageSource, read_image
from refinedet_tf.inference.onnx_runner import OnnxModel
from refinedet_tf.inference.saved_model_runner import SavedModel
from refinedet_tf.inference.tflite_runner import TFLiteModel
from refinedet_tf.model import RefineDet
from refinedet_tf.visualization.drawing import draw_detections
from refinedet_tf.weights import load_model

BATCH_SIZE = 8
MODELS_OF_A_RUN = ("best.keras", "model.keras")


@dataclass(frozen=True)
class Detections:
    """The objects found in one image, best first.

    Attributes:
        boxes: float32 `[k, 4]`, (xmin, ymin, xmax, ymax) relative to the image, clipped to it.
        scores: float32 `[k]`, 0..1.
        classes: int32 `[k]`, indices into `class_names`.
        class_names: the names of all classes of the detector, by index.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    class_names: Sequence[str] = field(repr=False)

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.scores)

    def __getitem__(self, rows: np.ndarray | slice) -> "Detections":
        """Selects objects by a slice, an array of indices or a boolean mask."""
        return Detections(self.boxes[rows], self.scores[rows], self.classes[rows], self.class_names)

    @property
    def names(self) -> list[str]:
        """The class name of each object."""
        return [self.class_names[index] for index in self.classes]

    def draw(self, image: ImageSource, labels: bool = True) -> np.ndarray:
        """Draws the objects on a copy of their image.

        Args:
            image: the image that was given to `Detector.detect`, in any of its forms.
            labels: whether to write class names and scores beside the boxes.

        Returns:
            uint8 `[h, w, 3]`, RGB; upright if the image was read from a file.
        """
        image = read_image(image)
        return draw_detections(
            image, self.boxes, self.classes, self.scores, class_names=self.class_names, labels=labels
        )


class Detector:
    """Detects objects with a Keras model or an exported one; `Detector.load` opens any of them.

    Attributes:
        classes: the class names by index.
    """

    def __init__(
        self,
        run: Callable[[Iterable[np.ndarray]], dict[str, tf.Tensor]],
        classes: list[str],
        *,
        mixed_sizes: bool = False,
    ):
        """Wraps a function that detects objects in a batch of images.

        Args:
            run: from uint8 RGB `[b, h, w, 3]` of any height and width to detections relative to these images, as
                `RefineDet.detect` returns them.
            classes: the class names by index.
            mixed_sizes: whether `run` also takes a list of `[h, w, 3]` images whose sizes differ. Without it, only
                images of one size share a batch.
        """
        self._run = run
        self._mixed_sizes = mixed_sizes
        self.classes = classes

    @classmethod
    def load(cls, path: str | os.PathLike, num_threads: int | None = None) -> "Detector":
        """Opens a model that this project trained or exported, or one that comes with the package.

        Args:
            path: a .keras file, a name of `pretrained_models`, a SavedModel folder, a .tflite or .onnx file, or the
                work folder of a training run, of which `best.keras` is loaded, or `model.keras` if the run never
                evaluated.
            num_threads: threads that a .tflite or .onnx file runs on; by default one for each processor.

        Raises:
            WeightFileError: there is no such .keras file, or it cannot be opened.
            ExportError: the SavedModel, .tflite or .onnx file is no export of this project, or damaged.
            ConfigError: `num_threads` is given for another kind of model.
        """
        path = os.fspath(path)
        if path.endswith(".tflite"):
            return cls.from_export(TFLiteModel(path, num_threads=num_threads))
        if path.endswith(".onnx"):
            return cls.from_export(OnnxModel(path, num_threads=num_threads))
        if num_threads is not None:
            raise ConfigError(f"num_threads applies to .tflite and .onnx files; {path} runs on TensorFlow's threads.")
        if os.path.isdir(path):
            models = [model for name in MODELS_OF_A_RUN if os.path.isfile(model := os.path.join(path, name))]
            return cls.from_model(load_model(models[0])) if models else cls.from_export(SavedModel(path))
        return cls.from_model(load_model(path))

    @classmethod
    def from_model(cls, model: RefineDet) -> "Detector":
        """Wraps a model that lives in this process."""
        resizing = model.resizing

        @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)], autograph=False)
        def resize(image: tf.Tensor) -> tf.Tensor:
            return resizing.resize(image)

        inputs = [tf.TensorSpec([None, *resizing.size, 3]), tf.TensorSpec([None, 2], tf.int32)]

        @tf.function(input_signature=inputs, autograph=False)
        def detect(images: tf.Tensor, sizes: tf.Tensor) -> dict[str, tf.Tensor]:
            found = model.detect(images)
            return {**found, "boxes": resizing.boxes_to_image(found["boxes"], sizes)}

        def run(images: Iterable[np.ndarray]) -> dict[str, tf.Tensor]:
            images = list(images)
            return detect(tf.stack([resize(image) for image in images]), [image.shape[:2] for image in images])

        return cls(run, list(model.config.classes), mixed_sizes=True)

    @classmethod
    def from_export(cls, opened: SavedModel | TFLiteModel | OnnxModel) -> "Detector":
        """Wraps an exported model that has been opened."""
        return cls(opened.detect_batch, opened.classes, mixed_sizes=opened.mixed_sizes)

    def detect(
        self, images: ImageSource | Sequence[ImageSource], score_threshold: float = 0.0
    ) -> Detections | list[Detections]:
        """Detects the objects in one image, or in each image of a list.

        Args:
            images: an image file, the bytes of one, a PIL image or an array, uint8 RGB `[h, w, 3]`; or a list or tuple
                of these, whose sizes may differ. Files and PIL images are turned upright by their EXIF orientation.
                A list is detected in batches of `BATCH_SIZE` images: of any sizes by a Keras model, of equal sizes by
                a SavedModel; a TFLite file takes one image at a time.
            score_threshold: lower scores are left out, in addition to those that the model's own threshold leaves out.
                Boxes outside the image are left out, too.

        Returns:
            The detections of the image, or a list of them in the order of the images.

        Raises:
            DataError: an image cannot be read, is too large, or is no uint8 RGB image; the message names its file or,
                in a list, its index.
        """
        if not isinstance(images, list | tuple):
            return self._detect_batch([read_image(images)], score_threshold)[0]
        found = [None] * len(images)
        for indices, batch in self._batches(images):
            for index, detections in zip(indices, self._detect_batch(batch, score_threshold), strict=True):
                found[index] = detections
        return found

    def predict(self, images: tf.data.Dataset) -> dict[str, np.ndarray]:
        """Detects objects in a data set of batches, uint8 `[b, h, w, 3]`; returns what `RefineDet.predict` returns."""
        batches = [self._run(batch) for batch in images]
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    def _batches(self, images: Sequence[ImageSource]) -> Iterator[tuple[list[int], list[np.ndarray]]]:
        """Reads images, `BATCH_SIZE` at a time, and groups them by size where the model needs that."""
        for start in range(0, len(images), BATCH_SIZE):
            indices = range(start, min(start + BATCH_SIZE, len(images)))
            pixels = {index: read_image(images[index], _name(images[index], index)) for index in indices}
            if self._mixed_sizes:
                yield list(pixels), list(pixels.values())
                continue
            by_size = sorted(indices, key=lambda index: pixels[index].shape)
            for _, group in itertools.groupby(by_size, key=lambda index: pixels[index].shape):
                group = list(group)
                yield group, [pixels[index] for index in group]

    def _detect_batch(self, images: list[np.ndarray], score_threshold: float) -> list[Detections]:
        batch = images if self._mixed_sizes else tf.constant(np.stack(images))
        return unpad_detections(self._run(batch), self.classes, score_threshold)


def _name(image: ImageSource, index: int) -> str:
    """Returns the name of an image of a list in error messages."""
    return os.fspath(image) if isinstance(image, str | os.PathLike) else f"Image {index} of the list"


def unpad_detections(
    batch: Mapping[str, tf.Tensor], class_names: Sequence[str], score_threshold: float = 0.0
) -> list[Detections]:
    """Takes a batch apart, in the form that `RefineDet.detect` returns.

    Boxes are clipped to their images; those outside, and those with scores below the threshold, are left out.
    """
    batch = {name: np.asarray(value) for name, value in batch.items()}
    found = []
    for count, boxes, scores, classes in zip(
        *(batch[name] for name in ("num_detections", "boxes", "scores", "classes")), strict=True
    ):
        boxes = np.clip(boxes, 0, 1)
        keep = (np.arange(len(scores)) < count) & (scores >= score_threshold)
        keep &= (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        found.append(Detections(boxes[keep], scores[keep], classes[keep], class_names))
    return found
