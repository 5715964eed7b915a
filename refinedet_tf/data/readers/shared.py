"""What the readers of annotations share: each image is decoded once, boxes and class names are checked.

A data set with a few damaged files is still worth training on, so what is wrong with one image or one box is noted as a
`Defect`; what makes the whole set unusable is a `DataError`.
"""

import dataclasses
import difflib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from refinedet_tf.data.examples import Defect, Example, ExampleSet
from refinedet_tf.errors import DataError
from refinedet_tf.ops import images as image_ops


@dataclass
class Reading:
    """What reading one image gave.

    Attributes:
        source: the annotation file.
        example: the image, its classes still to come; None if it cannot be used.
        names: the class name of each of the example's boxes.
        all_names: the class names of all annotated objects, the dropped ones included.
        defects: what was wrong.
    """

    source: str
    example: Example | None = None
    names: list[str] = field(default_factory=list)
    all_names: list[str] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)


@dataclass
class AnnotatedObject:
    """An object as it is annotated; `where` says in which place, `corners` are (xmin, ymin, xmax, ymax)."""

    where: str
    name: str
    corners: Sequence[float]
    difficult: bool = False
    crowd: bool = False


def read_all(items: Sequence[Any], read: Callable[[Any], Any], description: str, unit: str = "image") -> list[Any]:
    """Reads in as many threads as there are cores, with a progress bar if it takes more than two seconds."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(tqdm(pool.map(read, items), total=len(items), desc=description, unit=unit, delay=2))


def image_size(contents: bytes, where: str, defects: list[Defect]) -> tuple[int, int] | None:
    """Decodes an image as training will do it, so that a file cut short is found before an epoch is under way.

    Args:
        contents: the encoded image.
        where: what a defect calls it.
        defects: gets one more if the image cannot be decoded.

    Returns:
        Height and width in pixels, or None for an unreadable image.
    """
    try:
        height, width, _ = image_ops.decode(tf.constant(contents)).shape
    except tf.errors.OpError as error:
        reason = error.message.split("}} ")[-1].removesuffix(" [Op:DecodeImage]")
        defects.append(Defect(where, f"unreadable image, skipped: {reason}"))
        return None
    return height, width


def number(value: Any) -> float:
    """A number or its text as a float; NaN for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def relative_box(
    corners: Sequence[float], height: float, width: float, tolerance: float = 1.0
) -> tuple[list[float] | None, str | None]:
    """Corners to a box in 0..1.

    Coordinates are divided by width and height as they stand. Boxes that reach over the border by no more than the
    tolerance, a pixel, are rounding and are clipped without a word.

    Args:
        corners: (xmin, ymin, xmax, ymax) in pixels, or in any other unit.
        height: of the image in that unit.
        width: of the image in that unit.
        tolerance: in that unit.

    Returns:
        The box, or None when nothing of it is usable, and what was wrong with it, if anything.
    """
    if not all(map(math.isfinite, corners)):
        return None, "unreadable box, dropped"
    xmin, ymin, xmax, ymax = corners
    if xmax < xmin or ymax < ymin:
        return None, "inverted box, dropped"
    if xmax == xmin or ymax == ymin:
        return None, "box without area, dropped"
    box = [
        min(max(xmin / width, 0.0), 1.0),
        min(max(ymin / height, 0.0), 1.0),
        min(max(xmax / width, 0.0), 1.0),
        min(max(ymax / height, 0.0), 1.0),
    ]
    if not (np.float32(box[2]) > np.float32(box[0]) and np.float32(box[3]) > np.float32(box[1])):
        return None, "box outside the image, dropped"
    if min(xmin, ymin, width - xmax, height - ymax) < -tolerance:
        return box, "box partly outside the image, clipped"
    return box, None


