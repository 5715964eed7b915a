"""Combines the boxes of one class in one image, as the authors' test scripts do.

All functions take boxes in pixels, float `[k, 4]` (xmin, ymin, xmax, ymax), include the last pixel in a box's width and
height (`pixel_iou`), compute in float64, and return boxes `[p, 4]` and scores `[p]`, best first. Of equal scores the
first comes first.
"""

import numpy as np

from refinedet_tf.evaluation.voc import pixel_iou

VOTING_IOU = 0.45


def soft_suppress(
    boxes: np.ndarray, scores: np.ndarray, *, iou_threshold: float, score_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Applies linear soft non-maximum suppression (Bodla et al., ICCV 2017).

    The box with the highest score is taken again and again. The scores of all remaining boxes that overlap it by more
    than `iou_threshold` are multiplied by 1 - IoU; boxes whose score falls below `score_threshold` are dropped.
    """
    boxes, scores = np.asarray(boxes, np.float64), np.array(scores, np.float64)
    remaining = np.arange(len(scores))
    kept, kept_scores = [], []
    while len(remaining):
        best = scores[remaining].argmax()
        index = remaining[best]
        kept.append(index)
        kept_scores.append(scores[index])
        remaining = np.delete(remaining, best)
        overlaps = pixel_iou(boxes[index : index + 1], boxes[remaining])[0]
        scores[remaining] *= np.where(overlaps > iou_threshold, 1 - overlaps, 1.0)
        remaining = remaining[scores[remaining] >= score_threshold]
    return boxes[kept], np.array(kept_scores)


def vote(boxes: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merges overlapping boxes by voting, as for the multi-scale results on VOC.

    The box with the highest score and all boxes that overlap it by at least `VOTING_IOU` become one box, whose
    corners are their mean weighted by score and whose score is the highest. This repeats with the boxes left.
    """
    return _vote(boxes, scores, score_threshold=None)


def soft_vote(boxes: np.ndarray, scores: np.ndarray, *, score_threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Merges overlapping boxes by soft voting, as for the multi-scale results on COCO.

    As `vote`, but every box of a group also stays with its own corners and its score times 1 - IoU, the overlap with
    the group's best box, unless that is below `score_threshold`.
    """
    return _vote(boxes, scores, score_threshold=score_threshold)


def _vote(boxes: np.ndarray, scores: np.ndarray, score_threshold: float | None) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-np.asarray(scores), kind="stable")
    boxes, scores = np.asarray(boxes, np.float64)[order], np.asarray(scores, np.float64)[order]
    merged_boxes, merged_scores = [np.zeros([0, 4])], [np.zeros(0)]
    while len(scores):
        overlaps = pixel_iou(boxes[:1], boxes)[0]
        group = overlaps >= VOTING_IOU
        group[0] = True  # also a box without area, whose overlap with itself is not a number
        weights = scores[group]
        if len(weights) == 1:
            merged_boxes.append(boxes[:1])
        else:
            merged_boxes.append((weights @ boxes[group] / weights.sum())[np.newaxis])
        merged_scores.append(scores[:1])
        if score_threshold is not None and len(weights) > 1:
            lowered = weights * (1 - overlaps[group])
            stays = lowered >= score_threshold
            merged_boxes.append(boxes[group][stays])
            merged_scores.append(lowered[stays])
        boxes, scores = boxes[~group], scores[~group]
    boxes, scores = np.concatenate(merged_boxes), np.concatenate(merged_scores)
    order = np.argsort(-scores, kind="stable")
    return boxes[order], scores[order]
