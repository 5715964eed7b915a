"""From examples to batches of tensors with tf.data: reading, augmentation, padding and batching."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from refinedet_tf.config import AugmentationConfig, Config
from refinedet_tf.data.augmentation import augment
from refinedet_tf.data.augmentation.kerascv import build_layers
from refinedet_tf.data.examples import Example, ExampleSet
from refinedet_tf.errors import DataError
from refinedet_tf.ops import images as image_ops
from refinedet_tf.ops.resizing import Resizing
from refinedet_tf.ops.targets import IGNORED_CLASS

# Nothing here needs AutoGraph; without it, graphs are built in half the time.
_without_autograph = tf.autograph.experimental.do_not_convert


def build_dataset(
    config: Config, examples: ExampleSet | Sequence[Example], *, training: bool, epoch: tf.Variable | None = None
) -> tf.data.Dataset:
    """Returns batches of examples as a recipe wants them.

    Args:
        config: the recipe.
        examples: what `read_data` returns, or some of its examples.
        training: shuffle and augment the images, as `training_pipeline` does, for `fit`; otherwise keep their order and
            only resize them, as `evaluation_pipeline` does, for `predict`.
        epoch: the number of the epoch when a training goes on; see `training_pipeline`.

    Returns:
        With `training` `(images, {"boxes": boxes, "classes": classes})`, else images, float32 `[b, height, width, 3]`.

    Raises:
        ConfigError: a KerasCV layer is invalid.
        DataError: the examples do not fill a batch.
    """
    examples = examples.examples if isinstance(examples, ExampleSet) else examples
    resizing, batch_size = Resizing(*config.model.input_size, config.model.resize), config.train.batch_size
    if not training:
        return evaluation_pipeline(examples, resizing, batch_size)
    data = config.data
    return training_pipeline(
        examples,
        resizing,
        batch_size,
        data.augmentation,
        data.max_boxes,
        config.train.seed,
        cache=data.cache,
        epoch=epoch,
    )


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
    """Returns shuffled, augmented batches; one iteration is one epoch.

    Order and augmentation differ from epoch to epoch. Both depend only on `seed`, the number of the epoch and the
    position of an example in it, so a resumed run, or one that several workers share, gets the same images as a single
    uninterrupted run. An unreadable image file raises an error. The readers have dropped such files, so that happens
    only if a file disappears (TensorFlow names it) or changes during training.

    Args:
        examples: at least `batch_size` for each worker.
        resizing: input size and resize mode.
        batch_size: images per batch.
        augmentation: the steps to apply to images and boxes. KerasCV layers draw their own random numbers, which a
            resumed run does not repeat.
        max_boxes: boxes per image; further ones are dropped, and `count_dropped_boxes` counts them.
        seed: seed of order and augmentation.
        cache: read all image files first and keep them in memory, encoded, for slow disks.
        drop_remainder: drop the images at the end of an epoch that do not fill a batch; otherwise the last batch is
            smaller.
        deterministic: keep the order of the epoch; otherwise batches come as soon as they are ready. Each image has the
            same augmentation either way.
        shard: `(index, workers)` gives each worker every `workers`-th image of the epoch. If the remainder is dropped,
            all workers get the same number of batches.
        epoch: a variable, made by `epoch_variable`, whose value at the start of an iteration is the number of the
            epoch; by default epochs count from 0.
        start: number of images to skip at the start of the epoch, to resume within it; a multiple of `batch_size`.

    Returns:
        `(images, {"boxes": boxes, "classes": classes})` with images float32 `[batch_size, height, width, 3]`, RGB,
        0..255; boxes float32 `[batch_size, max_boxes, 4]`; classes int32 `[batch_size, max_boxes]`, padded with -1; -2
        marks objects of other classes that take no part (`data.other_classes: ignore`).
        The dataset's length is known. Crowds are left out.

    Raises:
        ConfigError: a KerasCV layer is invalid.
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

    @_without_autograph
    def one_epoch(_: tf.Tensor) -> tf.data.Dataset:
        number = counter.assign_add(1) if epoch is None else epoch.read_value()
        epoch_seed = tf.stack([tf.constant(seed, tf.int64), number])
        order = epoch_order(len(examples), seed, number)
        places = tf.range(index, len(examples), workers, dtype=tf.int64)[start:count]
        seeds = tf.data.Dataset.from_tensors(epoch_seed).repeat(count - start)
        return tf.data.Dataset.zip((tf.data.Dataset.from_tensor_slices((tf.gather(order, places), places)), seeds))

    @_without_autograph
    def prepare(
        example_and_place: tuple[tf.Tensor, tf.Tensor], epoch_seed: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        example, place = example_and_place
        seed = tf.random.experimental.stateless_fold_in(epoch_seed, place)
        image, objects = image_of(example), slice(starts[example], starts[example + 1])
        image, boxes, classes = augment(image, all_boxes[objects], all_classes[objects], augmentation, resizing, seed)
        # Crowds take part in the choice of the crop, as in the original code, and are removed afterwards.
        real = tf.where(classes != -1)[:, 0]
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
    """Returns a variable for the epoch number of `training_pipeline`, placed where tf.data can read it."""
    with tf.device("CPU:0"):
        return tf.Variable(number, trainable=False, dtype=tf.int64)


def evaluation_pipeline(examples: Sequence[Example], resizing: Resizing, batch_size: int) -> tf.data.Dataset:
    """Returns batches of resized images in the order of the examples.

    Args:
        examples: the images to read.
        resizing: input size and resize mode.
        batch_size: images per batch; the last batch may be smaller.

    Returns:
        Images, float32 `[b, height, width, 3]`, RGB, 0..255.
    """
    image_of = _image_decoder(examples)

    @_without_autograph
    def prepare(index: tf.Tensor) -> tf.Tensor:
        return resizing.resize(image_of(index))

    dataset = tf.data.Dataset.range(len(examples)).map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE).with_options(_options())


