"""Average precision during `fit`, for RefineDet and for other detectors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow import keras

from refinedet_tf.data.examples import ExampleSet
from refinedet_tf.evaluation.evaluator import EvaluationResult, evaluate, evaluate_arrays

FIGURES = ("ap_11_point", "ap_area", "coco_ap")


class AveragePrecision(keras.callbacks.Callback):
    """Evaluates at the end of epochs and adds `val_ap_11_point`, `val_ap_area` and `val_coco_ap` to the logs.

    Other callbacks can use these names, such as `ModelCheckpoint(monitor="val_coco_ap", mode="max")`, if they come
    later in the list. In epochs without an evaluation the values are NaN.

    ```python
    model.fit(train, callbacks=[rd.AveragePrecision(val, class_names)])
    ```

    Attributes:
        result: the latest `EvaluationResult`.
    """

    def __init__(
        self,
        data: tf.data.Dataset | ExampleSet,
        classes: Sequence[str] | None = None,
        *,
        detect: Callable[[keras.Model, tf.Tensor], Mapping[str, Any]] | None = None,
        every: int = 1,
    ):
        """Takes the validation data.

        Args:
            data: batches `(images, {"boxes", "classes"})` as `fit` takes them, evaluated in pixels of these images; or,
                for a `RefineDet`, labeled images, evaluated in pixels of the files.
            classes: the class names by index; labeled images have their own.
            detect: from the model and a batch of images to a batch of detections, as `evaluate_arrays` takes them. The
                default is `model.predict_on_batch`, which suits RefineDet, and KerasCV's detectors if their
                `bounding_box_format` is `rel_xyxy`.
            every: epochs from one evaluation to the next.

        Raises:
            ValueError: class names are missing.
        """
        super().__init__()
        if classes is None and not isinstance(data, ExampleSet):
            raise ValueError("A dataset of batches has no class names; give them as `classes`.")
        self.data = data
        self.classes = classes
        self.detect = detect or (lambda model, images: model.predict_on_batch(images))
        self.every = every
        self.result: EvaluationResult | None = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Evaluates if it is time."""
        logs = {} if logs is None else logs
        logs.update({f"val_{name}": float("nan") for name in FIGURES})
        if (epoch + 1) % self.every:
            return
        self.result = self._evaluate()
        logs.update({f"val_{name}": getattr(self.result, name) for name in FIGURES})

    def _evaluate(self) -> EvaluationResult:
        if isinstance(self.data, ExampleSet):
            return evaluate(self.model, self.data)
        batches = []
        for images, targets in self.data:
            found = {name: np.asarray(value) for name, value in self.detect(self.model, images).items()}
            batches.append((found, {name: _dense(value) for name, value in targets.items()}, images.shape[1:3]))
        return evaluate_arrays(batches, self.classes)


def _dense(values: Any) -> np.ndarray:
    return np.asarray(values.to_tensor(-1) if isinstance(values, tf.RaggedTensor) else values)
