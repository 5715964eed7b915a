"""Labels that look wrong, and the images with the worst errors."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from refinedet_tf.data.examples import ExampleSet
from refinedet_tf.evaluation.analysis.errors import BACKGROUND, CLASSIFICATION, CORRECT, IGNORED, KINDS, MISSED, Errors

KIND_NAMES = {kind: name for name, kind in KINDS.items()}


@dataclass(frozen=True)
class Suspicion:
    """A label that may be missing or wrong.

    Attributes:
        image: index of the image.
        image_id: its name.
        reason: what is suspicious, for people.
        box: (xmin, ymin, xmax, ymax) in pixels, of the detection or of the label.
        label: the class in question.
        score: of the detection; None for a label that nothing finds.
    """

    image: int
    image_id: str
    reason: str
    box: list[float]
    label: str
    score: float | None


def suspicious_labels(all_errors: Errors, shown: Errors, data: ExampleSet, limit: int = 100) -> list[Suspicion]:
    """Lists confident detections without a label, labels of another class, and labels that nothing finds.

    Args:
        all_errors: of all detections.
        shown: of the detections above the thresholds.
        data: the labeled images.
        limit: entries of each of the two kinds.

    Returns:
        Detections by falling score, then labels without a detection of any class and score (IoU 0.5), those that
        overlap detections least first.
    """
    suspicions = []
    doubted = np.flatnonzero(np.isin(shown.kind, (BACKGROUND, CLASSIFICATION)))
    for index in doubted[np.argsort(-shown.score[doubted], kind="stable")][:limit]:
        name, score = data.classes[shown.label[index]], float(shown.score[index])
        if shown.kind[index] == BACKGROUND:
            reason = f"{name} {score:.2f}, and no label there"
        else:
            reason = f"{name} {score:.2f}, labeled {data.classes[shown.object_label[shown.target[index]]]}"
        suspicions.append(_suspicion(data, shown.image[index], reason, shown.box[index], name, score))
    lost = np.flatnonzero((all_errors.best_iou < 0.5) & ~all_errors.difficult)
    for index in lost[np.argsort(all_errors.best_iou[lost], kind="stable")][:limit]:
        name = data.classes[all_errors.object_label[index]]
        image, box = all_errors.object_image[index], all_errors.object_box[index]
        suspicions.append(_suspicion(data, image, f"label {name}, which nothing finds", box, name, None))
    return suspicions


@dataclass(frozen=True)
class ImageSummary:
    """The errors of one image.

    Attributes:
        image: its index.
        image_id: its name.
        reason: the errors in words, such as "2 missed, 1 background".
        badness: the scores of its wrong detections and the number of objects not found, added up.
    """

    image: int
    image_id: str
    reason: str
    badness: float


def worst_images(shown: Errors, data: ExampleSet, limit: int = 24) -> list[ImageSummary]:
    """Returns the images with the worst errors among the detections above the thresholds, the worst first."""
    wrong = ~np.isin(shown.kind, (CORRECT, IGNORED))
    lost = ~shown.found & ~shown.difficult
    badness = np.bincount(shown.image[wrong], weights=shown.score[wrong], minlength=len(data))
    badness += np.bincount(shown.object_image[lost], minlength=len(data))
    order = np.argsort(-badness, kind="stable")[:limit]
    return [
        ImageSummary(int(index), data.examples[index].image_id, _reason(shown, index), float(badness[index]))
        for index in order
        if badness[index] > 0
    ]


def _reason(shown: Errors, image: int) -> str:
    counts = Counter(KIND_NAMES[kind] for kind in shown.kind[shown.image == image] if kind in KIND_NAMES)
    counts[MISSED] = int(shown.missed[shown.object_image == image].sum())
    return ", ".join(f"{count} {name}" for name, count in counts.most_common() if count)


def _suspicion(
    data: ExampleSet, image: int, reason: str, box: np.ndarray, label: str, score: float | None
) -> Suspicion:
    image = int(image)
    return Suspicion(image, data.examples[image].image_id, reason, [round(float(x), 1) for x in box], label, score)
