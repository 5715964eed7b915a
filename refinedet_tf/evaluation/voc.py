"""Average precision as PASCAL VOC defines it, in NumPy.

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge" (IJCV 2010), section 4. The area under the whole
curve, used since VOC2010, is described in the development kit of that year.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refinedet_tf.evaluation.images import ImageDetections, ImageTruth, check_images
from refinedet_tf.evaluation.tables import decimals, mean, or_none, text_table

TRUE_POSITIVE, FALSE_POSITIVE, IGNORED = 1, 0, -1


@dataclass(frozen=True)
class ClassResult:
    """The VOC result of one class.

    Attributes:
        name: the class.
        ap_11_point: mean of the interpolated precision at recall 0, 0.1, ..., 1 (VOC2007); nan without ground truth.
        ap_area: area under the interpolated precision (VOC2010 and later); nan without ground truth.
        ground_truths: number of objects to find, without the difficult ones.
        detections: number of detections, including those of difficult objects.
        recall: float `[p]`, the recall after each detection that counts, best score first.
        precision: float `[p]`, the precision there.
        scores: float `[p]`, the scores of these detections.
    """

    name: str
    ap_11_point: float
    ap_area: float
    ground_truths: int
    detections: int
    recall: np.ndarray
    precision: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class VocResult:
    """The VOC results of all classes, in their order.

    Attributes:
        rows: one result for each class.
    """

    rows: tuple[ClassResult, ...]

    @property
    def mean_ap_11_point(self) -> float:
        """Mean over the classes that have ground truth; nan if none has."""
        return mean([row.ap_11_point for row in self.rows])

    @property
    def mean_ap_area(self) -> float:
        """Mean over the classes that have ground truth; nan if none has."""
        return mean([row.ap_area for row in self.rows])

    def table(self) -> str:
        """Returns a text table of all classes, the means last; "-" stands for a class without ground truth."""
        cells = [("class", "objects", "detections", "AP 11-point", "AP area")]
        for row in self.rows:
            counts = str(row.ground_truths), str(row.detections)
            cells.append((row.name, *counts, decimals(row.ap_11_point), decimals(row.ap_area)))
        totals = str(sum(row.ground_truths for row in self.rows)), str(sum(row.detections for row in self.rows))
        cells.append(("mean", *totals, decimals(self.mean_ap_11_point), decimals(self.mean_ap_area)))
        return text_table(cells)

    def as_dict(self) -> dict[str, Any]:
        """Returns the numbers for JSON, 0 to 1, without the curves; None stands for a class without ground truth."""
        return {
            "mean_ap_11_point": or_none(self.mean_ap_11_point),
            "mean_ap_area": or_none(self.mean_ap_area),
            "classes": {
                row.name: {
                    "ap_11_point": or_none(row.ap_11_point),
                    "ap_area": or_none(row.ap_area),
                    "ground_truths": row.ground_truths,
                    "detections": row.detections,
                }
                for row in self.rows
            },
        }


def voc_average_precision(
    detections: Sequence[ImageDetections],
    truths: Sequence[ImageTruth],
    classes: Sequence[str],
    iou_threshold: float = 0.5,
) -> VocResult:
    """Computes the average precision of every class.

    Each detection is assigned to the object of its class that it overlaps most. It is a true positive if their IoU
    exceeds the threshold and no detection with a higher score has claimed the object, ignored if the object is
    difficult, and a false positive otherwise. A false positive whose IoU with an ignored box exceeds the threshold is
    ignored, too. Boxes include their last pixel: a box is xmax - xmin + 1 wide. Equal scores are ranked in the order
    given, by image and then within it.

    Args:
        detections: the detections of each image.
        truths: the objects of each image, in the same order.
        classes: the names of the classes, by index.
        iou_threshold: the IoU that a true positive must exceed.

    Returns:
        A row for each class.

    Raises:
        ValueError: as `check_images`.
    """
    check_images(detections, truths, len(classes))
    outcomes = np.concatenate(
        [_outcomes(found, truth, iou_threshold) for found, truth in zip(detections, truths, strict=True)]
    )
    scores = np.concatenate([found.scores for found in detections])
    found_classes = np.concatenate([found.classes for found in detections])
    truth_classes = np.concatenate([truth.classes for truth in truths])
    difficult = np.concatenate([truth.difficult for truth in truths]).astype(bool)

    rows = []
    for index, name in enumerate(classes):
        of_class = found_classes == index
        best_first = np.argsort(-scores[of_class], kind="stable")
        ranked = outcomes[of_class][best_first]
        counts = ranked != IGNORED
        counted = ranked[counts]
        ground_truths = int(np.sum((truth_classes == index) & ~difficult))
        hits = np.cumsum(counted == TRUE_POSITIVE)
        precision = hits / np.arange(1, len(hits) + 1)
        recall = hits / ground_truths if ground_truths else np.full(len(hits), np.nan)
        rows.append(
            ClassResult(
                name=name,
                ap_11_point=_ap_11_point(hits, precision, ground_truths),
                ap_area=_ap_area(hits, precision, ground_truths),
                ground_truths=ground_truths,
                detections=len(ranked),
                recall=recall,
                precision=precision,
                scores=scores[of_class][best_first][counts],
            )
        )
    return VocResult(tuple(rows))


def pixel_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Computes the IoU of every pair of boxes that include their last pixel, so are xmax - xmin + 1 wide.

    Args:
        boxes: `[k, 4]`, (xmin, ymin, xmax, ymax) in pixels.
        others: `[m, 4]`, likewise.

    Returns:
        float64 `[k, m]`.
    """
    boxes = np.asarray(boxes, np.float64)[:, None]
    others = np.asarray(others, np.float64)[None]
    shared = np.minimum(boxes[..., 2:], others[..., 2:]) - np.maximum(boxes[..., :2], others[..., :2]) + 1
    intersection = np.prod(np.maximum(shared, 0), axis=-1)
    areas = [np.prod(corners[..., 2:] - corners[..., :2] + 1, axis=-1) for corners in (boxes, others)]
    return intersection / (areas[0] + areas[1] - intersection)


