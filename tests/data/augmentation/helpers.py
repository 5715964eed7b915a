"""What the tests of the augmentation share."""

import numpy as np
import tensorflow as tf

from refinedet_tf.data.augmentation import windows
from refinedet_tf.data.augmentation.resampling import random_resize


def seeds(count):
    return [tf.constant([1, number], tf.int64) for number in range(count)]


def random_objects(rng, count):
    """Boxes of every size inside the image, and classes."""
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1).astype(np.float32)
    return corners.reshape(count, 4), rng.integers(0, 20, count).astype(np.int32)


def over_many_seeds(function):
    """The results of a function of a seed for 4000 seeds."""
    many = tf.constant(np.random.default_rng(5).integers(0, 1 << 30, (4000, 2)), tf.int32)
    return tf.function(lambda: tf.map_fn(function, many, fn_output_signature=tf.float32))().numpy()


def expand(image, boxes, max_ratio, seed):
    """Expands pixels as well as boxes."""
    whole = windows.whole(image)
    window, boxes = windows.random_expand(whole, boxes, max_ratio, seed)
    return windows.fill(image, whole, window), boxes


def crop(image, boxes, classes, seed):
    """Crops pixels as well as boxes."""
    window, boxes, classes = windows.random_crop(windows.whole(image), boxes, classes, seed)
    return image[window[1] : window[3], window[0] : window[2]], boxes, classes


def resize(image, size, seed):
    """Resizes a whole image."""
    whole = windows.whole(image)
    return random_resize(image, whole, whole, tf.constant(size), seed)
