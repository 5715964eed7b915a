"""Average precision as COCO defines it, computed by pycocotools in memory."""

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from refinedet_tf.evaluation.images import ImageDetections, ImageTruth, check_images
from refinedet_tf.evaluation.tables import decimals, mean, or_none, text_table

# The order of COCOeval's own list of statistics.
METRICS = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR1",
    "AR10",
    "AR100",
    "AR_small",
    "AR_medium",
    "AR_large",
)
CLASS_METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR100")


@dataclass(frozen=True)
class CocoResult:
    """COCO's twelve numbers, and those of each class.

    Attributes:
        metrics: the numbers by name, as in `METRICS`: average precision `AP` (mean over IoU 0.5, 0.55, ..., 0.95),
            `AP50`, `AP75`, `AP_small`, `AP_medium`, `AP_large`, and average recall `AR1`, `AR10`, `AR100` (detections
            of a class in an image), `AR_small`, `AR_medium`, `AR_large`. 0 to 1; nan where there is no object to find.
        classes: by class name, the numbers of `CLASS_METRICS` for that class alone.
    """

    metrics: dict[str, float]
    classes: dict[str, dict[str, float]]

    def table(self) -> str:
        """Returns a text table of the classes, the means last, and the twelve numbers below it."""
        rows = [(name, *(decimals(row[key]) for key in CLASS_METRICS)) for name, row in self.classes.items()]
        means = ("mean", *(decimals(self.metrics[key]) for key in CLASS_METRICS))
        numbers = [f"{name} {decimals(self.metrics[name])}" for name in METRICS]
        lines = [", ".join(numbers[:6]), ", ".join(numbers[6:])]
        return "\n".join([text_table([("class", *CLASS_METRICS), *rows, means]), *lines])

    def as_dict(self) -> dict[str, Any]:
        """Returns the numbers for JSON; None stands for those without an object to find."""
        return {
            **{name: or_none(value) for name, value in self.metrics.items()},
            "classes": {
                name: {key: or_none(value) for key, value in row.items()} for name, row in self.classes.items()
            },
        }


def coco_average_precision(
    detections: Sequence[ImageDetections], truths: Sequence[ImageTruth], classes: Sequence[str]
) -> CocoResult:
    """Computes COCO's average precision and recall, over the classes that have ground truth.

    Boxes are xmax - xmin wide, without VOC's extra pixel. Objects with an area below 32 x 32 pixels are small, above
    96 x 96 pixels large. Difficult objects count as crowds: detections that lie mostly inside them are ignored. Ignored
    boxes count as crowds of every class. COCO considers the best 100 detections of a class in an image.

    Args:
        detections: the detections of each image.
        truths: the objects of each image, in the same order.
        classes: the names of the classes, by index.

    Raises:
        ValueError: as `check_images`.
    """
    check_images(detections, truths, len(classes))
    truths = [_ignored_as_crowds(truth, found) for truth, found in zip(truths, detections, strict=True)]
    truth_areas = [_areas(truth.boxes) if truth.areas is None else truth.areas for truth in truths]
    found_areas = [_areas(found.boxes) for found in detections]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports each of its steps
        evaluation = COCOeval(
            _dataset(truths, classes, truth_areas, "iscrowd", [truth.difficult for truth in truths]),
            _dataset(detections, classes, found_areas, "score", [found.scores for found in detections]),
            "bbox",
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # COCOeval marks undefined numbers by -1.
    metrics = {
        name: float(value) if value >= 0 else math.nan for name, value in zip(METRICS, evaluation.stats, strict=True)
    }
    return CocoResult(metrics, {name: _class_metrics(evaluation, index) for index, name in enumerate(classes)})


def _class_metrics(evaluation: COCOeval, index: int) -> dict[str, float]:
    """Averages the precision of one class as COCOeval does over all classes."""
    # [IoU threshold, recall point, area range] and [IoU threshold], both for 100 detections; area range 0 is all.
    precision = evaluation.eval["precision"][:, :, index, :, -1]
    recall = evaluation.eval["recall"][:, index, 0, -1]
    values = (
        precision[:, :, 0],
        precision[0, :, 0],
        precision[5, :, 0],
        *(precision[:, :, size] for size in (1, 2, 3)),
        recall,
    )
    return {
        name: mean([float(each) for each in np.ravel(value) if each >= 0])
        for name, value in zip(CLASS_METRICS, values, strict=True)
    }


def _ignored_as_crowds(truth: ImageTruth, found: ImageDetections) -> ImageTruth:
    """Adds the ignored boxes as crowds of each class that is detected in the image: COCO's crowds have a class."""
    labels = np.unique(found.classes)
    boxes = np.repeat(truth.ignored, len(labels), axis=0)
    return ImageTruth(
        boxes=np.concatenate([truth.boxes, boxes]),
        classes=np.concatenate([truth.classes, np.tile(labels, len(truth.ignored))]),
        difficult=np.concatenate([truth.difficult, np.ones(len(boxes), bool)]),
        areas=None if truth.areas is None else np.concatenate([truth.areas, _areas(boxes)]),
    )


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)


def _dataset(
    images: Sequence[ImageDetections | ImageTruth],
    classes: Sequence[str],
    areas: Sequence[np.ndarray],
    key: str,
    values: Sequence[np.ndarray],
) -> COCO:
    """Indexes the boxes of all images for pycocotools, each with its value under one more key."""
    annotations = []
    for image_id, image in enumerate(images):
        boxes = np.asarray(image.boxes, np.float64)
        boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
        columns = (boxes, image.classes.tolist(), np.asarray(areas[image_id], np.float64).tolist())
        for box, label, area, value in zip(*columns, values[image_id].tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # 0 would mean "unmatched" to COCOeval
                    "image_id": image_id,
                    "category_id": int(label),
                    "bbox": box,
                    "area": area,
                    key: float(value),
                }
            )
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image_id} for image_id in range(len(images))],
        "categories": [{"id": index, "name": name} for index, name in enumerate(classes)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
