"""Ground truth as a batch of padded tensors, and the search for what is wrong with it."""

import contextlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow import keras

from refinedet_tf.errors import DataError

# Class of objects that take no part in the losses; -1 is padding.
IGNORED_CLASS = -2
# Rows of ground truth for each image. Matching needs memory and time in proportion to them: with 2,000 and 6,375
# anchors, both modules took 3 s of one core for an image.
MAX_BOXES = 2000
# Boxes may reach beyond the image, but not by more than its size.
BOX_RANGE = (-1.0, 2.0)
# Images of an array that are checked at a time.
CHUNK = 64
_FAULT = "Unusable batch: "


def pad_targets(targets: dict[str, Any]) -> dict[str, tf.Tensor]:
    """Returns targets as dense tensors with at least one row for each image.

    Args:
        targets: `boxes` `[b, m, 4]` and `classes` `[b, m]`, dense or ragged.

    Returns:
        The same, dense, padded with -1.
    """
    return {name: _pad(targets[name]) for name in ("boxes", "classes")}


def _pad(rows: Any) -> tf.Tensor:
    is_ragged = isinstance(rows, tf.RaggedTensor)
    dense = rows.to_tensor(-1) if is_ragged else tf.convert_to_tensor(rows)
    if dense.shape[1]:  # known, and not 0
        return dense
    # One row more than the fullest image has, since nothing can be matched to no rows at all.
    return tf.pad(dense, [[0, 0], [0, 1], [0, 0]][: dense.shape.rank], constant_values=-1)


def find_fault(
    images: tf.Tensor, targets: dict[str, Any], *, input_size: Sequence[int], num_classes: int, first: int = 0
) -> tf.Tensor:
    """Looks for what cannot be trained on, and describes the first fault.

    It runs where batches are made, on the CPU, in a graph or eagerly; strings have no place on other devices.

    Args:
        images: `[b, h, w, 3]`.
        targets: `boxes` `[b, m, 4]`, relative; `classes` `[b, m]`, from 0, -1 for padding, -2 for ignored objects.
        input_size: height and width that images must have.
        num_classes: classes that the model knows.
        first: number of the first image.

    Returns:
        A string: empty, or one phrase that names the image and the box, counted from 0.
    """
    targets = pad_targets(targets)
    boxes, classes = tf.cast(targets["boxes"], tf.float32), tf.cast(targets["classes"], tf.int32)
    is_box = classes != -1
    in_range = (boxes >= BOX_RANGE[0]) & (boxes <= BOX_RANGE[1])
    faults_of_boxes = {
        f"the class must be below {num_classes}": (classes >= num_classes) | (classes < IGNORED_CLASS),
        "the box is not finite": tf.reduce_any(~tf.math.is_finite(boxes), axis=-1),
        "boxes must be relative to the image, from 0 to 1; these look like pixels": ~tf.reduce_all(in_range, axis=-1),
        "the box is inverted; it must be (xmin, ymin, xmax, ymax)": tf.reduce_any(boxes[..., 2:] < boxes[..., :2], -1),
    }
    faulty = tf.stack([is_box & fault for fault in faults_of_boxes.values()])  # [kinds, b, m]
    num_rows = tf.shape(classes)[1]
    position = tf.argmax(tf.reshape(tf.reduce_any(faulty, axis=0), [-1]), output_type=tf.int32)
    image, row = position // num_rows, position % num_rows
    kind = tf.argmax(faulty[:, image, row])
    box = tf.strings.reduce_join(tf.strings.as_string(boxes[image, row], shortest=True), separator=", ")
    fault_of_box = tf.strings.format("image {}, box {}, class {}, (", (first + image, row, classes[image, row]))
    fault_of_box = tf.strings.join([fault_of_box, box, "): ", tf.gather(list(faults_of_boxes), kind)])

    height, width = tf.shape(images)[1], tf.shape(images)[2]
    pixels_are_finite = tf.ones(tf.shape(images)[:1], tf.bool)
    if images.dtype.is_floating:
        pixels_are_finite = tf.reduce_all(tf.math.is_finite(images), axis=[1, 2, 3])
    unreadable = tf.argmax(~pixels_are_finite, output_type=tf.int32)
    wrong_size = f"images of {{}} x {{}} pixels (height x width); the model takes {input_size[0]} x {input_size[1]}"
    too_many = f"{{}} rows of boxes for each image; more than {MAX_BOXES} need too much memory"
    faults = [
        ((height != input_size[0]) | (width != input_size[1]), tf.strings.format(wrong_size, (height, width))),
        (num_rows > MAX_BOXES, tf.strings.format(too_many, num_rows)),
        (
            ~tf.reduce_all(pixels_are_finite),
            tf.strings.format("image {} has pixels that are not finite", first + unreadable),
        ),
        (tf.reduce_any(faulty), fault_of_box),
    ]
    found = tf.constant("")
    for is_fault, text in reversed(faults):
        found = tf.where(is_fault, text, found)
    return found


