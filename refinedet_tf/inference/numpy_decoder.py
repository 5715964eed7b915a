"""From the raw predictions of one image to detections, with NumPy only.

An exported TFLite file that returns raw predictions has this file beside it: it runs on devices without TensorFlow.
"""

import numpy as np

CENTER_VARIANCE = 0.1
SIZE_VARIANCE = 0.2


def decode_detections(predictions: dict[str, np.ndarray], anchors: np.ndarray, settings: dict) -> dict[str, np.ndarray]:
    """Filters by objectness, decodes in two steps and suppresses.

    Args:
        predictions: `arm_objectness` `[n, 2]`, `arm_offsets` `[n, 4]`, `odm_classes` `[n, 1 + c]`, `odm_offsets`
            `[n, 4]`, with or without a leading dimension of 1.
        anchors: `[n, 4]`, relative corners.
        settings: `objectness_threshold`, `score_threshold`, `iou_threshold`, `pre_suppression_top_k`,
            `max_detections` and `suppression`, as the file carries them in its `detector.json`.

    Returns:
        The detections, best first: `boxes` float32 `[k, 4]`, (xmin, ymin, xmax, ymax), relative, unclipped; `scores`
        float32 `[k]`; `classes` int32 `[k]`, from 0.
    """
    values = {name: value.reshape(-1, value.shape[-1]).astype(np.float32) for name, value in predictions.items()}
    is_candidate = softmax(values["arm_objectness"])[:, 1] >= settings["objectness_threshold"]
    scores = softmax(values["odm_classes"])[:, 1:] * is_candidate[:, np.newaxis]
    boxes = decode(values["odm_offsets"], decode(values["arm_offsets"], anchors))
    if 0 < settings["pre_suppression_top_k"] < len(scores):
        kth_best = -np.sort(-scores, axis=0)[settings["pre_suppression_top_k"] - 1]
        scores = np.where(scores >= kth_best, scores, 0)
    if settings["suppression"] == "across_classes":  # each anchor has its best class only
        scores = np.where(np.arange(scores.shape[1]) == scores.argmax(axis=1)[:, np.newaxis], scores, 0)
        groups = [range(scores.shape[1])]
    else:
        groups = [[label] for label in range(scores.shape[1])]

    found = []
    for labels in groups:
        indices, columns = np.nonzero(scores[:, labels] > settings["score_threshold"])
        best_first = np.argsort(-scores[:, labels][indices, columns], kind="stable")
        kept = best_first[suppress(boxes[indices[best_first]], settings["iou_threshold"], settings["max_detections"])]
        found += [(indices[row], labels[columns[row]]) for row in kept]
    indices, classes = np.array(found, np.int32).reshape(-1, 2).T
    found_scores = scores[indices, classes]
    order = np.argsort(-found_scores, kind="stable")[: settings["max_detections"]]
    return {"boxes": boxes[indices[order]], "scores": found_scores[order], "classes": classes[order]}


def decode(offsets: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Returns the boxes `[n, 4]` at offsets (dx, dy, dw, dh) from reference boxes `[n, 4]`."""
    size = references[:, 2:] - references[:, :2]
    center = (references[:, :2] + references[:, 2:]) / 2 + CENTER_VARIANCE * offsets[:, :2] * size
    half_size = size * np.exp(SIZE_VARIANCE * offsets[:, 2:]) / 2
    return np.concatenate([center - half_size, center + half_size], axis=1)


def suppress(boxes: np.ndarray, iou_threshold: float, max_detections: int) -> list[int]:
    """Returns the rows of boxes `[m, 4]`, best first, that no better kept box overlaps by more than the threshold."""
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    kept = []
    remaining = np.arange(len(boxes))
    while len(remaining) and len(kept) < max_detections:
        best, remaining = remaining[0], remaining[1:]
        kept.append(int(best))
        top_left = np.maximum(boxes[best, :2], boxes[remaining, :2])
        bottom_right = np.minimum(boxes[best, 2:], boxes[remaining, 2:])
        intersection = np.prod(np.maximum(bottom_right - top_left, 0), axis=1)
        union = area[best] + area[remaining] - intersection
        remaining = remaining[intersection <= iou_threshold * union]
    return kept


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns probabilities along the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)
