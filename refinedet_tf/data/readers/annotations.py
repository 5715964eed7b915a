"""From annotated objects to examples, for readers of all formats: checks images, boxes and class names.

A data set with a few damaged files is still worth training on, so a problem with one image or one box is listed as a
`Defect`; a problem that makes the whole set unusable raises a `DataError`.
"""

import dataclasses
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
from refinedet_tf.errors import DataError, did_you_mean
from refinedet_tf.ops import images as image_ops


@dataclass
class Reading:
    """The result of reading one image.

    Attributes:
        source: the annotation file.
        example: the image, whose classes are not yet filled in; None if it cannot be used.
        names: the class name of each of the example's boxes.
        all_names: the class names of all annotated objects, including those dropped.
        defects: problems found.
    """

    source: str
    example: Example | None = None
    names: list[str] = field(default_factory=list)
    all_names: list[str] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)


@dataclass
class AnnotatedObject:
    """An object as annotated; `where` names its place in the file, `corners` are (xmin, ymin, xmax, ymax)."""

    where: str
    name: str
    corners: Sequence[float]
    difficult: bool = False
    crowd: bool = False


def read_all(items: Sequence[Any], read: Callable[[Any], Any], description: str, unit: str = "image") -> list[Any]:
    """Applies `read` to all items, one thread per core, with a progress bar after two seconds."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(tqdm(pool.map(read, items), total=len(items), desc=description, unit=unit, delay=2))


def check_image(contents: bytes, where: str, defects: list[Defect]) -> tuple[int, int] | None:
    """Decodes an image exactly as training will, so that a truncated file is found before training starts.

    Args:
        contents: the encoded image.
        where: the name of the image in a defect.
        defects: extended if the image cannot be decoded.

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
    """Returns a number, or the text of one, as a float, and NaN for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def relative_box(
    corners: Sequence[float], height: float, width: float, tolerance: float = 1.0
) -> tuple[list[float] | None, str | None]:
    """Converts corners to a box in 0..1.

    Coordinates are divided by width and height as they are. A box that exceeds the border by at most the tolerance (a
    pixel) is taken for rounding and clipped silently.

    Args:
        corners: (xmin, ymin, xmax, ymax) in pixels, or in any other unit.
        height: of the image in that unit.
        width: of the image in that unit.
        tolerance: in that unit.

    Returns:
        The box, or None if it is unusable; and the problem, or None.
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
    """Adds the example with its usable objects to a reading, and the defects of the other objects.

    Args:
        reading: the reading to complete.
        image_id: name of the image.
        image_path: its file.
        size: height and width in pixels.
        objects: the annotated objects.
        part: as in `Example`.
        relative: whether corners are in 0..1 instead of pixels.
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
    """Collects the readings of all images in a set.

    Args:
        readings: of all images.
        classes: names of the classes, in the order of their indices; None takes those found, sorted.
        defects: problems of the set as a whole, listed first.
        what: the name of the set in an error message.

    Raises:
        DataError: the class of an object is not in `classes`, or no image is usable.
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
    """Chooses the class names, for formats that list theirs.

    The recipe may leave out classes of the data that have no objects, but the data must list all classes of the recipe.

    Args:
        classes: those of the recipe; None takes those of the data.
        names: those of the data, in order.
        where: the file that lists them.

    Raises:
        DataError: `names` lacks some of `classes`, or repeats a name.
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
    """Raises if `classes` lacks names of objects; the message lists them all, each with its first file."""
    files = {}
    for reading in readings:
        for name in reading.all_names:
            if name not in classes:
                files.setdefault(name, []).append(reading.source)
    if not files:
        return
    found = []
    for name, where in files.items():
        found.append(f"{name!r}{did_you_mean(name, classes)}: {len(where)} objects, the first in {where[0]}")
    raise DataError(
        f"The annotations have classes that model.classes does not list: {'; '.join(found)}. "
        f"Listed are: {', '.join(classes)}. Add the missing names to model.classes or correct the files."
    )
