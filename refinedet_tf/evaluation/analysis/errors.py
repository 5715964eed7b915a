"""Sorts detections into correct ones and kinds of errors, as TIDE does.

Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors" (ECCV 2020). Boxes are compared without
VOC's extra pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refinedet_tf.evaluation.images import ImageDetections, ImageTruth, check_images

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1

CORRECT, CLASSIFICATION, LOCALIZATION, BOTH, DUPLICATE, BACKGROUND, IGNORED = range(7)
MISSED = "missed"
# The errors that a detection can be, and that of an object which no detection comes near.
KINDS = {
    "classification": CLASSIFICATION,
    "localization": LOCALIZATION,
    "both": BOTH,
    "duplicate": DUPLICATE,
    "background": BACKGROUND,
}
DESCRIPTIONS = {
    "classification": "the right place, the wrong class",
    "localization": "the right class, but the box fits badly (IoU 0.1 to 0.5)",
    "both": "the wrong class, and the box fits badly",
    "duplicate": "an object that a better detection has found",
    "background": "no object there (IoU below 0.1)",
    MISSED: "an object that no detection comes near",
}


@dataclass(frozen=True)
class Errors:
    """The outcome of every detection and of every object of all images, one after the other.

    Attributes:
        image: int `[k]`, the image of each detection.
        score: float `[k]`.
        label: int `[k]`, its class.
        box: float `[k, 4]`, in pixels.
        kind: int `[k]`, `CORRECT`, one of `KINDS`, or `IGNORED` if the detection lies in a difficult object, a
            crowd or an ignored box.
        target: int `[k]`, the object that the detection found, duplicates, or comes closest to; -1 if there is none.
        repairs: bool `[k]`, whether this classification or localization error, once corrected, would find its target:
            the target is not found, and no other such error on it has a higher score.
        object_image: int `[m]`, the image of each object.
        object_label: int `[m]`, its class.
        object_box: float `[m, 4]`, in pixels.
        difficult: bool `[m]`; such objects need not be found.
        found: bool `[m]`, whether a detection is correct.
        missed: bool `[m]`, whether it is neither found nor the target of a classification or localization error.
        best_iou: float `[m]`, the highest IoU with a detection of any class.
        area: float `[k]`, of the target, or of the detection if it has none.
        object_area: float `[m]`.
    """

    image: np.ndarray
    score: np.ndarray
    label: np.ndarray
    box: np.ndarray
    kind: np.ndarray
    target: np.ndarray
    repairs: np.ndarray
    object_image: np.ndarray
    object_label: np.ndarray
    object_box: np.ndarray
    difficult: np.ndarray
    found: np.ndarray
    missed: np.ndarray
    best_iou: np.ndarray
    area: np.ndarray
    object_area: np.ndarray

    def counts(self) -> dict[str, int]:
        """Returns the number of errors of each kind."""
        counts = {name: int((self.kind == kind).sum()) for name, kind in KINDS.items()}
        return {**counts, MISSED: int(self.missed.sum())}

    def confusion(self, class_count: int) -> np.ndarray:
        """Counts which class is detected where which class is annotated.

        Returns:
            int `[c + 1, c + 1]`: rows are the annotated classes and "no object", columns the detected classes and "not
            found". Localization errors, duplicates and detections of nothing are in the row "no object"; objects that
            are neither found nor detected as another class in the column "not found".
        """
        matrix = np.zeros([class_count + 1, class_count + 1], int)
        kinds = self.kind
        correct, confused = kinds == CORRECT, kinds == CLASSIFICATION
        np.add.at(matrix, (self.label[correct], self.label[correct]), 1)
        np.add.at(matrix, (self.object_label[self.target[confused]], self.label[confused]), 1)
        others = np.isin(kinds, (LOCALIZATION, BOTH, DUPLICATE, BACKGROUND))
        np.add.at(matrix, (class_count, self.label[others]), 1)
        seen = self.found.copy()
        seen[self.target[confused]] = True
        lost = ~seen & ~self.difficult
        np.add.at(matrix, (self.object_label[lost], class_count), 1)
        return matrix


def find_errors(detections: Sequence[ImageDetections], truths: Sequence[ImageTruth], class_count: int) -> Errors:
    """Sorts all detections and objects.

    Args:
        detections: the detections of each image.
        truths: the objects of each image, in the same order.
        class_count: number of classes.

    Raises:
        ValueError: as `check_images`.
    """
    check_images(detections, truths, class_count)
    rows = []
    offset = 0
    for index, (found, truth) in enumerate(zip(detections, truths, strict=True)):
        row = _image_errors(found, truth)
        row["image"] = np.full(len(found.scores), index)
        row["object_image"] = np.full(len(truth.classes), index)
        row["target"] = np.where(row["target"] >= 0, row["target"] + offset, -1)
        offset += len(truth.classes)
        rows.append(row)
    return Errors(**{name: np.concatenate([row[name] for row in rows]) for name in rows[0]})


def iou(boxes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes the overlap of every pair of boxes.

    Returns:
        float `[k, m]` each: the IoU, and the share of the first box that lies in the second.
    """
    corner = np.maximum(boxes[:, np.newaxis, :2], others[np.newaxis, :, :2])
    shared = np.minimum(boxes[:, np.newaxis, 2:], others[np.newaxis, :, 2:]) - corner
    intersection = np.prod(np.maximum(shared, 0), axis=-1)
    area, other_area = (np.prod(each[:, 2:] - each[:, :2], axis=-1) for each in (boxes, others))
    tiny = np.finfo(float).tiny
    union = np.maximum(area[:, np.newaxis] + other_area - intersection, tiny)
    return intersection / union, intersection / np.maximum(area[:, np.newaxis], tiny)


