"""Overlap of boxes, and boxes coded as offsets from reference boxes.

Boxes are `(xmin, ymin, xmax, ymax)`, relative to the image, float32. Nothing is clipped and no epsilon is added, as in
the original implementation.
"""

import tensorflow as tf

CENTER_VARIANCE = 0.1
SIZE_VARIANCE = 0.2


def pairwise_iou(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Computes the intersection over union of every box of one set with every box of another.

    Args:
        first: `[..., n, 4]` boxes.
        second: `[..., m, 4]` boxes; leading dimensions broadcast against those of `first`.

    Returns:
        `[..., n, m]` in 0..1. Pairs with a box that is empty or inverted, such as the padding `(-1, -1, -1, -1)`, have
        IoU 0.
    """
    # Coordinate by coordinate: a last dimension of 2 or 4 would keep the CPU from using its vector units.
    xmin, ymin, xmax, ymax = (tf.expand_dims(values, -1) for values in tf.unstack(first, axis=-1))
    other_xmin, other_ymin, other_xmax, other_ymax = (tf.expand_dims(v, -2) for v in tf.unstack(second, axis=-1))
    width = tf.maximum(tf.minimum(xmax, other_xmax) - tf.maximum(xmin, other_xmin), 0.0)
    height = tf.maximum(tf.minimum(ymax, other_ymax) - tf.maximum(ymin, other_ymin), 0.0)
    intersection = width * height
    union = area(first)[..., :, tf.newaxis] + area(second)[..., tf.newaxis, :] - intersection
    return tf.math.divide_no_nan(intersection, union)


def area(boxes: tf.Tensor) -> tf.Tensor:
    """Computes the area of boxes `[..., 4]`, as a share of the image's area, `[...]`."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def encode_boxes(boxes: tf.Tensor, references: tf.Tensor) -> tf.Tensor:
    """Encodes boxes as offsets from reference boxes.

    `dx = (x - px) / pw / 0.1`, and `dy` likewise; `dw = ln(w / pw) / 0.2`, and `dh` likewise. `(x, y, w, h)` is the
    center and size of the box, `(px, py, pw, ph)` that of the reference box. This is the coding of Fast R-CNN with the
    variances of SSD.

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


def decode_boxes(offsets: tf.Tensor, references: tf.Tensor) -> tf.Tensor:
    """Decodes offsets from reference boxes into boxes; the inverse of `encode_boxes`.

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
