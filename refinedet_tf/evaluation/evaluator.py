"""Evaluates a model, a detector or detections on labeled images."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from refinedet_tf.data.examples import Example, ExampleSet
from refinedet_tf.data.pipeline import evaluation_pipeline, image_pipeline
from refinedet_tf.errors import ConfigError, DataError
from refinedet_tf.evaluation.coco import CocoResult, coco_average_precision
from refinedet_tf.evaluation.images import ImageDetections, clip_boxes, detections_to_images, examples_to_truths
from refinedet_tf.evaluation.prediction import ProtocolDetector
from refinedet_tf.evaluation.protocols import EvaluationProtocol, find_protocol
from refinedet_tf.evaluation.tables import decimals, text_table
from refinedet_tf.evaluation.voc import VocResult, voc_average_precision
from refinedet_tf.model import RefineDet
from refinedet_tf.ops.targets import IGNORED_CLASS


class Predictor(Protocol):
    """Anything that detects objects in images of their original size, such as `Detector`."""

    def predict(self, images: tf.data.Dataset) -> dict[str, np.ndarray]:
        """Returns the detections of all images, as `detections_to_images` takes them.

        Args:
            images: batches of one image, uint8 `[1, h, w, 3]`, RGB.
        """


@dataclass(frozen=True)
class EvaluationResult:
    """The result of an evaluation by both definitions of average precision.

    Attributes:
        voc: PASCAL VOC's, at IoU 0.5.
        coco: COCO's.
        detections: the evaluated detections, in pixels of the original images, not clipped.
    """

    voc: VocResult
    coco: CocoResult
    detections: list[ImageDetections]

    @property
    def ap_11_point(self) -> float:
        """VOC2007's mean AP: 11 points of recall, IoU 0.5."""
        return self.voc.mean_ap_11_point

    @property
    def ap_area(self) -> float:
        """VOC's mean AP since 2010: area under the curve, IoU 0.5."""
        return self.voc.mean_ap_area

    @property
    def coco_ap(self) -> float:
        """COCO's AP: mean over IoU 0.5, 0.55, ..., 0.95."""
        return self.coco.metrics["AP"]

    def table(self) -> str:
        """Returns VOC's and COCO's text tables."""
        return f"VOC, IoU 0.5\n{self.voc.table()}\n\nCOCO\n{self.coco.table()}"

    def as_dict(self) -> dict[str, Any]:
        """Returns all numbers for JSON: `ap_11_point`, `ap_area`, `coco_ap`, and the details in `voc` and `coco`."""
        voc, coco = self.voc.as_dict(), self.coco.as_dict()
        return {
            "ap_11_point": voc["mean_ap_11_point"],
            "ap_area": voc["mean_ap_area"],
            "coco_ap": coco["AP"],
            "voc": voc,
            "coco": coco,
        }


def evaluate(
    source: RefineDet | Predictor | Sequence[ImageDetections],
    data: ExampleSet,
    *,
    batch_size: int = 8,
    protocol: str | EvaluationProtocol | None = None,
) -> EvaluationResult:
    """Evaluates on labeled images.

    Args:
        source: a model, a `Detector`, or the detections of each image in pixels.
        data: the labeled images, such as `read_data` returns.
        batch_size: images in a batch, for a model without a protocol; otherwise one image is processed at a time.
        protocol: for a model, how detections are made: a name of `PROTOCOLS`, or a protocol of your own. None takes
            the model's own detection settings, at its own input size.

    Returns:
        VOC's and COCO's average precision, of all classes and of each.

    Raises:
        ConfigError: there is no such protocol, or `source` is not a model, which alone can follow one.
        DataError: the data have other classes than the model or detector, or the same in another order.
        ValueError: the number of images with detections differs from the number of examples, or a class index is out
            of range.
    """
    if isinstance(protocol, str):
        protocol = find_protocol(protocol)
    if protocol and not isinstance(source, RefineDet):
        raise ConfigError("An evaluation protocol needs a Keras model; exported models have fixed settings.")
    classes = source.config.classes if isinstance(source, RefineDet) else getattr(source, "classes", data.classes)
    if list(classes) != list(data.classes):
        raise DataError(
            f"The model's classes are {', '.join(classes)}; the data's are {', '.join(data.classes)}. "
            "Read the data with the model's classes, in the model's order."
        )
    if protocol:
        detections = ProtocolDetector(source, protocol).detect_all(data.examples)
    elif isinstance(source, RefineDet):
        detections = _detect(source, data, batch_size)
    elif hasattr(source, "predict"):
        detections = detections_to_images(source.predict(image_pipeline(data.examples)), _sizes(data))
    else:
        detections = list(source)
    return evaluate_detections(detections, data)


