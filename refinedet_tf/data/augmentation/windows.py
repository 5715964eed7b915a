"""Expanding and cropping: which part of the plane around an image is shown, and where its boxes are in it.

A window is int32 `[4]`, `(left, top, right, bottom)` in pixels of the image; right and bottom are one past the last
column and row. It may reach beyond the image.
"""

import tensorflow as tf

from refinedet_tf.ops.boxes import pairwise_iou
from refinedet_tf.ops.resizing import MEAN_COLOR
from refinedet_tf.ops.targets import IGNORED_CLASS

CROP_MIN_IOUS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.0)  # one for each sampler; 0 accepts any crop of an image with objects
CROP_TRIALS = 50


def whole(image: tf.Tensor) -> tf.Tensor:
    """Returns the window that shows all of an image `[h, w, 3]`, and nothing else."""
    return tf.concat([[0, 0], _width_and_height(image)], axis=0)


def random_expand(
    window: tf.Tensor, boxes: tf.Tensor, max_ratio: float, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """With probability 1/2, places the image at random on a larger canvas, which makes its objects smaller.

    Args:
        window: the whole image.
        boxes: `[m, 4]`, relative to it.
        max_ratio: the sides of the canvas are those of the image times a ratio that is uniform in 1..max_ratio,
            rounded down.
        seed: integers `[2]`.

    Returns:
        The window of the canvas, and the boxes relative to it.
    """
    coin, ratio, x, y = tf.unstack(tf.random.stateless_uniform([4], seed))
    ratio = tf.where(coin < 0.5, 1.0 + ratio * (max_ratio - 1.0), 1.0)
    size = window[2:]
    canvas = _scale(size, ratio)
    corner = _scale(canvas - size, tf.stack([x, y]))
    boxes = (boxes * _twice(size) + _twice(corner)) / _twice(canvas)
    return tf.concat([-corner, canvas - corner], axis=0), boxes


def random_crop(
    window: tf.Tensor, boxes: tf.Tensor, classes: tf.Tensor, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Crops a window to a part that contains some object.

    There are seven samplers. The first takes the whole window. Each of the others draws up to 50 crops and takes the
    first whose IoU with at least one box reaches the sampler's bound (`CROP_MIN_IOUS`). One of the crops found is used,
    all with equal probability. Objects whose center is in the crop stay; their boxes are clipped to it.

    Args:
        window: what to crop.
        boxes: `[m, 4]`, relative to it.
        classes: `[m]`; ignored objects have no say in the choice.
        seed: integers `[2]`.

    Returns:
        The window of the crop, the boxes `[k, 4]` that stay, relative to it, and their classes `[k]`; k may be 0.
    """
    trials_seed, choice_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    crops = draw_crops(trials_seed)
    overlaps = tf.where(classes == IGNORED_CLASS, -1.0, pairwise_iou(crops, boxes))
    best = tf.reduce_max(overlaps, axis=-1)  # of each trial; -inf if there are no boxes
    accepted = best >= tf.constant(CROP_MIN_IOUS)[:, tf.newaxis]
    first = tf.gather(crops, tf.argmax(accepted, axis=1), axis=1, batch_dims=1)
    candidates = tf.concat([[[0.0, 0.0, 1.0, 1.0]], first], axis=0)
    found = tf.concat([[True], tf.reduce_any(accepted, axis=1)], axis=0)
    lots = tf.random.stateless_uniform(tf.shape(found), choice_seed)
    crop = candidates[tf.argmax(tf.where(found, lots, -1.0))]
    # Offset and size are rounded down to whole pixels; boxes are relative to the pixels that remain.
    size = window[2:] - window[:2]
    offset = _scale(size, crop[:2])
    extent = tf.maximum(_scale(size, crop[2:] - crop[:2]), 1)
    boxes = (boxes * _twice(size) - _twice(offset)) / _twice(extent)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = tf.reduce_all((centers >= 0) & (centers <= 1), axis=1)
    boxes = tf.clip_by_value(boxes, 0.0, 1.0)
    kept = tf.where(inside & tf.reduce_all(boxes[:, 2:] > boxes[:, :2], axis=1))[:, 0]
    corner = window[:2] + offset
    return tf.concat([corner, corner + extent], axis=0), tf.gather(boxes, kept), tf.gather(classes, kept)


def draw_crops(seed: tf.Tensor) -> tf.Tensor:
    """Draws the trials of all samplers but the first.

    The scale s is uniform in 0.3..1 and the aspect ratio a in 0.5..2, limited to s^2..1/s^2 so that the crop fits;
    width s * sqrt(a), height s / sqrt(a), position uniform. All are relative to the window's sides.

    Args:
        seed: integers `[2]`.

    Returns:
        Relative boxes, `[6, 50, 4]`.
    """
    drawn = tf.random.stateless_uniform([len(CROP_MIN_IOUS), CROP_TRIALS, 4], seed)
    scale, ratio, x, y = tf.unstack(drawn, axis=-1)
    scale = 0.3 + 0.7 * scale
    ratio = tf.clip_by_value(0.5 + 1.5 * ratio, scale**2, 1 / scale**2)
    width, height = scale * tf.sqrt(ratio), scale / tf.sqrt(ratio)
    xmin, ymin = x * (1 - width), y * (1 - height)
    return tf.stack([xmin, ymin, xmin + width, ymin + height], axis=-1)


def visible_part(image: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """Returns the window of the pixels of `image` that `window` shows; its sides are 0 if that shows none."""
    part = tf.clip_by_value(window, 0, tf.tile(_width_and_height(image), [2]))
    return tf.clip_by_value(part, tf.tile(window[:2], [2]), tf.tile(window[2:], [2]))


def fill(image: tf.Tensor, visible: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """Renders a window: `image`, which fills its part `visible`, with the mean color around it.

    Args:
        image: uint8 or float32 `[h, w, 3]`, the size of `visible`.
        visible: a window inside `window`.
        window: what to show.

    Returns:
        Pixels of the type of `image`, of the size of `window`.
    """
    left, top = tf.unstack(visible[:2] - window[:2])
    right, bottom = tf.unstack(window[2:] - visible[2:])
    width, height = tf.unstack(window[2:] - window[:2])

    def plain(height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
        row = tf.tile(tf.constant(MEAN_COLOR, image.dtype), [width])
        return tf.broadcast_to(row, [height, width * 3])

    def padded() -> tf.Tensor:
        # As a matrix of height x (width * 3) values, whose long rows are copied at once.
        seen_height = tf.shape(image)[0]
        rows = tf.reshape(image, [seen_height, tf.shape(image)[1] * 3])
        rows = tf.concat([plain(seen_height, left), rows, plain(seen_height, right)], axis=1)
        rows = tf.concat([plain(top, width), rows, plain(bottom, width)], axis=0)
        return tf.reshape(rows, [height, width, 3])

    return tf.cond(tf.reduce_all(visible == window), lambda: image, padded)


def random_flip(image: tf.Tensor, boxes: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mirrors an image `[h, w, 3]` and boxes `[m, 4]` left to right with probability 1/2; `seed` is integers `[2]`."""
    xmin, ymin, xmax, ymax = tf.unstack(boxes, axis=1)
    mirrored = tf.stack([1 - xmax, ymin, 1 - xmin, ymax], axis=1)
    coin = tf.random.stateless_uniform([], seed) < 0.5
    return tf.cond(coin, lambda: (tf.reverse(image, axis=[1]), mirrored), lambda: (image, boxes))


def _width_and_height(image: tf.Tensor) -> tf.Tensor:
    return tf.reverse(tf.shape(image)[:2], axis=[0])


def _twice(values: tf.Tensor) -> tf.Tensor:
    """Returns (x, y) as float32 (x, y, x, y)."""
    return tf.cast(tf.tile(values, [2]), tf.float32)


def _scale(length: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Multiplies whole pixels by a factor and rounds down; 0.001 makes up for float32 just below a whole number."""
    return tf.cast(tf.cast(length, tf.float32) * factor + 1e-3, tf.int32)
