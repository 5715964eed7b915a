"""Boxes as tensors: overlap and the coding of boxes as offsets from a reference box.

Boxes are `(xmin, ymin, xmax, ymax)`, relative to the image, float32. Nothing here clips and nothing adds an epsilon:
the numbers are those of the original implementation.
"""

import tensorflow as tf

CENTER_VARIANCE = 0.1
SIZE_VARIANCE = 0.2


def pairwise_iou(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Intersection over union of every box of one set with every box of another.

    Args:
        first: `[..., n, 4]` boxes.
        second: `[..., m, 4]` boxes; leading dimensions broadcast against those of `first`.

    Returns:
        `[..., n, m]` in 0..1. Pairs in which a box has no area, or sides in the wrong order such as the padding
        `(-1, -1, -1, -1)`, have 0.
    """
    first = first[..., :, tf.newaxis, :]
    second = second[..., tf.newaxis, :, :]
    top_left = tf.maximum(first[..., :2], second[..., :2])
    bottom_right = tf.minimum(first[..., 2:], second[..., 2:])
    sides = tf.maximum(bottom_right - top_left, 0.0)
    intersection = sides[..., 0] * sides[..., 1]
    return tf.math.divide_no_nan(intersection, area(first) + area(second) - intersection)


def area(boxes: tf.Tensor) -> tf.Tensor:
    """Area of boxes `[..., 4]` as `[...]`, in units of the image's area."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def encode(boxes: tf.Tensor, references: tf.Tensor) -> tf.Tensor:
    """Offsets that lead from reference boxes to boxes.

    `dx = (x - px) / pw / 0.1`, `dy` likewise; `dw = ln(w / pw) / 0.2`, `dh` likewise, with `(x, y, w, h)` centre and
    size of the box and `(px, py, pw, ph)` those of the reference (the coding of Fast R-CNN with SSD's variances).

    Args:
        boxes: `[..., 4]` with positive sides.
        references: `[..., 4]` with positive sides: anchors, or refined anchors in the second step.

    Returns:
        Offsets `(dx, dy, dw, dh)`, `[..., 4]`.
    """
    center, size = _center_and_size(boxes)
    reference_center, reference_size = _center_and_size(references)
    return tf.concat(
        [
            (center - reference_center) / reference_size / CENTER_VARIANCE,
            tf.math.log(size / reference_size) / SIZE_VARIANCE,
        ],
        axis=-1,
    )


def decode(offsets: tf.Tensor, references: tf.Tensor) -> tf.Tensor:
    """Boxes to which offsets lead from reference boxes; the inverse of `encode`.

    Args:
        offsets: `(dx, dy, dw, dh)`, `[..., 4]`.
        references: `[..., 4]` with positive sides.

    Returns:
        Boxes `[..., 4]`, unclipped.
    """
    reference_center, reference_size = _center_and_size(references)
    center = reference_center + CENTER_VARIANCE * offsets[..., :2] * reference_size
    half_size = reference_size * tf.exp(SIZE_VARIANCE * offsets[..., 2:]) / 2.0
    return tf.concat([center - half_size, center + half_size], axis=-1)


def _center_and_size(boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2.0, boxes[..., 2:] - boxes[..., :2]
