"""From examples to batches of tensors: reading, augmentation, padding and batching with tf.data."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from refinedet_tf.config import AugmentationConfig
from refinedet_tf.data.augmentation import augment
from refinedet_tf.data.augmentation.kerascv import build_layers
from refinedet_tf.data.examples import Example
from refinedet_tf.errors import DataError
from refinedet_tf.ops import images as image_ops
from refinedet_tf.ops.resizing import Resizing


def training_pipeline(
    examples: Sequence[Example],
    resizing: Resizing,
    batch_size: int,
    augmentation: AugmentationConfig,
    max_boxes: int,
    seed: int,
    cache: bool = False,
    *,
    drop_remainder: bool = True,
    deterministic: bool = True,
    shard: tuple[int, int] = (0, 1),
    epoch: tf.Variable | None = None,
    start: int = 0,
) -> tf.data.Dataset:
    """Shuffled, augmented batches; one iteration is one epoch.

    Each epoch has another order and other augmentations. Both follow from `seed`, the number of the epoch and an
    example's place in it: a run that is taken up again, or one that many workers share, sees what a single one without
    interruption sees. An image file that cannot be read raises; the readers have sorted out such files, so that
    happens only to files that vanish (TensorFlow then names them) or change while one trains.

    Args:
        examples: at least `batch_size` of them for each worker.
        resizing: the size of the images, and how they are brought to it.
        batch_size: images of a batch.
        augmentation: what is done to images and boxes. Layers of KerasCV among it are random in their own way, which
            cannot be taken up again.
        max_boxes: the first so many boxes of an example are used; `count_dropped_boxes` counts the others.
        seed: of order and augmentation.
        cache: read all image files at once and keep them in memory, for disks that are slow.
        drop_remainder: leave out the images that do not fill a batch at the end of an epoch; otherwise the last batch
            is smaller.
        deterministic: batches come in the order of the epoch; otherwise as soon as they are ready, with the same
            augmentation of each image but in an order that may differ between runs.
        shard: `(index, workers)` gives each worker every `workers`-th image of the epoch, and all as many batches if
            the remainder is dropped.
        epoch: its value at the beginning of an iteration is the number of the epoch; by default they count from 0.
            `epoch_variable` makes one.
        start: images at the beginning of the epoch that this worker leaves out, to go on within an epoch; a multiple
            of `batch_size`.

    Returns:
        `(images, {"boxes": boxes, "classes": classes})` with images float32 `[batch_size, height, width, 3]`, RGB,
        0..255; boxes float32 `[batch_size, max_boxes, 4]`; classes int32 `[batch_size, max_boxes]`, padded with -1.
        Its length is known. Crowds are left out.

    Raises:
        ConfigError: a layer of KerasCV is unusable.
        DataError: there are fewer examples than `batch_size` for each worker.
    """
    index, workers = shard
    count = len(examples) // workers if drop_remainder else len(range(index, len(examples), workers))
    if count < batch_size and drop_remainder:
        share = f" of one of {workers} workers" if workers > 1 else ""
        raise DataError(
            f"{count} training images{share} do not fill one batch of {batch_size}; "
            "lower train.batch_size or add images."
        )
    image_of = _image_cache(examples) if cache else _image_decoder(examples)
    all_boxes, all_classes, starts = _objects(examples, max_boxes)
    counter = epoch_variable(-1)

    def one_epoch(_: tf.Tensor) -> tf.data.Dataset:
        number = counter.assign_add(1) if epoch is None else epoch.read_value()
        epoch_seed = tf.stack([tf.constant(seed, tf.int64), number])
        order = epoch_order(len(examples), seed, number)
        places = tf.range(index, len(examples), workers, dtype=tf.int64)[start:count]
        seeds = tf.data.Dataset.from_tensors(epoch_seed).repeat(count - start)
        return tf.data.Dataset.zip((tf.data.Dataset.from_tensor_slices((tf.gather(order, places), places)), seeds))

    def prepare(
        example_and_place: tuple[tf.Tensor, tf.Tensor], epoch_seed: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        example, place = example_and_place
        seed = tf.random.experimental.stateless_fold_in(epoch_seed, place)
        image, objects = image_of(example), slice(starts[example], starts[example + 1])
        image, boxes, classes = augment(image, all_boxes[objects], all_classes[objects], augmentation, resizing, seed)
        # Crowds have taken part in the choice of the crop, as in the original; now they go.
        real = tf.where(classes >= 0)[:, 0]
        boxes, classes = tf.gather(boxes, real), tf.gather(classes, real)
        missing = max_boxes - tf.shape(classes)[0]
        boxes = tf.pad(boxes, [[0, missing], [0, 0]], constant_values=-1.0)
        classes = tf.pad(classes, [[0, missing]], constant_values=-1)
        image = tf.ensure_shape(image, [*resizing.size, 3])
        return image, {
            "boxes": tf.ensure_shape(boxes, [max_boxes, 4]),
            "classes": tf.ensure_shape(classes, [max_boxes]),
        }

    dataset = tf.data.Dataset.range(1).flat_map(one_epoch).apply(tf.data.experimental.assert_cardinality(count - start))
    dataset = dataset.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.batch(batch_size, drop_remainder=drop_remainder)
    if augmentation.keras_cv:
        layers = build_layers(augmentation.keras_cv, resizing.size, seed)
        dataset = dataset.map(layers, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(_options(deterministic))


def epoch_order(count: int, seed: int, epoch: int | tf.Tensor) -> tf.Tensor:
    """Returns the order in which `training_pipeline` takes `count` examples in an epoch: int64 `[count]`, indices."""
    epoch_seed = tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)])
    return tf.random.experimental.stateless_shuffle(tf.range(count, dtype=tf.int64), epoch_seed)


def epoch_variable(number: int) -> tf.Variable:
    """The number of an epoch in the form that `training_pipeline` reads, where tf.data can read it on any machine."""
    with tf.device("CPU:0"):
        return tf.Variable(number, trainable=False, dtype=tf.int64)


def evaluation_pipeline(examples: Sequence[Example], resizing: Resizing, batch_size: int) -> tf.data.Dataset:
    """Batches of images in the order of the examples, resized as everywhere outside training.

    Args:
        examples: what to read.
        resizing: the size of the images, and how they are brought to it.
        batch_size: images of a batch; the last one has what is left.

    Returns:
        Images, float32 `[b, height, width, 3]`, RGB, 0..255.
    """
    image_of = _image_decoder(examples)
    dataset = tf.data.Dataset.range(len(examples))
    dataset = dataset.map(lambda index: resizing.resize(image_of(index)), num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE).with_options(_options())


def image_pipeline(examples: Sequence[Example]) -> tf.data.Dataset:
    """The images as they are stored, one at a time, in the order of the examples.

    Returns:
        Batches of one image, uint8 `[1, height, width, 3]`, RGB.
    """
    dataset = tf.data.Dataset.range(len(examples)).map(_image_decoder(examples), num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(1).prefetch(tf.data.AUTOTUNE).with_options(_options())


def count_dropped_boxes(examples: Sequence[Example], max_boxes: int) -> int:
    """How many boxes `training_pipeline` leaves out because their image has more than `max_boxes`."""
    return sum(max(int((~example.crowd).sum()) - max_boxes, 0) for example in examples)


def _options(deterministic: bool = True) -> tf.data.Options:
    """How all pipelines run."""
    options = tf.data.Options()
    options.deterministic = deterministic
    # TensorFlow's tuning often holds up the end of an epoch, by up to a third of its length or a minute: its thread may
    # miss that it shall stop, and sleeps on. Without it AUTOTUNE stands for as many calls at once as there are cores.
    options.autotune.enabled = False
    options.threading.max_intra_op_parallelism = 1  # images come in parallel; sharing the work on one would only cost
    return options


def _image_decoder(examples: Sequence[Example]) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function for tf.data: the index of an example to its image, uint8 `[h, w, 3]`."""
    paths = tf.constant([example.image_path for example in examples])
    parts = tf.constant([example.part or (-1, 0, 0) for example in examples], tf.int64)

    def image_of(index: tf.Tensor) -> tf.Tensor:
        start, offset, length = tf.unstack(parts[index])
        contents = tf.cond(
            start < 0,
            lambda: tf.io.read_file(paths[index]),
            lambda: tf.strings.substr(_read_record(paths[index], start), offset, length),
        )
        return image_ops.decode(contents)

    return image_of


