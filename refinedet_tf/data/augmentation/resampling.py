"""Resizing with one of several interpolation methods at random."""

from collections.abc import Callable

import tensorflow as tf

from refinedet_tf.data.augmentation.windows import fill

RESIZE_METHODS = ("bilinear", "area", "nearest", "bicubic", "lanczos3")
LANCZOS_REACH = 3  # pixels


def random_resize(
    image: tf.Tensor, visible: tf.Tensor, window: tf.Tensor, size: tf.Tensor, seed: tf.Tensor
) -> tf.Tensor:
    """Resizes what a window shows with one of `RESIZE_METHODS` at random.

    Args:
        image: uint8 `[h, w, 3]`.
        visible: the part of the window that the image fills; the rest has the mean color.
        window: what to resize.
        size: height and width of the result in pixels, int32 `[2]`.
        seed: integers `[2]`.

    Returns:
        float32 `[height, width, 3]`, 0..255.
    """

    def resize_with(method: str) -> Callable[[], tf.Tensor]:
        def resized() -> tf.Tensor:
            if method == "lanczos3":
                return _lanczos(image, visible, window, size)
            # TensorFlow's kernels are faster on float32 than on uint8.
            canvas = tf.cast(fill(image, visible, window), tf.float32)
            return tf.image.resize(canvas, size, method=method, antialias=False)

        return resized

    choice = tf.random.stateless_uniform([], seed, maxval=len(RESIZE_METHODS), dtype=tf.int32)
    image = tf.switch_case(choice, [resize_with(method) for method in RESIZE_METHODS])
    return tf.clip_by_value(image, 0.0, 255.0)  # bicubic and lanczos3 overshoot at edges


def _lanczos(image: tf.Tensor, visible: tf.Tensor, window: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Resizes what a window shows as `tf.image.resize` with `lanczos3` does, several times as fast.

    First, it leaves out the plain margin that stays plain: `made` are the pixels of the result that are computed,
    `needed` the pixels of the window that they depend on, both as `(left, top, right, bottom)`. Second, TensorFlow's
    kernel handles columns number by number but whole rows at once, so columns are turned into rows.
    """
    corner, old, new = tf.tile(window[:2], [2]), window[2:] - window[:2], tf.reverse(size, axis=[0])
    old_size, new_size = tf.tile(old, [2]), tf.tile(new, [2])
    reach, up = LANCZOS_REACH * tf.constant([-1, -1, 1, 1]), tf.constant([0, 0, 1, 1])  # right and bottom round up
    made = ((visible - corner + reach) * new_size + up * (old_size - 1)) // old_size
    made = tf.clip_by_value(made, 0, new_size)
    needed = (made * old_size + up * (new_size - 1)) // new_size + reach
    needed = tf.clip_by_value(needed, 0, old_size)
    image = fill(image, visible, needed + corner)
    (height, width), (made_width, made_height) = tf.unstack(tf.shape(image)[:2]), tf.unstack(made[2:] - made[:2])
    # Matrices, since tf.transpose takes twice as long if it keeps the three channels of a pixel together.
    rows = _lanczos_rows(tf.reshape(image, [height, width * 3]), needed[1], made[1], made[3], old[1], new[1])
    columns = tf.reshape(tf.transpose(rows), [width, 3 * made_height])
    columns = _lanczos_rows(columns, needed[0], made[0], made[2], old[0], new[0])
    rows = tf.transpose(tf.reshape(columns, [made_width * 3, made_height]))
    image = tf.reshape(rows, [made_height, made_width, 3])
    return fill(image, made, tf.concat([[0, 0], new], axis=0))


def _lanczos_rows(
    image: tf.Tensor, origin: tf.Tensor, first: tf.Tensor, end: tf.Tensor, old: tf.Tensor, new: tf.Tensor
) -> tf.Tensor:
    """Resizes `old` rows to `new` ones and returns those from `first` to before `end`.

    `image` is a matrix with the old rows from `origin` on, as far as they are needed.
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
