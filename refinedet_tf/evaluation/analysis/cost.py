"""What each kind of error costs in average precision, as TIDE measures it."""

import math
from dataclasses import dataclass

import numpy as np

from refinedet_tf.evaluation.analysis.errors import CORRECT, IGNORED, KINDS, MISSED, Errors
from refinedet_tf.evaluation.tables import mean

SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, math.inf)}


@dataclass(frozen=True)
class Cost:
    """Average precision at IoU 0.5 (101 points of recall), and what would be gained without one kind of error.

    Attributes:
        ap: 0 to 1; nan without objects.
        gain: by kind of error, the AP without these errors minus `ap`. A corrected classification or localization
            error finds its object, if nothing better does; other wrong detections are removed, missed objects are not
            asked for. The gains do not add up to 1 - `ap`.
        counts: by kind, the number of errors.
        objects: number of objects to find.
    """

    ap: float
    gain: dict[str, float]
    counts: dict[str, int]
    objects: int


def cost_of_errors(errors: Errors, class_count: int) -> tuple[Cost, list[Cost]]:
    """Returns the cost over all classes, and that of each class."""
    classes = [_class_cost(errors, index) for index in range(class_count)]
    known = [each for each in classes if each.objects]
    overall = Cost(
        ap=mean([each.ap for each in known]),
        gain={name: mean([each.gain[name] for each in known]) for name in (*KINDS, MISSED)},
        counts=errors.counts(),
        objects=sum(each.objects for each in classes),
    )
    # A gain below zero comes from the points of recall at which precision is read.
    overall.gain.update({name: max(value, 0.0) for name, value in overall.gain.items()})
    return overall, classes


def cost_by_size(errors: Errors, class_count: int) -> dict[str, Cost]:
    """Returns the cost among small, medium and large objects, in COCO's terms.

    A detection belongs to the size of the object that it found or came closest to, otherwise to its own.
    """
    return {name: cost_of_errors(_select(errors, low, high), class_count)[0] for name, (low, high) in SIZES.items()}


def _select(errors: Errors, low: float, high: float) -> Errors:
    """Keeps the detections and objects of a size; targets keep pointing into the original order."""
    keep = (errors.area >= low) & (errors.area < high)
    keep_objects = (errors.object_area >= low) & (errors.object_area < high)
    new_index = np.cumsum(keep_objects) - 1
    target = errors.target[keep]
    target = np.where(target >= 0, new_index[target], -1)
    fields = {
        name: getattr(errors, name)[keep] for name in ("image", "score", "label", "box", "kind", "repairs", "area")
    }
    objects = ("object_image", "object_label", "object_box", "difficult", "found", "missed", "best_iou", "object_area")
    return Errors(**fields, target=target, **{name: getattr(errors, name)[keep_objects] for name in objects})


def _class_cost(errors: Errors, index: int) -> Cost:
    counted = errors.kind != IGNORED
    mine = counted & (errors.label == index)
    of_class = errors.object_label == index
    objects = int((of_class & ~errors.difficult).sum())
    counts = {name: int((mine & (errors.kind == kind)).sum()) for name, kind in KINDS.items()}
    counts[MISSED] = int((errors.missed & of_class).sum())
    hits = errors.kind == CORRECT
    ap = average_precision_101(errors.score[mine], hits[mine], objects)
    gain = {}
    aims_at_class = np.zeros(len(mine), bool)
    has_target = errors.target >= 0
    aims_at_class[has_target] = of_class[errors.target[has_target]]
    for name, kind in KINDS.items():
        wrong = errors.kind == kind
        repaired = wrong & errors.repairs & aims_at_class
        keep = (mine & ~wrong) | repaired
        gain[name] = average_precision_101(errors.score[keep], (hits | repaired)[keep], objects) - ap
    gain[MISSED] = average_precision_101(errors.score[mine], hits[mine], objects - counts[MISSED]) - ap
    if objects == counts[MISSED]:
        gain[MISSED] = 1.0 - ap if objects else math.nan
    return Cost(ap, gain, counts, objects)


def average_precision_101(scores: np.ndarray, hits: np.ndarray, objects: int) -> float:
    """Computes COCO's average precision at one IoU: the mean interpolated precision at recall 0, 0.01, ..., 1.

    Args:
        scores: float `[k]`.
        hits: bool `[k]`, whether each detection is correct.
        objects: number of objects to find; nan is returned for 0.
    """
    if not objects:
        return math.nan
    found = np.cumsum(hits[np.argsort(-scores, kind="stable")])
    precision = found / np.arange(1, len(found) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    # In integers: the first place at which 100 * found reaches each point times the objects.
    places = np.searchsorted(100 * found, np.arange(101) * objects, side="left")
    return float(np.append(envelope, 0.0)[places].mean())