def _outcomes(found: ImageDetections, truth: ImageTruth, iou_threshold: float) -> np.ndarray:
    """Classifies each detection of one image: int `[k]` of TRUE_POSITIVE, FALSE_POSITIVE, IGNORED."""
    outcomes = np.full(len(found.scores), FALSE_POSITIVE)
    for index in np.unique(truth.classes):
        mine = np.flatnonzero(found.classes == index)
        if not len(mine):
            continue
        mine = mine[np.argsort(-found.scores[mine], kind="stable")]
        objects = np.flatnonzero(truth.classes == index)
        ious = pixel_iou(found.boxes[mine], truth.boxes[objects])
        hits = ious.max(axis=1) > iou_threshold
        mine, claimed = mine[hits], objects[ious.argmax(axis=1)[hits]]
        # The best object of a detection does not depend on the claims of others, so an object's
        # true positive is the detection with the highest score among those assigned to it.
        _, first = np.unique(claimed, return_index=True)
        outcomes[mine[first]] = TRUE_POSITIVE
        outcomes[mine[truth.difficult[claimed].astype(bool)]] = IGNORED
    if len(truth.ignored):
        on_ignored = pixel_iou(found.boxes, truth.ignored).max(axis=1) > iou_threshold
        outcomes[on_ignored & (outcomes == FALSE_POSITIVE)] = IGNORED
    return outcomes


def _ap_11_point(hits: np.ndarray, precision: np.ndarray, ground_truths: int) -> float:
    """Returns the mean over t = 0, 0.1, ..., 1 of the highest precision at a recall of at least t."""
    if not ground_truths:
        return float("nan")
    # In integers: 3 of 10 found is a recall of 0.3, which is less than 3 * 0.1 in floating point.
    reached = [10 * hits >= tenth * ground_truths for tenth in range(11)]
    return float(np.mean([precision[mask].max(initial=0.0) for mask in reached]))


def _ap_area(hits: np.ndarray, precision: np.ndarray, ground_truths: int) -> float:
    """Returns the area under the curve of the highest precision at each recall or any larger one."""
    if not ground_truths:
        return float("nan")
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    found_here = np.diff(hits, prepend=0) > 0
    # Every object found raises the recall by 1 / ground_truths; objects never found have precision 0.
    return float(envelope[found_here].sum() / ground_truths)
