"""The training augmentation of SSD, which RefineDet uses unchanged (Liu et al. 2016, section 2.2 and appendix).

Every function is pure: what is random follows from `seed`, an integer tensor of shape [2]. Images are RGB, 0..255,
and stay uint8 until they are resized, since the original works on 8-bit images and a zoomed-out canvas is large.
Boxes are float32 `[m, 4]`, relative `(xmin, ymin, xmax, ymax)`, classes int32 `[m]`; m may be 0. Unlike the original,
nothing is encoded as JPEG again between the steps.

Expanding and cropping choose a window, int32 `[4]`: the first and one past the last column and row to be seen,
`(left, top, right, bottom)` in pixels of the image, which may reach beyond it. `augment` looks through the final window
before anything else is done to pixels, so that none is coloured, copied or filled that nobody will see.
"""

import functools
from collections.abc import Callable, Sequence

import tensorflow as tf

from refinedet_tf.config import AugmentationConfig
from refinedet_tf.ops.boxes import pairwise_iou
from refinedet_tf.ops.resizing import MEAN_COLOR, Resizing, resize_bilinear

CROP_MIN_IOUS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.0)  # one sampler each; with 0 any crop of an image with objects will do
CROP_TRIALS = 50
RESIZE_METHODS = ("bilinear", "area", "nearest", "bicubic", "lanczos3")
LANCZOS_REACH = 3  # pixels


