"""Precision, recall and F1 over scores, the best thresholds, and whether scores are probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refinedet_tf.evaluation.analysis.errors import CORRECT, IGNORED, Errors

GRID = np.round(np.arange(0.05, 1.0, 0.05), 2)
BINS = 10


@dataclass(frozen=True)
class ClassCurve:
    """Precision and recall of one class at IoU 0.5, after each of its detections, best score first.

    Attributes:
        scores: float `[k]`, descending.
        precision: float `[k]`.
        recall: float `[k]`; nan without objects.
        objects: number of objects to find.
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    objects: int

    @property
    def f1(self) -> np.ndarray:
        """The harmonic mean of precision and recall, float `[k]`."""
        total = self.precision + self.recall
        return np.divide(2 * self.precision * self.recall, total, out=np.zeros_like(total), where=total > 0)

    def at(self, threshold: float) -> tuple[float, float, float]:
        """Returns precision, recall and F1 of the detections with scores of at least a threshold."""
        count = int((self.scores >= threshold).sum())
        if not count:
            return float("nan"), 0.0 if self.objects else float("nan"), 0.0
        return float(self.precision[count - 1]), float(self.recall[count - 1]), float(self.f1[count - 1])

    def best_threshold(self) -> float | None:
        """Returns the score threshold with the best F1; None if no detection is correct.

        It lies halfway between the lowest score that it keeps and the highest that it drops. Of equally good
        thresholds the highest is taken.
        """
        if not self.objects or not self.precision.any():
            return None
        ends = np.append(self.scores[1:] < self.scores[:-1], True)  # equal scores cannot be told apart
        place = int(np.where(ends, self.f1, -1.0).argmax())
        if place + 1 == len(self.scores):
            return float(self.scores[place])
        return float((self.scores[place] + self.scores[place + 1]) / 2)


def class_curves(errors: Errors, class_count: int) -> list[ClassCurve]:
    """Returns the curve of each class."""
    curves = []
    for index in range(class_count):
        mine = np.flatnonzero((errors.label == index) & (errors.kind != IGNORED))
        mine = mine[np.argsort(-errors.score[mine], kind="stable")]
        found = np.cumsum(errors.kind[mine] == CORRECT)
        objects = int(((errors.object_label == index) & ~errors.difficult).sum())
        recall = found / objects if objects else np.full(len(found), np.nan)
        curves.append(ClassCurve(errors.score[mine], found / np.arange(1, len(found) + 1), recall, objects))
    return curves


def best_score_thresholds(curves: Sequence[ClassCurve], classes: Sequence[str]) -> dict[str, float]:
    """Returns by class name the threshold with the best F1, for the classes that have one."""
    thresholds = {name: curve.best_threshold() for name, curve in zip(classes, curves, strict=True)}
    return {name: round(value, 4) for name, value in thresholds.items() if value is not None}


@dataclass(frozen=True)
class Calibration:
    """How often detections of a score are correct.

    Attributes:
        edges: float `[n + 1]`, the bins of scores.
        counts: int `[n]`, detections in each bin.
        mean_score: float `[n]`; nan in empty bins.
        precision: float `[n]`, the share of correct detections; nan in empty bins.
        error: the expected calibration error: the mean distance of score and precision over all detections.
    """

    edges: np.ndarray
    counts: np.ndarray
    mean_score: np.ndarray
    precision: np.ndarray
    error: float


def calibration(errors: Errors) -> Calibration:
    """Compares the scores of all detections with their precision, in ten bins."""
    counted = errors.kind != IGNORED
    scores, hits = errors.score[counted].astype(float), errors.kind[counted] == CORRECT
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    totals = [np.bincount(bins, weights=values, minlength=BINS) for values in (scores, hits)]
    mean_score, precision = (np.divide(total, counts, out=np.full(BINS, np.nan), where=counts > 0) for total in totals)
    error = float(np.abs(totals[0] - totals[1]).sum() / max(counts.sum(), 1))
    return Calibration(np.linspace(0, 1, BINS + 1), counts, mean_score, precision, error)
