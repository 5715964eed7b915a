"""From examples to batches of tensors: reading, augmentation, padding and batching with tf.data."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from refinedet_tf.config import AugmentationConfig
from refinedet_tf.data.augmentation import augment
from refinedet_tf.data.examples import DataError, Example
from refinedet_tf.ops import images as image_ops


def training_pipeline(examples: Sequence[Example], input_size: Sequence[int], batch_size: int,
                      augmentation: AugmentationConfig, max_boxes: int, seed: int,
                      cache: bool = False) -> tf.data.Dataset:
    """Shuffled, augmented batches; one iteration is one epoch.

    Each iteration has another order and other augmentations, and the sequence of iterations follows from `seed`. An
    image file that cannot be read raises; `read_voc` has sorted out such files, so that happens only to files that
    vanish (TensorFlow then names them) or change while one trains.

    Args:
        examples: at least `batch_size` of them.
        input_size: height and width of the images in pixels.
        batch_size: images of a batch; those that are left over at the end of an epoch are not used in it.
        augmentation: what is done to images and boxes.
        max_boxes: the first so many boxes of an example are used; `count_dropped_boxes` counts the others.
        seed: of order and augmentation.
        cache: keep the decoded images in memory.

    Returns:
        `(images, {"boxes": boxes, "classes": classes})` with images float32 `[batch_size, height, width, 3]`, RGB,
        0..255; boxes float32 `[batch_size, max_boxes, 4]`; classes int32 `[batch_size, max_boxes]`, padded with -1.
        Its length is known.

    Raises:
        DataError: there are fewer examples than `batch_size`.
    """
    if len(examples) < batch_size:
        raise DataError(f"{len(examples)} training images do not fill one batch of {batch_size}; "
                        "lower train.batch_size or add images.")

    def load(path: tf.Tensor, boxes: tf.Tensor, classes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return image_ops.decode(tf.io.read_file(path)), boxes, classes

    def prepare(example: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
                seed: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        image, boxes, classes = example
        real = classes >= 0
        boxes, classes = tf.boolean_mask(boxes, real), tf.boolean_mask(classes, real)
        image, boxes, classes = augment(image, boxes, classes, augmentation, input_size, seed)
        missing = max_boxes - tf.shape(classes)[0]
        boxes = tf.pad(boxes, [[0, missing], [0, 0]], constant_values=-1.0)
        classes = tf.pad(classes, [[0, missing]], constant_values=-1)
        image = tf.ensure_shape(image, [*input_size, 3])
        return image, {"boxes": tf.ensure_shape(boxes, [max_boxes, 4]),
                       "classes": tf.ensure_shape(classes, [max_boxes])}

    dataset = tf.data.Dataset.from_tensor_slices(_padded(examples, max_boxes))
    if cache:
        dataset = dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE).cache()
    dataset = dataset.shuffle(len(examples), seed=seed, reshuffle_each_iteration=True)
    if not cache:
        dataset = dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE)
    seeds = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).batch(2, drop_remainder=True)
    dataset = tf.data.Dataset.zip((dataset, seeds)).map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def evaluation_pipeline(examples: Sequence[Example], input_size: Sequence[int],
                        batch_size: int) -> tf.data.Dataset:
    """Batches of images in the order of the examples, resized as everywhere outside training.

    Args:
        examples: what to read.
        input_size: height and width of the images in pixels.
        batch_size: images of a batch; the last one has what is left.

    Returns:
        Images, float32 `[b, height, width, 3]`, RGB, 0..255.
    """
    def load(path: tf.Tensor) -> tf.Tensor:
        return image_ops.resize(image_ops.decode(tf.io.read_file(path)), input_size)

    dataset = tf.data.Dataset.from_tensor_slices([example.image_path for example in examples])
    dataset = dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE)


def image_pipeline(examples: Sequence[Example]) -> tf.data.Dataset:
    """The images as they are stored, one at a time, in the order of the examples.

    Returns:
        Batches of one image, uint8 `[1, height, width, 3]`, RGB.
    """
    dataset = tf.data.Dataset.from_tensor_slices([example.image_path for example in examples])
    dataset = dataset.map(lambda path: image_ops.decode(tf.io.read_file(path)), num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(1).prefetch(tf.data.AUTOTUNE)


def count_dropped_boxes(examples: Sequence[Example], max_boxes: int) -> int:
    """How many boxes `training_pipeline` leaves out because their image has more than `max_boxes`."""
    return sum(max(len(example.classes) - max_boxes, 0) for example in examples)


def _padded(examples: Sequence[Example], max_boxes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paths `[n]`, boxes `[n, max_boxes, 4]` and classes `[n, max_boxes]`, padded with -1."""
    boxes = np.full((len(examples), max_boxes, 4), -1, np.float32)
    classes = np.full((len(examples), max_boxes), -1, np.int32)
    for index, example in enumerate(examples):
        count = min(len(example.classes), max_boxes)
        boxes[index, :count] = example.boxes[:count]
        classes[index, :count] = example.classes[:count]
    return np.array([example.image_path for example in examples]), boxes, classes