def evaluate_arrays(
    batches: Iterable[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray], tuple[int, int]]],
    classes: Sequence[str],
) -> EvaluationResult:
    """Evaluates plain arrays, of any detector.

    Args:
        batches: of each batch the detections, the ground truth, and height and width of its images in pixels.
            Detections: `boxes` `[b, k, 4]`, relative (xmin, ymin, xmax, ymax), `scores` `[b, k]` (or `confidence`, as
            KerasCV calls them), `classes` `[b, k]` and `num_detections` `[b]`. Ground truth: `boxes` `[b, m, 4]` and
            `classes` `[b, m]`, padded with class -1, and optionally `difficult` `[b, m]`. Class -2 marks an ignored
            object: detections of any class on it are not errors.
        classes: the class names by index.

    Raises:
        ValueError: as `check_images`.
    """
    detections, examples = [], []
    for found, truth, (height, width) in batches:
        found = {"scores": found.get("confidence"), **found}
        detections += detections_to_images(found, [(height, width)] * len(truth["classes"]))
        for index, labels in enumerate(np.asarray(truth["classes"])):
            real = labels >= 0
            flags = np.zeros(int(real.sum()), bool)
            difficult = np.asarray(truth["difficult"][index], bool)[real] if "difficult" in truth else flags
            boxes, name = np.asarray(truth["boxes"][index], np.float32), str(len(examples))
            objects = boxes[real], labels[real].astype(int), difficult, flags
            examples.append(Example(name, "", height, width, *objects, ignored=boxes[labels == IGNORED_CLASS]))
    return evaluate_detections(detections, ExampleSet(examples, list(classes), []))


def evaluate_detections(detections: list[ImageDetections], data: ExampleSet) -> EvaluationResult:
    """Evaluates detections by both definitions, each with its own coordinates.

    VOC's are those of the authors' test script. A VOC annotation counts pixels from 1, and the readers divide it by
    the image size unchanged, so relative * size is the annotation again. A detection is scaled by the size, clipped to
    pixels counted from 0, and then written counted from 1, which puts it one pixel to the lower right of what the model
    learned. Published figures include this shift, and so do these; at an IoU of 0.5 it matters only to tiny objects.

    COCO's boxes are only clipped to the image.

    Args:
        detections: of each image, in pixels.
        data: the labeled images, in the same order.

    Raises:
        ValueError: as `check_images`.
    """
    truths = examples_to_truths(data.examples)
    sizes = _sizes(data)
    if len(detections) != len(sizes):
        raise ValueError(f"Detections of {len(detections)} images but {len(sizes)} examples; give both for the same.")
    voc, coco = [], []
    for found, (height, width) in zip(detections, sizes, strict=True):
        voc.append(clip_boxes(found, width - 1, height - 1, offset=1))
        coco.append(clip_boxes(found, width, height))
    return EvaluationResult(
        voc=voc_average_precision(voc, truths, data.classes),
        coco=coco_average_precision(coco, truths, data.classes),
        detections=detections,
    )


def comparison_table(results: Mapping[str, EvaluationResult]) -> str:
    """Returns a text table with a row for each named result."""
    columns = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
    rows = [("", "AP 11-point", "AP area", *(f"COCO {columns[0]}", *columns[1:]))]
    for name, result in results.items():
        figures = (result.ap_11_point, result.ap_area, *(result.coco.metrics[column] for column in columns))
        rows.append((name, *map(decimals, figures)))
    return text_table(rows, mean_row=False)


def _detect(model: RefineDet, data: ExampleSet, batch_size: int) -> list[ImageDetections]:
    sizes = _sizes(data)
    found = model.predict(evaluation_pipeline(data.examples, model.resizing, batch_size), verbose=0)
    return detections_to_images({**found, "boxes": model.resizing.boxes_to_image(found["boxes"], sizes)}, sizes)


def _sizes(data: ExampleSet) -> list[tuple[int, int]]:
    return [(example.height, example.width) for example in data.examples]
