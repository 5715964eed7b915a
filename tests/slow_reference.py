"""RefineDet's arithmetic in plain loops over NumPy float32: one image, one anchor and one box at a time.

Written from the description of the original, not from the fast code, which the tests compare with it.
"""

import numpy as np

VARIANCES = np.array([0.1, 0.1, 0.2, 0.2], np.float32)


def iou(first, second):
    """Intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return np.float32(0)
    intersection = width * height
    return intersection / (area(first) + area(second) - intersection)


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def iou_matrix(references, boxes):
    """`[n, m]`, references outside."""
    rows = [[iou(reference, box) for box in boxes] for reference in references]
    return np.array(rows, np.float32).reshape(len(references), len(boxes))


def encode(box, reference):
    x, y, width, height = center_form(box)
    px, py, reference_width, reference_height = center_form(reference)
    offsets = [
        (x - px) / reference_width,
        (y - py) / reference_height,
        np.log(width / reference_width),
        np.log(height / reference_height),
    ]
    return np.array(offsets, np.float32) / VARIANCES


def decode(offsets, reference):
    px, py, width, height = center_form(reference)
    dx, dy, dw, dh = offsets * VARIANCES
    x, y, width, height = px + dx * width, py + dy * height, width * np.exp(dw), height * np.exp(dh)
    return np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2], np.float32)


def center_form(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]


def bipartite(overlaps):
    """The greedy rule, one pair at a time: the box of each anchor, -1 for none. `overlaps` is `[n, m]`."""
    matches = [-1] * len(overlaps)
    remaining = list(range(overlaps.shape[1]))
    while remaining:
        best, pair = np.float32(1e-6), None
        for anchor, row in enumerate(overlaps):
            for box in remaining:
                if matches[anchor] < 0 and row[box] > best:
                    best, pair = row[box], (anchor, box)
        if pair is None:
            break
        matches[pair[0]] = pair[1]
        remaining.remove(pair[1])
    return matches


def match(overlaps, positive_iou=0.5, negative_iou=0.5, ignored=None):
    """Box of each anchor (-1: none) and whether the anchor is a negative.

    `overlaps` is `[n, m]`; `ignored`, overlaps with ignored boxes, `[n, k]`.
    """
    positive_iou, negative_iou = np.float32(positive_iou), np.float32(negative_iou)
    matches = bipartite(overlaps)
    negatives = [False] * len(matches)
    for anchor, row in enumerate(overlaps):
        best_box, best = -1, np.float32(0)
        for box, overlap in enumerate(row):
            if overlap > best:
                best_box, best = box, overlap
        best_ignored = 0 if ignored is None else max([0, *ignored[anchor]])
        if matches[anchor] < 0 and best_ignored >= 0.5 and best_ignored > best:
            continue
        if matches[anchor] < 0 and best >= positive_iou and best_box >= 0:
            matches[anchor] = best_box
        negatives[anchor] = matches[anchor] < 0 and best < negative_iou
    return matches, negatives


def mine(losses, candidates, count):
    """Indices of the `count` candidates of highest loss, the lowest index first among equals."""
    ranked = sorted((index for index in range(len(losses)) if candidates[index]), key=lambda i: (-losses[i], i))
    return ranked[: int(count)]


def softmax(logits):
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    return exponentials / exponentials.sum()


def cross_entropy(logits, label):
    return -np.log(softmax(logits)[label])


def smooth_l1(difference):
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def focal(logits, label, alpha, gamma):
    probability = softmax(logits)[label]
    return -(alpha if label > 0 else 1 - alpha) * (1 - probability) ** gamma * np.log(probability)


def refinedet_losses(
    targets,
    predictions,
    anchors,
    arm_positive_iou=0.5,
    arm_negative_iou=0.5,
    objectness_threshold=0.01,
    negative_ratio=3.0,
    odm_loss="cross_entropy",
    focal_alpha=0.25,
    focal_gamma=2.0,
    sample_weight=None,
):
    """All six values of `RefineDetLoss`, image by image."""
    sums = dict.fromkeys(("arm_objectness_loss", "arm_box_loss", "odm_class_loss", "odm_box_loss"), 0.0)
    positives = {"arm": 0, "odm": 0}
    for image in range(len(targets["boxes"])):
        weight = 1 if sample_weight is None else float(sample_weight[image])
        rows = [row for row, label in enumerate(targets["classes"][image]) if label >= 0]
        boxes, classes = targets["boxes"][image][rows], targets["classes"][image][rows]
        ignored = [targets["boxes"][image][row] for row, label in enumerate(targets["classes"][image]) if label == -2]
        arm_logits, arm_offsets = predictions["arm_objectness"][image], predictions["arm_offsets"][image]
        odm_logits, odm_offsets = predictions["odm_classes"][image], predictions["odm_offsets"][image]
        refined = np.array([decode(*pair) for pair in zip(arm_offsets, anchors, strict=True)])
        objectness = np.array([softmax(logits)[1] for logits in arm_logits])
        modules = (
            (
                "arm",
                "arm_objectness_loss",
                "arm_box_loss",
                arm_logits,
                arm_offsets,
                anchors,
                np.ones(len(rows), int),
            ),
            ("odm", "odm_class_loss", "odm_box_loss", odm_logits, odm_offsets, refined, classes + 1),
        )
        for module, class_loss, box_loss, logits, offsets, references, labels in modules:
            thresholds = (arm_positive_iou, arm_negative_iou) if module == "arm" else (0.5, 0.5)
            overlaps, ignored_overlaps = iou_matrix(references, boxes), iou_matrix(references, ignored)
            matches, candidates = match(overlaps, *thresholds, ignored_overlaps)
            if module == "odm":
                candidates = np.array(candidates) & (objectness >= objectness_threshold)
            matched = [anchor for anchor, box in enumerate(matches) if box >= 0]
            positives[module] += len(matched)
            if module == "odm" and odm_loss == "focal":
                used = [(anchor, labels[matches[anchor]]) for anchor in matched]
                used += [(anchor, 0) for anchor in np.flatnonzero(candidates)]
                terms = [focal(logits[anchor], label, focal_alpha, focal_gamma) for anchor, label in used]
            else:
                background = [cross_entropy(row, 0) for row in logits]
                hard = mine(background, candidates, np.floor(negative_ratio * len(matched)))
                terms = [cross_entropy(logits[anchor], labels[matches[anchor]]) for anchor in matched]
                terms += [background[anchor] for anchor in hard]
            sums[class_loss] += weight * sum(terms)
            for anchor in matched:
                target = encode(boxes[matches[anchor]], references[anchor])
                sums[box_loss] += weight * sum(smooth_l1(difference) for difference in offsets[anchor] - target)
    losses = {name: value / max(1, positives[name[:3]]) for name, value in sums.items()}
    return {**losses, "arm_positives": positives["arm"], "odm_positives": positives["odm"]}


def detections_of_image(
    predictions,
    anchors,
    *,
    objectness_threshold,
    score_threshold,
    iou_threshold,
    top_k,
    max_detections,
    across_classes=False,
):
    """`(score, class, box)` of one image, best first. Across classes, all pairs of anchor and class compete."""
    candidates = {}
    boxes = []
    for anchor, reference in enumerate(anchors):
        refined = decode(predictions["arm_offsets"][anchor], reference)
        boxes.append(decode(predictions["odm_offsets"][anchor], refined))
        if softmax(predictions["arm_objectness"][anchor])[1] < objectness_threshold:
            continue
        for label, score in enumerate(softmax(predictions["odm_classes"][anchor])[1:]):
            if score > score_threshold:
                candidates.setdefault(label, []).append((score, anchor, label))
    entering = [sorted(scored, reverse=True)[: top_k or None] for scored in candidates.values()]
    if across_classes:
        entering = [sorted((pair for scored in entering for pair in scored), reverse=True)]
    found = []
    for scored in entering:
        kept = []
        for score, anchor, label in scored:
            if all(iou(boxes[anchor], boxes[other]) <= iou_threshold for _, other, _ in kept):
                kept.append((score, anchor, label))
        found += [(score, label, boxes[anchor]) for score, anchor, label in kept]
    return sorted(found, key=lambda detection: -detection[0])[:max_detections]