def add_example(
    reading: Reading,
    image_id: str,
    image_path: str,
    size: tuple[int, int],
    objects: Iterable[AnnotatedObject],
    part: tuple[int, int, int] | None = None,
    relative: bool = False,
) -> None:
    """Gives a reading its example, with the usable ones of the objects, and the defects of the others.

    Args:
        reading: what is completed.
        image_id: name of the image.
        image_path: its file.
        size: height and width in pixels.
        objects: as they are annotated.
        part: as in `Example`.
        relative: corners are in 0..1 instead of pixels.
    """
    height, width, tolerance = (1, 1, 1 / min(size)) if relative else (*size, 1)
    boxes, difficult, crowd = [], [], []
    for item in objects:
        reading.all_names.append(item.name)
        box, what = relative_box(item.corners, height, width, tolerance)
        if what:
            shown = ", ".join(f"{corner:g}" for corner in item.corners)
            reading.defects.append(Defect(f"{item.where}: {item.name} ({shown})", what))
        if box is not None:
            boxes.append(box)
            reading.names.append(item.name)
            difficult.append(item.difficult)
            crowd.append(item.crowd)
    reading.example = Example(
        image_id,
        image_path,
        *size,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        classes=np.zeros(len(boxes), np.int32),
        difficult=np.array(difficult, bool),
        crowd=np.array(crowd, bool),
        part=part,
    )


def collect(
    readings: Sequence[Reading], classes: Sequence[str] | None, defects: Iterable[Defect], what: str
) -> ExampleSet:
    """Makes the set of what was read.

    Args:
        readings: of all images.
        classes: names of the classes, in the order of their indices; None takes those found, in alphabetical order.
        defects: of the set as a whole, which come first.
        what: the set, in the words of an error message.

    Raises:
        DataError: an object's class is not in `classes`, or no image is left.
    """
    if classes is None:
        classes = sorted({name for reading in readings for name in reading.all_names})
    _check_classes(readings, classes)
    indices = {name: index for index, name in enumerate(classes)}
    examples = [
        dataclasses.replace(reading.example, classes=np.array([indices[name] for name in reading.names], np.int32))
        for reading in readings
        if reading.example is not None
    ]
    defects = [*defects, *(defect for reading in readings for defect in reading.defects)]
    if not examples:
        reason = f"; the first problem is {defects[0].where}: {defects[0].what}" if defects else ""
        raise DataError(f"{what} has no usable image{reason}.")
    return ExampleSet(examples, list(classes), defects)


def check_listed(classes: Sequence[str] | None, names: Sequence[str], where: str) -> list[str]:
    """The names of the classes, for data that list theirs.

    Classes of the data without any object need not be in the recipe, but each of the recipe's must be in the data.

    Args:
        classes: the recipe's; None takes the data's.
        names: the data's, in their order.
        where: the file that has them.

    Raises:
        DataError: some of `classes` are not in `names`, or `names` has one twice.
    """
    if len(set(names)) < len(names):
        raise DataError(f"{where} has several classes of one name: {', '.join(names)}.")
    missing = [name for name in classes or () if name not in names]
    if missing:
        raise DataError(
            f"{where} has no class {', '.join(missing)}. model.classes has: {', '.join(classes)}. "
            f"The file has: {', '.join(names)}."
        )
    return list(names if classes is None else classes)


def _check_classes(readings: Sequence[Reading], classes: Sequence[str]) -> None:
    """Raises for all unlisted class names of a set at once, each with the first file that has it."""
    files = {}
    for reading in readings:
        for name in reading.all_names:
            if name not in classes:
                files.setdefault(name, []).append(reading.source)
    if not files:
        return
    found = []
    for name, where in files.items():
        nearest = difflib.get_close_matches(name, classes, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        found.append(f"{name!r} ({len(where)} objects, first in {where[0]}{hint})")
    raise DataError(
        f"The annotations have classes that model.classes does not list: {', '.join(found)}. "
        f"Listed are: {', '.join(classes)}. Add the missing names to model.classes or correct the files."
    )