def augment(
    image: tf.Tensor,
    boxes: tf.Tensor,
    classes: tf.Tensor,
    config: AugmentationConfig,
    resizing: Resizing,
    seed: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Applies the steps that `config` enables in the paper's order: colours, expand, crop, resize, flip.

    Args:
        image: uint8 `[h, w, 3]`.
        boxes: `[m, 4]`.
        classes: `[m]`.
        config: which steps to take.
        resizing: the size of the result, and what happens to the crop's aspect ratio.
        seed: integers `[2]`.

    Returns:
        The image, float32 `[height, width, 3]`, with the boxes `[k, 4]` and classes `[k]` that are left in it.
    """
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 5))
    image = tf.convert_to_tensor(image)
    window = _whole(image)
    if config.expand_max_ratio > 1:
        window, boxes = _expanded(window, boxes, config.expand_max_ratio, seeds[1])
    if config.random_crop:
        window, boxes, classes = _cropped(window, boxes, classes, seeds[2])
    visible = _visible(image, window)
    image = image[visible[1] : visible[3], visible[0] : visible[2]]
    if config.photometric:
        image = photometric_distortion(image, seeds[0])
    window_size = tf.reverse(window[2:] - window[:2], axis=[0])
    shown = resizing.shown_size(window_size)
    if config.random_interpolation:
        image = _random_resize(image, visible, window, shown, seeds[3])
    else:
        image = resize_bilinear(_filled(image, visible, window), shown)
    image = resizing.pad(image)
    boxes = resizing.boxes_to_input(boxes, window_size)
    if config.flip:
        image, boxes = random_flip(image, boxes, seeds[4])
    return image, boxes, classes


def photometric_distortion(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Changes brightness, contrast, saturation and hue, each with probability 1/2.

    Brightness comes first (plus -32..32); then contrast (times 0.5..1.5), saturation (times 0.5..1.5) and hue
    (plus -36..36 degrees) in this order or, as often, with contrast last. Every step rounds to 0..255.

    Args:
        image: uint8 `[h, w, 3]`.
        seed: integers `[2]`.

    Returns:
        uint8 `[h, w, 3]`.
    """
    coins_seed, amounts_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    coins = tf.unstack(tf.random.stateless_uniform([5], coins_seed) < 0.5)
    brightness, contrast, saturation, hue = tf.unstack(
        tf.random.stateless_uniform([4], amounts_seed, minval=[-32.0, 0.5, 0.5, -0.1], maxval=[32.0, 1.5, 1.5, 0.1])
    )  # hue in turns
    contrast_first, contrast_last = coins[1] & coins[4], coins[1] & ~coins[4]

    def apply_if(coin: tf.Tensor, change: Callable[[tf.Tensor], tf.Tensor], image: tf.Tensor) -> tf.Tensor:
        return tf.cond(coin, lambda: change(image), lambda: image)

    def change_contrast(image: tf.Tensor) -> tf.Tensor:
        return tf.round(tf.minimum(image * contrast, 255.0))

    # Each pass over the pixels costs: so a whole number is added, and only what can leave 0..255 is clipped.
    image = tf.cast(image, tf.float32)
    image = apply_if(coins[0], lambda x: tf.clip_by_value(x + tf.round(brightness), 0.0, 255.0), image)
    image = apply_if(contrast_first, change_contrast, image)
    image = apply_if(coins[2], lambda x: _saturated(x, saturation), image)
    image = apply_if(coins[3], lambda x: tf.round(tf.image.adjust_hue(x, hue)), image)
    image = apply_if(contrast_last, change_contrast, image)
    return tf.cast(image, tf.uint8)


def _saturated(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """`tf.image.adjust_saturation` of whole numbers 0..255, rounded to such again, but faster.

    The largest of the three colours is the value of HSV. It stays, and the distance of the others to it is multiplied,
    though none falls below zero.
    """
    colours = tf.unstack(image, axis=2)
    value, lowest = functools.reduce(tf.maximum, colours), functools.reduce(tf.minimum, colours)
    factor = tf.minimum(factor, value / tf.maximum(value - lowest, 1.0))  # in greys there is no distance
    planes = tf.round([value - (value - colour) * factor for colour in colours])
    # The product transposes, exactly, and sooner than tf.transpose, which is slow with rows of three.
    pixels = tf.matmul(tf.reshape(planes, [3, -1]), tf.eye(3), transpose_a=True)
    return tf.reshape(pixels, tf.shape(image))


def expand(image: tf.Tensor, boxes: tf.Tensor, max_ratio: float, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """With probability 1/2, puts the image somewhere on a larger canvas, so that its objects become smaller.

    Args:
        image: uint8 `[h, w, 3]`.
        boxes: `[m, 4]`.
        max_ratio: the sides of the canvas are those of the image times one number drawn from 1 to this; what the
            image does not cover has the mean colour.
        seed: integers `[2]`.

    Returns:
        The canvas, uint8 `[h * ratio, w * ratio, 3]` with sides rounded down, and the boxes relative to it.
    """
    window, boxes = _expanded(_whole(image), boxes, max_ratio, seed)
    return _filled(image, _whole(image), window), boxes


def _expanded(window: tf.Tensor, boxes: tf.Tensor, max_ratio: float, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The window of `expand` around the window of a whole image, and the boxes relative to it."""
    coin, ratio, x, y = tf.unstack(tf.random.stateless_uniform([4], seed))
    ratio = tf.where(coin < 0.5, 1.0 + ratio * (max_ratio - 1.0), 1.0)
    size = window[2:]
    canvas = _scaled(size, ratio)
    corner = _scaled(canvas - size, tf.stack([x, y]))
    boxes = (boxes * _twice(size) + _twice(corner)) / _twice(canvas)
    return tf.concat([-corner, canvas - corner], axis=0), boxes


def _whole(image: tf.Tensor) -> tf.Tensor:
    """The window that shows an image as it is."""
    return tf.concat([[0, 0], _width_and_height(image)], axis=0)


def _width_and_height(image: tf.Tensor) -> tf.Tensor:
    return tf.reverse(tf.shape(image)[:2], axis=[0])


def _visible(image: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """The part of the image that lies in a window; none of it if that is beside the image, with sides of zero."""
    part = tf.clip_by_value(window, 0, tf.tile(_width_and_height(image), [2]))
    return tf.clip_by_value(part, tf.tile(window[:2], [2]), tf.tile(window[2:], [2]))


def _filled(image: tf.Tensor, visible: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """What is seen through a window of which `image` fills the part `visible`; the mean colour around it."""
    left, top = tf.unstack(visible[:2] - window[:2])
    right, bottom = tf.unstack(window[2:] - visible[2:])
    width, height = tf.unstack(window[2:] - window[:2])

    def plain(height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
        row = tf.tile(tf.constant(MEAN_COLOR, image.dtype), [width])
        return tf.broadcast_to(row, [height, width * 3])

    def fill() -> tf.Tensor:
        # Rows of height x (width * 3) values: with long rows, filling and joining are plain copies.
        seen_height = tf.shape(image)[0]
        rows = tf.reshape(image, [seen_height, tf.shape(image)[1] * 3])
        rows = tf.concat([plain(seen_height, left), rows, plain(seen_height, right)], axis=1)
        rows = tf.concat([plain(top, width), rows, plain(bottom, width)], axis=0)
        return tf.reshape(rows, [height, width, 3])

    return tf.cond(tf.reduce_all(visible == window), lambda: image, fill)


def _twice(values: tf.Tensor) -> tf.Tensor:
    """(x, y) as float32 (x, y, x, y)."""
    return tf.cast(tf.tile(values, [2]), tf.float32)


def _scaled(length: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Lengths in whole pixels times factors, rounded down, but not for what float32 lacks to the next pixel."""
    return tf.cast(tf.cast(length, tf.float32) * factor + 1e-3, tf.int32)


def random_crop(
    image: tf.Tensor, boxes: tf.Tensor, classes: tf.Tensor, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Cuts out a part of the image that has some object in it.

    There are seven samplers. The first takes the whole image. Each of the others draws up to 50 crops and takes the
    first whose IoU with at least one box reaches the sampler's bound (`CROP_MIN_IOUS`). One of the crops found is used,
    all with equal probability. Objects stay if their centre is in the crop; their boxes are clipped to it.

    Args:
        image: uint8 `[h, w, 3]`.
        boxes: `[m, 4]`.
        classes: `[m]`.
        seed: integers `[2]`.

    Returns:
        The crop, uint8, the boxes `[k, 4]` that stay, relative to it, and their classes `[k]`; k may be 0.
    """
    window, boxes, classes = _cropped(_whole(image), boxes, classes, seed)
    return image[window[1] : window[3], window[0] : window[2]], boxes, classes


def _cropped(
    window: tf.Tensor, boxes: tf.Tensor, classes: tf.Tensor, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The window of `random_crop` inside a window, with what stays in it."""
    trials_seed, choice_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    crops = draw_crops(trials_seed)
    best = tf.reduce_max(pairwise_iou(crops, boxes), axis=-1)  # of each trial; -inf where there are no boxes
    accepted = best >= tf.constant(CROP_MIN_IOUS)[:, tf.newaxis]
    first = tf.gather(crops, tf.argmax(accepted, axis=1), axis=1, batch_dims=1)
    candidates = tf.concat([[[0.0, 0.0, 1.0, 1.0]], first], axis=0)
    found = tf.concat([[True], tf.reduce_any(accepted, axis=1)], axis=0)
    lots = tf.random.stateless_uniform(tf.shape(found), choice_seed)
    crop = candidates[tf.argmax(tf.where(found, lots, -1.0))]
    # Offset and size are rounded down to whole pixels, and boxes follow the pixels that are really cut.
    size = window[2:] - window[:2]
    offset = _scaled(size, crop[:2])
    extent = tf.maximum(_scaled(size, crop[2:] - crop[:2]), 1)
    boxes = (boxes * _twice(size) - _twice(offset)) / _twice(extent)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = tf.reduce_all((centres >= 0) & (centres <= 1), axis=1)
    boxes = tf.clip_by_value(boxes, 0.0, 1.0)
    kept = tf.where(inside & tf.reduce_all(boxes[:, 2:] > boxes[:, :2], axis=1))[:, 0]
    corner = window[:2] + offset
    return tf.concat([corner, corner + extent], axis=0), tf.gather(boxes, kept), tf.gather(classes, kept)


def draw_crops(seed: tf.Tensor) -> tf.Tensor:
    """Draws the trials of all samplers.

    The scale s is uniform in 0.3..1 and the aspect ratio a in 0.5..2, limited to s^2..1/s^2 so that the crop fits;
    width s * sqrt(a), height s / sqrt(a), position uniform. Everything is relative to the image's sides.

    Args:
        seed: integers `[2]`.

    Returns:
        `[6, 50, 4]`, relative boxes.
    """
    drawn = tf.random.stateless_uniform([len(CROP_MIN_IOUS), CROP_TRIALS, 4], seed)
    scale, ratio, x, y = tf.unstack(drawn, axis=-1)
    scale = 0.3 + 0.7 * scale
    ratio = tf.clip_by_value(0.5 + 1.5 * ratio, scale**2, 1 / scale**2)
    width, height = scale * tf.sqrt(ratio), scale / tf.sqrt(ratio)
    xmin, ymin = x * (1 - width), y * (1 - height)
    return tf.stack([xmin, ymin, xmin + width, ymin + height], axis=-1)


def random_resize(image: tf.Tensor, size: Sequence[int], seed: tf.Tensor) -> tf.Tensor:
    """Warps the image to a size with one of `RESIZE_METHODS` at random.

    Args:
        image: uint8 `[h, w, 3]`.
        size: height and width to make, in pixels.
        seed: integers `[2]`.

    Returns:
        float32 `[height, width, 3]`, 0..255.
    """
    whole = _whole(image)
    return _random_resize(image, whole, whole, tf.convert_to_tensor(size), seed)


def _random_resize(
    image: tf.Tensor, visible: tf.Tensor, window: tf.Tensor, size: tf.Tensor, seed: tf.Tensor
) -> tf.Tensor:
    """`random_resize` of what is seen through a window of which `image` fills the part `visible`."""

    def resize_with(method: str) -> Callable[[], tf.Tensor]:
        def resized() -> tf.Tensor:
            if method == "lanczos3":
                return _lanczos(image, visible, window, size)
            # TensorFlow's kernels are faster on float32 than on uint8.
            canvas = tf.cast(_filled(image, visible, window), tf.float32)
            return tf.image.resize(canvas, size, method=method, antialias=False)

        return resized

    choice = tf.random.stateless_uniform([], seed, maxval=len(RESIZE_METHODS), dtype=tf.int32)
    image = tf.switch_case(choice, [resize_with(method) for method in RESIZE_METHODS])
    return tf.clip_by_value(image, 0.0, 255.0)  # bicubic and lanczos3 overshoot at edges


def _lanczos(image: tf.Tensor, visible: tf.Tensor, window: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """What `tf.image.resize` makes of all that is seen through a window with `lanczos3`, several times as fast.

    First, without those plain pixels that stay plain: `made` are the pixels of the result that are computed, `needed`
    those of the window that they come from, both `(left, top, right, bottom)`. Second, TensorFlow's kernel goes through
    columns number by number but takes a row at once: so columns are made rows.
    """
    corner, old, new = tf.tile(window[:2], [2]), window[2:] - window[:2], tf.reverse(size, axis=[0])
    old_size, new_size = tf.tile(old, [2]), tf.tile(new, [2])
    reach, up = LANCZOS_REACH * tf.constant([-1, -1, 1, 1]), tf.constant([0, 0, 1, 1])  # right and bottom round up
    made = ((visible - corner + reach) * new_size + up * (old_size - 1)) // old_size
    made = tf.clip_by_value(made, 0, new_size)
    needed = (made * old_size + up * (new_size - 1)) // new_size + reach
    needed = tf.clip_by_value(needed, 0, old_size)
    image = _filled(image, visible, needed + corner)
    (height, width), (made_width, made_height) = tf.unstack(tf.shape(image)[:2]), tf.unstack(made[2:] - made[:2])
    # Matrices, since tf.transpose takes twice as long with the three colours of a pixel kept together.
    rows = _lanczos_rows(tf.reshape(image, [height, width * 3]), needed[1], made[1], made[3], old[1], new[1])
    columns = tf.reshape(tf.transpose(rows), [width, 3 * made_height])
    columns = _lanczos_rows(columns, needed[0], made[0], made[2], old[0], new[0])
    rows = tf.transpose(tf.reshape(columns, [made_width * 3, made_height]))
    image = tf.reshape(rows, [made_height, made_width, 3])
    return _filled(image, made, tf.concat([[0, 0], new], axis=0))


def _lanczos_rows(
    image: tf.Tensor, origin: tf.Tensor, first: tf.Tensor, end: tf.Tensor, old: tf.Tensor, new: tf.Tensor
) -> tf.Tensor:
    """The rows from `first` to before `end` of the `new` ones that take the place of `old` rows.

    Of the old ones, the matrix `image` has those that matter, from the row `origin` on.
    """
    scale = tf.cast(new, tf.float32) / tf.cast(old, tf.float32)
    translation = tf.cast(origin, tf.float32) * scale - tf.cast(first, tf.float32)
    rows = tf.raw_ops.ScaleAndTranslate(
        images=image[tf.newaxis, :, tf.newaxis],
        size=tf.stack([end - first, 1]),
        scale=tf.stack([scale, 1.0]),
        translation=tf.stack([translation, 0.0]),
        kernel_type="lanczos3",
        antialias=False,
    )
    return rows[0, :, 0]


def random_flip(image: tf.Tensor, boxes: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mirrors image `[h, w, 3]` and boxes `[m, 4]` left to right with probability 1/2; `seed` is integers `[2]`."""
    xmin, ymin, xmax, ymax = tf.unstack(boxes, axis=1)
    mirrored = tf.stack([1 - xmax, ymin, 1 - xmin, ymax], axis=1)
    coin = tf.random.stateless_uniform([], seed) < 0.5
    return tf.cond(coin, lambda: (tf.reverse(image, axis=[1]), mirrored), lambda: (image, boxes))