def _image_errors(found: ImageDetections, truth: ImageTruth) -> dict[str, np.ndarray]:
    order = np.argsort(-found.scores, kind="stable")
    boxes, labels = np.asarray(found.boxes, float)[order], found.classes[order]
    objects, object_labels = np.asarray(truth.boxes, float), truth.classes
    easy = ~truth.difficult.astype(bool)
    overlap, share = iou(boxes, objects)
    same = labels[:, np.newaxis] == object_labels
    ignored = (iou(boxes, truth.ignored)[1] > FOREGROUND_IOU).any(axis=1)
    own, other = np.where(same & easy, overlap, 0), np.where(~same & easy, overlap, 0)

    kind = np.full(len(labels), BOTH)
    target = np.full(len(labels), -1)
    taken = np.zeros(len(objects), bool)
    if len(objects):
        best_own, best_other = own.max(axis=1), other.max(axis=1)
        for index in np.flatnonzero(best_own >= FOREGROUND_IOU):
            free = np.where(taken, 0, own[index])
            if free.max() >= FOREGROUND_IOU:
                kind[index], target[index] = CORRECT, free.argmax()
                taken[target[index]] = True
        wrong = kind != CORRECT
        ignored |= (np.where(same & ~easy, share, 0) > FOREGROUND_IOU).any(axis=1)
        nearest = np.where(easy, overlap, 0)
        # In TIDE's order: the first that applies.
        rules = (
            (IGNORED, ignored, None),
            (LOCALIZATION, (best_own >= BACKGROUND_IOU) & (best_own < FOREGROUND_IOU), own),
            (CLASSIFICATION, best_other >= FOREGROUND_IOU, other),
            (DUPLICATE, best_own >= FOREGROUND_IOU, own),
            (BACKGROUND, nearest.max(axis=1) <= BACKGROUND_IOU, None),
            (BOTH, np.ones(len(labels), bool), nearest),
        )
        for value, applies, overlaps in rules:
            mine = wrong & applies
            kind[mine] = value
            if overlaps is not None:
                target[mine] = overlaps[mine].argmax(axis=1)
            wrong &= ~applies
    else:
        kind = np.where(ignored, IGNORED, BACKGROUND)

    repairs = np.zeros(len(labels), bool)
    aimed = np.zeros(len(objects), bool)
    for index in np.flatnonzero((kind == CLASSIFICATION) | (kind == LOCALIZATION)):  # best score first
        if not taken[target[index]] and not aimed[target[index]]:
            repairs[index] = aimed[target[index]] = True
    area, object_area = (np.prod(each[:, 2:] - each[:, :2], axis=-1) for each in (boxes, objects))
    if truth.areas is not None:
        object_area = np.asarray(truth.areas, float)
    has_target = target >= 0
    area[has_target] = object_area[target[has_target]]
    return {
        "score": found.scores[order],
        "label": labels,
        "box": boxes,
        "kind": kind,
        "target": target,
        "repairs": repairs,
        "object_label": object_labels,
        "object_box": objects,
        "difficult": ~easy,
        "found": taken,
        "missed": easy & ~taken & ~aimed,
        "best_iou": overlap.max(axis=0, initial=0),
        "area": area,
        "object_area": object_area,
    }