def checked(x: Any, y: Any, sample_weight: Any, *, find: Callable[[tf.Tensor, dict], tf.Tensor]) -> Any:
    """Checks data for `fit` or `evaluate`, or sees to it that they are checked where their batches are made.

    Arrays are checked at once. A dataset gets a step that checks each batch on the host, one batch ahead of training;
    use `faults_as_data_errors` around what reads it. A generator's batches are checked as they come. Of a `PyDataset`
    the first batch is checked; a distributed dataset is not.

    Args:
        x: the images, or all data.
        y: the targets, or None.
        sample_weight: one number for each image, or None.
        find: `find_fault` with the model's settings.

    Returns:
        `x`, or what takes its place.

    Raises:
        DataError: names the first fault.
    """
    if isinstance(x, tf.data.Dataset):
        _expect_form(x.element_spec)

        @tf.autograph.experimental.do_not_convert
        def check(images: tf.Tensor, targets: dict[str, Any], *rest: tf.Tensor) -> tuple:
            fault = find(images, targets)
            with tf.control_dependencies([tf.debugging.Assert(tf.equal(fault, ""), [_FAULT, fault])]):
                return tf.identity(images), targets, *rest

        return x.map(check).prefetch(1)
    if isinstance(x, types.GeneratorType):
        return (_check_batch(batch, find) for batch in x)
    if isinstance(x, keras.utils.Sequence):
        _check_batch(x[0], find)
    elif not isinstance(x, tf.distribute.DistributedDataset | tf.distribute.DistributedIterator):
        batch = (x, y) if sample_weight is None else (x, y, sample_weight)
        _expect_form(batch)
        for start in range(0, len(x), CHUNK):
            rows = slice(start, start + CHUNK)
            _check_batch((x[rows], {name: y[name][rows] for name in ("boxes", "classes")}), find, first=start)
    return x


def _check_batch(batch: tuple, find: Callable[[tf.Tensor, dict], tf.Tensor], first: int = 0) -> tuple:
    _expect_form(batch)
    with tf.device("CPU:0"):
        fault = find(tf.convert_to_tensor(batch[0]), batch[1], first=first).numpy().decode()
    if fault:
        raise DataError(f"{_FAULT}{fault}.")
    return batch


def _expect_form(batch: Any) -> None:
    """Makes sure that a batch, or its specification, has the parts that training needs.

    Raises:
        DataError: it has not.
    """
    expected = 'a batch must be (images, {"boxes": [b, m, 4], "classes": [b, m]}) or (images, targets, sample_weight)'
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        raise DataError(f"{_FAULT}{expected}.")
    images, targets = batch[:2]
    if not isinstance(targets, Mapping) or not {"boxes", "classes"} <= set(targets):
        found = sorted(targets) if isinstance(targets, Mapping) else type(targets).__name__
        raise DataError(f"{_FAULT}{expected}; the targets are {found}.")
    if len(batch) == 3 and isinstance(batch[2], Mapping):
        raise DataError(f"{_FAULT}sample_weight must be one number for each image, not a dictionary.")
    shapes = {
        "images": (images.shape, 4),
        "boxes": (targets["boxes"].shape, 3),
        "classes": (targets["classes"].shape, 2),
    }
    for name, (shape, rank) in shapes.items():
        if len(shape) != rank:
            raise DataError(f"{_FAULT}{expected}; the {name} have shape {tuple(shape)}.")


@contextlib.contextmanager
def faults_as_data_errors() -> Iterator[None]:
    """Raises a fault that a checked dataset found as a `DataError`."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        _, marker, fault = str(error).partition(f"[{_FAULT}] [")
        if not marker:
            raise
        raise DataError(f"{_FAULT}{fault.partition(']')[0]}.") from None
