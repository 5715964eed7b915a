"""Decoding of raw predictions into detections: objectness filter, two decoding steps, suppression."""

import tensorflow as tf

from refinedet_tf.ops.boxes import decode_boxes


def refine_anchors(arm_offsets: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
    """Applies the offsets of the ARM to the anchors, the first of the two regression steps.

    Args:
        arm_offsets: float32 `[b, n, 4]`.
        anchors: float32 `[n, 4]`.

    Returns:
        Refined anchors `[b, n, 4]`, unclipped.
    """
    return decode_boxes(arm_offsets, anchors)


def objectness(predictions: dict[str, tf.Tensor]) -> tf.Tensor:
    """Returns the ARM's probability that an anchor is an object, float32 `[b, n]`."""
    # The two-way softmax written as a sigmoid of the difference of its logits.
    logits = predictions["arm_objectness"]
    return tf.sigmoid(logits[..., 1] - logits[..., 0])


def decode_predictions(
    predictions: dict[str, tf.Tensor], anchors: tf.Tensor, objectness_threshold: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes boxes and scores of all anchors, before suppression.

    Args:
        predictions: the model's raw predictions.
        anchors: float32 `[n, 4]`.
        objectness_threshold: anchors with a lower ARM objectness get score 0 in every class (section 3.1, negative
            anchor filtering).

    Returns:
        Boxes `[b, n, 4]`, relative, unclipped, shared by all classes; scores `[b, n, c]` without the background.
    """
    boxes = decode_boxes(predictions["odm_offsets"], refine_anchors(predictions["arm_offsets"], anchors))
    scores = tf.nn.softmax(predictions["odm_classes"])[..., 1:]
    keep = objectness(predictions) >= objectness_threshold
    return boxes, tf.where(keep[..., tf.newaxis], scores, 0.0)


def keep_top_k(scores: tf.Tensor, k: int) -> tf.Tensor:
    """Sets scores below the k-th best of their class to 0.

    Args:
        scores: float32 `[b, n, c]`.
        k: anchors to keep in each class of each image; 0 keeps all. Scores equal to the k-th are kept too.

    Returns:
        `[b, n, c]`.
    """
    if k == 0 or k >= scores.shape[1]:
        return scores
    by_class = tf.transpose(scores, [0, 2, 1])
    kth_best = tf.math.top_k(by_class, k=k).values[..., -1]
    return tf.where(scores >= kth_best[:, tf.newaxis, :], scores, 0.0)


def suppress(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    *,
    score_threshold: float | tf.Tensor,
    iou_threshold: float | tf.Tensor,
    pre_suppression_top_k: int,
    max_detections: int | tf.Tensor,
    suppression: str,
) -> dict[str, tf.Tensor]:
    """Applies greedy non-maximum suppression and keeps the best detections of all classes.

    Args:
        boxes: float32 `[b, n, 4]`.
        scores: float32 `[b, n, c]`.
        score_threshold: only scores above it are detections.
        iou_threshold: a box is suppressed by a better one that overlaps it more than this.
        pre_suppression_top_k: anchors of each class that enter suppression; 0 for all.
        max_detections: detections to keep in each image, `k`.
        suppression: `per_class`: only boxes of the same class suppress each other, and an anchor may be a detection of
            several classes. `across_classes`: each anchor has its best class only, and any better box suppresses it.

    Returns:
        `boxes` float32 `[b, k, 4]`, `scores` float32 `[b, k]` in descending order, `classes` int32 `[b, k]` and
        `num_detections` int32 `[b]`. Rows from `num_detections` on are padding: box and score 0, class -1.
    """
    scores = keep_top_k(scores, pre_suppression_top_k)
    limits = {"score_threshold": score_threshold, "iou_threshold": iou_threshold, "max_detections": max_detections}
    if suppression == "across_classes":
        return _suppress_across_classes(boxes, scores, **limits)
    found = _suppress_per_class(boxes, scores, **limits)
    is_detection = tf.range(max_detections) < found.valid_detections[:, tf.newaxis]
    return {
        "boxes": found.nmsed_boxes,
        "scores": found.nmsed_scores,
        "classes": tf.where(is_detection, tf.cast(found.nmsed_classes, tf.int32), -1),
        "num_detections": found.valid_detections,
    }


def _suppress_across_classes(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    *,
    score_threshold: float | tf.Tensor,
    iou_threshold: float | tf.Tensor,
    max_detections: int | tf.Tensor,
) -> dict[str, tf.Tensor]:
    best = tf.reduce_max(scores, axis=-1)
    classes = tf.argmax(scores, axis=-1, output_type=tf.int32)
    # TensorFlow's kernel returns no indices. It needs only the order of the scores, so it gets ranks instead, from
    # which the anchors can be told: n for the best, 1 for the worst, 0 for those that are not above the threshold.
    order = tf.argsort(best, axis=1, direction="DESCENDING", stable=True)
    best, classes, boxes = (tf.gather(values, order, batch_dims=1) for values in (best, classes, boxes))
    count = tf.shape(best)[1]
    ranks = tf.where(best > score_threshold, tf.cast(tf.range(count, 0, -1), tf.float32), 0.0)
    found = _suppress_per_class(
        boxes,
        ranks[..., tf.newaxis],
        score_threshold=0.0,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
    )
    is_detection = tf.range(max_detections) < found.valid_detections[:, tf.newaxis]
    rows = tf.where(is_detection, count - tf.cast(found.nmsed_scores, tf.int32), 0)
    return {
        "boxes": found.nmsed_boxes,
        "scores": tf.where(is_detection, tf.gather(best, rows, batch_dims=1), 0.0),
        "classes": tf.where(is_detection, tf.gather(classes, rows, batch_dims=1), -1),
        "num_detections": found.valid_detections,
    }


def _suppress_per_class(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    *,
    score_threshold: float | tf.Tensor,
    iou_threshold: float | tf.Tensor,
    max_detections: int | tf.Tensor,
) -> tuple:
    # The kernel's corner order differs from ours, but overlap is the same with both axes exchanged.
    return tf.image.combined_non_max_suppression(
        boxes[:, :, tf.newaxis, :],
        scores,
        max_output_size_per_class=max_detections,
        max_total_size=max_detections,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        clip_boxes=False,
    )
