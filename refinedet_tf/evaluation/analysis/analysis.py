"""Joins the parts of the error analysis: one call, one object, one JSON."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refinedet_tf.data.examples import ExampleSet
from refinedet_tf.evaluation.analysis.cost import Cost, cost_by_size, cost_of_errors
from refinedet_tf.evaluation.analysis.curves import (
    GRID,
    Calibration,
    ClassCurve,
    best_score_thresholds,
    calibration,
    class_curves,
)
from refinedet_tf.evaluation.analysis.errors import DESCRIPTIONS, Errors, find_errors
from refinedet_tf.evaluation.analysis.labels import ImageSummary, Suspicion, suspicious_labels, worst_images
from refinedet_tf.evaluation.evaluator import EvaluationResult
from refinedet_tf.evaluation.images import ImageDetections, clip_boxes, examples_to_truths
from refinedet_tf.evaluation.tables import or_none


@dataclass(frozen=True)
class Analysis:
    """Why a detector errs on labeled images.

    Costs, curves and calibration look at all detections. Counts, confusion, worst images and doubted labels look only
    at detections with scores of at least the best threshold of their class, since a detector gives hundreds of
    detections with low scores, which nobody shows.

    Attributes:
        result: the evaluation.
        classes: the class names.
        cost: what errors cost in AP at IoU 0.5, over all classes.
        class_costs: of each class.
        size_costs: by size of the objects: small, medium, large.
        curves: precision and recall of each class.
        score_thresholds: by class name, the score threshold with the best F1; classes without one are missing.
        calibration: scores beside precision.
        errors: the outcome of all detections.
        shown: the outcome of the detections above the thresholds.
        confusion: int `[c + 1, c + 1]`, as `Errors.confusion`.
        worst: the images with the worst errors.
        suspicions: labels that may be wrong.
    """

    result: EvaluationResult
    classes: list[str]
    cost: Cost
    class_costs: list[Cost]
    size_costs: dict[str, Cost]
    curves: list[ClassCurve]
    score_thresholds: dict[str, float]
    calibration: Calibration
    errors: Errors
    shown: Errors
    confusion: np.ndarray
    worst: list[ImageSummary]
    suspicions: list[Suspicion]

    def as_dict(self) -> dict[str, Any]:
        """Returns everything but the plain lists of detections, for JSON."""
        return {
            **self.result.as_dict(),
            "score_thresholds": self.score_thresholds,
            "errors": {
                "descriptions": DESCRIPTIONS,
                "all": _cost_dict(self.cost),
                "classes": {name: _cost_dict(cost) for name, cost in zip(self.classes, self.class_costs, strict=True)},
                "sizes": {name: _cost_dict(cost) for name, cost in self.size_costs.items()},
                "counts_at_thresholds": self.shown.counts(),
            },
            "confusion": {
                "annotated": [*self.classes, "no object"],
                "detected": [*self.classes, "not found"],
                "counts": self.confusion.tolist(),
            },
            "at_thresholds": {name: self._rates(index) for index, name in enumerate(self.classes)},
            "calibration": {
                "error": self.calibration.error,
                "edges": self.calibration.edges.tolist(),
                "counts": self.calibration.counts.tolist(),
                "mean_score": [or_none(value) for value in self.calibration.mean_score],
                "precision": [or_none(value) for value in self.calibration.precision],
            },
            "worst_images": [vars(each) for each in self.worst],
            "suspicious_labels": [vars(each) for each in self.suspicions],
        }

    def _rates(self, index: int) -> dict[str, Any]:
        """Returns precision, recall and F1 of a class at its best threshold and over a grid of thresholds."""
        curve, best = self.curves[index], self.score_thresholds.get(self.classes[index])
        names = ("precision", "recall", "f1")
        at_best = curve.at(best) if best is not None else (math.nan,) * 3
        rows = [curve.at(threshold) for threshold in GRID]
        return {
            "threshold": best,
            **{name: or_none(value) for name, value in zip(names, at_best, strict=True)},
            "over_thresholds": [
                {"threshold": float(threshold), **{name: or_none(x) for name, x in zip(names, row, strict=True)}}
                for threshold, row in zip(GRID, rows, strict=True)
            ],
        }


def analyze(
    result: EvaluationResult, data: ExampleSet, score_thresholds: Mapping[str, float] | None = None
) -> Analysis:
    """Analyzes the errors of an evaluation.

    Args:
        result: of `evaluate` on these images.
        data: the labeled images.
        score_thresholds: by class name, the scores from which detections are shown; None takes the thresholds with the
            best F1 on these images. Classes without an entry show nothing.
    """
    truths = examples_to_truths(data.examples)
    detections = [
        clip_boxes(found, example.width, example.height)
        for found, example in zip(result.detections, data.examples, strict=True)
    ]
    class_count = len(data.classes)
    errors = find_errors(detections, truths, class_count)
    curves = class_curves(errors, class_count)
    best = best_score_thresholds(curves, data.classes)
    limits = best if score_thresholds is None else score_thresholds
    lowest = np.array([limits.get(name, math.inf) for name in data.classes])
    shown = find_errors([_above(found, lowest) for found in detections], truths, class_count)
    cost, class_costs = cost_of_errors(errors, class_count)
    return Analysis(
        result=result,
        classes=list(data.classes),
        cost=cost,
        class_costs=class_costs,
        size_costs=cost_by_size(errors, class_count),
        curves=curves,
        score_thresholds=best,
        calibration=calibration(errors),
        errors=errors,
        shown=shown,
        confusion=shown.confusion(class_count),
        worst=worst_images(shown, data),
        suspicions=suspicious_labels(errors, shown, data),
    )


def _above(found: ImageDetections, lowest: np.ndarray) -> ImageDetections:
    keep = found.scores >= lowest[found.classes]
    return ImageDetections(found.boxes[keep], found.scores[keep], found.classes[keep])


def _cost_dict(cost: Cost) -> dict[str, Any]:
    return {
        "ap50": or_none(cost.ap),
        "objects": cost.objects,
        "ap_gain": {name: or_none(value) for name, value in cost.gain.items()},
        "counts": cost.counts,
    }