def image_pipeline(examples: Sequence[Example]) -> tf.data.Dataset:
    """Returns images in their own size, one at a time, in the order of the examples.

    Returns:
        Batches of one image, uint8 `[1, height, width, 3]`, RGB.
    """
    dataset = tf.data.Dataset.range(len(examples)).map(_image_decoder(examples), num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(1).prefetch(tf.data.AUTOTUNE).with_options(_options())


def count_dropped_boxes(examples: Sequence[Example], max_boxes: int) -> int:
    """Counts the boxes that `training_pipeline` drops from images with more than `max_boxes`."""
    return sum(max(int((~example.crowd).sum()) - max_boxes, 0) for example in examples)


def _options(deterministic: bool = True) -> tf.data.Options:
    """Returns the options of all pipelines."""
    options = tf.data.Options()
    options.deterministic = deterministic
    # TensorFlow's tuning thread may miss the signal to stop and sleep on, which often delays the end of an epoch by up
    # to a third of its length or a minute. Without tuning, AUTOTUNE means as many parallel calls as there are cores.
    options.autotune.enabled = False
    options.threading.max_intra_op_parallelism = 1  # images are prepared in parallel already
    return options


def _image_decoder(examples: Sequence[Example]) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function for tf.data from the index of an example to its image, uint8 `[h, w, 3]`."""
    paths = tf.constant([example.image_path for example in examples])
    parts = tf.constant([example.part or (-1, 0, 0) for example in examples], tf.int64)

    @_without_autograph
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
    """Returns the contents of the record at byte `start` of a file, without leaving the graph."""
    records = tf.raw_ops.TFRecordDatasetV2(filenames=path, compression_type="", buffer_size=0, byte_offsets=start)
    records = tf.data.experimental.from_variant(records, tf.TensorSpec([], tf.string))
    return records.take(1).get_single_element()


def _image_cache(examples: Sequence[Example]) -> Callable[[tf.Tensor], tf.Tensor]:
    """Does the same as `_image_decoder`, but reads all image files first and keeps them in memory, encoded.

    `tf.data.Dataset.cache` is no alternative: it has one fixed order, and epochs have their own.
    """
    files = tf.constant([example.read_image() for example in examples])
    return lambda index: image_ops.decode(files[index])


def _objects(examples: Sequence[Example], max_boxes: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Concatenates the objects of all examples: boxes `[n, 4]`, classes `[n]`, and `starts`.

    The objects of example i are those from `starts[i]` to before `starts[i + 1]`: all crowds, with class -1; up to
    `max_boxes` others; and ignored objects, with class -2, as far as `max_boxes` leaves room.
    """
    kept = [example.crowd | (np.cumsum(~example.crowd) <= max_boxes) for example in examples]
    boxes, classes = [], []
    for example, keep in zip(examples, kept, strict=True):
        ignored = example.ignored[: max(max_boxes - int((~example.crowd).sum()), 0)]
        boxes.append(np.concatenate([example.boxes[keep], ignored]))
        labels = np.where(example.crowd, -1, example.classes)[keep]
        classes.append(np.concatenate([labels, np.full(len(ignored), IGNORED_CLASS)]))
    starts = np.cumsum([0, *map(len, classes)])
    return (
        tf.constant(np.concatenate(boxes), tf.float32),
        tf.constant(np.concatenate(classes), tf.int32),
        tf.constant(starts, tf.int64),
    )