def _read_record(path: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """The contents of the record that begins at byte `start` of a file, in the one way that needs no Python."""
    records = tf.raw_ops.TFRecordDatasetV2(filenames=path, compression_type="", buffer_size=0, byte_offsets=start)
    records = tf.data.experimental.from_variant(records, tf.TensorSpec([], tf.string))
    return records.take(1).get_single_element()


def _image_cache(examples: Sequence[Example]) -> Callable[[tf.Tensor], tf.Tensor]:
    """As `_image_decoder`, but every image file is read at once and kept in memory, encoded as it is.

    `tf.data.Dataset.cache` gives its elements in one order only, which every epoch would have to shuffle again.
    """
    files = tf.constant([example.read_image() for example in examples])
    return lambda index: image_ops.decode(files[index])


def _objects(examples: Sequence[Example], max_boxes: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The objects of all examples one after the other: boxes `[n, 4]`, classes `[n]` with -1 for crowds, and `starts`.

    Those of example i are `starts[i]` to `starts[i + 1]`. Each has at most `max_boxes` besides the crowds.
    """
    kept = [example.crowd | (np.cumsum(~example.crowd) <= max_boxes) for example in examples]
    boxes = [example.boxes[keep] for example, keep in zip(examples, kept, strict=True)]
    classes = [np.where(example.crowd, -1, example.classes)[keep] for example, keep in zip(examples, kept, strict=True)]
    starts = np.cumsum([0, *map(len, classes)])
    return (
        tf.constant(np.concatenate(boxes), tf.float32),
        tf.constant(np.concatenate(classes), tf.int32),
        tf.constant(starts, tf.int64),
    )
