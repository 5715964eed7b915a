"""From annotated objects to examples, for readers of all formats: checks images, boxes and class names.

A data set with a few damaged files is still worth training on, so a problem with one image or one box is listed as a
`Defect`; a problem that makes the whole set unusable raises a `DataError`.

Images are upright, as people see them and most tools draw on them: their EXIF orientation is applied. An annotation
whose size has height and width exchanged means the stored pixels instead, and its boxes are turned with the image.
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
from refinedet_tf.ops.image_headers import read_orientation


@dataclass
class Reading:
    """The result of reading one image.

    Attributes:
        source: the annotation file.
        example: the image, whose classes are not yet filled in; None if it cannot be used.
        names: the class name of each of the example's boxes.
        all_names: the class names of all annotated objects, including those dropped.
        defects: problems found.
        notes: what a user should know although nothing is lost.
    """

    source: str
    example: Example | None = None
    names: list[str] = field(default_factory=list)
    all_names: list[str] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)
    notes: list[Defect] = field(default_factory=list)


@dataclass(frozen=True)
class CheckedImage:
    """An image that can be decoded: its upright height and width in pixels, and its EXIF orientation, 1..8."""

    height: int
    width: int
    orientation: int


@dataclass
class AnnotatedObject:
    """An object as annotated; `where` names its place in the file, `corners` are (xmin, ymin, xmax, ymax)."""

    where: str
    name: str
    corners: Sequence[float]
    difficult: bool = False
    crowd: bool = False
    area: float = math.nan


@dataclass(frozen=True)
class Listing:
    """The images of a data set before they are read; `read` and `images` can be pickled and sent to other machines.

    Attributes:
        images: one entry for each image.
        read: from an entry to its `Reading`.
        classes: class names in the order of their indices; None takes those found, sorted.
        defects: problems of the set as a whole.
        title: the splits in words.
        root: the data folder.
        category_ids: as in `ExampleSet`.
    """

    images: Sequence[Any]
    read: Callable[[Any], Reading]
    classes: Sequence[str] | None
    defects: list[Defect]
    title: str
    root: str | os.PathLike
    category_ids: dict[str, int] | None = None


def read_listing(listing: Listing) -> ExampleSet:
    """Reads all images of a listing on this machine.

    Raises:
        DataError: as `collect`.
    """
    readings = read_all(listing.images, listing.read, f"Reading {listing.title}")
    found = collect(readings, listing.classes, listing.defects, f"{listing.title} of {listing.root}")
    if listing.category_ids is None:
        return found
    return dataclasses.replace(found, category_ids=[listing.category_ids[name] for name in found.classes])


def read_all(items: Sequence[Any], read: Callable[[Any], Any], description: str, unit: str = "image") -> list[Any]:
    """Applies `read` to all items, one thread per core, with a progress bar after two seconds."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(tqdm(pool.map(read, items), total=len(items), desc=description, unit=unit, delay=2))


def check_image(contents: bytes, where: str, defects: list[Defect]) -> CheckedImage | None:
    """Decodes an image exactly as training will, so that a truncated file is found before training starts.

    Args:
        contents: the encoded image.
        where: the name of the image in a defect.
        defects: extended if the image cannot be decoded, or claims more than `MAX_PIXELS` pixels.

    Returns:
        The image, or None if it cannot be used.
    """
    try:
        height, width, orientation = _size_and_orientation(tf.constant(contents)).numpy().tolist()
    except tf.errors.OpError as error:
        defects.append(Defect(where, f"unreadable image, skipped: {_reason(error)}"))
        return None
    if not height:
        defects.append(Defect(where, f"image of more than {image_ops.MAX_PIXELS / 1e6:g} megapixels, skipped"))
        return None
    return CheckedImage(height, width, orientation)


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def _size_and_orientation(contents: tf.Tensor) -> tf.Tensor:
    """Returns upright height and width, zeros for an image that is too large to decode, and the EXIF orientation."""
    _, pixels = image_ops.first_image(contents)
    size = tf.cond(
        pixels > image_ops.MAX_PIXELS,
        lambda: tf.zeros([2], tf.int32),
        lambda: tf.shape(image_ops.decode(contents))[:2],
    )
    return tf.concat([size, [read_orientation(contents)]], axis=0)


def _reason(error: tf.errors.OpError) -> str:
    """Returns the sentence in the message of a failed graph that says why."""
    return next(
        (line for line in error.message.splitlines() if "node " not in line and "error:" not in line and line), ""
    )


def number(value: Any) -> float:
    """Returns a number, or the text of one, as a float, and NaN for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
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
    image: CheckedImage,
    objects: Iterable[AnnotatedObject],
    *,
    stated_size: tuple[float, float] = (math.nan, math.nan),
    where: str | None = None,
    part: tuple[int, int, int] | None = None,
    relative: bool = False,
) -> None:
    """Adds the example with its usable objects to a reading, and the defects of the other objects.

    Args:
        reading: the reading to complete.
        image_id: name of the image.
        image_path: its file.
        image: the checked image.
        objects: the annotated objects.
        stated_size: width and height according to the annotation; NaN if it has none.
        where: the name of the annotation in a defect; by default the source of the reading.
        part: as in `Example`.
        relative: whether corners are in 0..1 instead of pixels.
    """
    stored_pixels = _means_stored_pixels(reading, image, stated_size, where or reading.source)
    height, width = (image.width, image.height) if stored_pixels else (image.height, image.width)
    height, width, tolerance = (1, 1, 1 / min(height, width)) if relative else (height, width, 1)
    boxes, difficult, crowd, areas = [], [], [], []
    for item in objects:
        reading.all_names.append(item.name)
        box, what = relative_box(item.corners, height, width, tolerance)
        if what:
            shown = ", ".join(f"{corner:g}" for corner in item.corners)
            reading.defects.append(Defect(f"{item.where}: {item.name} ({shown})", what))
        if box is not None:
            boxes.append(_turn(box, image.orientation) if stored_pixels else box)
            reading.names.append(item.name)
            difficult.append(item.difficult)
            crowd.append(item.crowd)
            areas.append(item.area)
    reading.example = Example(
        image_id,
        image_path,
        image.height,
        image.width,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        classes=np.zeros(len(boxes), np.int32),
        difficult=np.array(difficult, bool),
        crowd=np.array(crowd, bool),
        part=part,
        areas=None if all(map(math.isnan, areas)) else np.array(areas, np.float32),
    )


def _means_stored_pixels(reading: Reading, image: CheckedImage, stated_size: tuple[float, float], where: str) -> bool:
    """Returns whether boxes are on the stored pixels instead of the upright image, and reports a wrong size."""
    size = image.width, image.height
    if not all(side > 0 for side in stated_size) or stated_size == size:
        return False
    stated = f"{stated_size[0]:g} x {stated_size[1]:g}"
    if image_ops.swaps_sides(image.orientation) and stated_size == size[::-1]:
        what = (
            f"size is that of the stored pixels, boxes were turned with the image: {stated}, EXIF {image.orientation}"
        )
        reading.notes.append(Defect(where, what))
        return True
    what = f"wrong size, the image's own was used: {stated}, is {image.width} x {image.height}"
    reading.defects.append(Defect(where, what))
    return False


def _turn(box: Sequence[float], orientation: int) -> list[float]:
    """Moves a relative box from the stored pixels to the upright image, for an orientation that exchanges the sides."""
    ymin, xmin, ymax, xmax = box
    flip_vertically, flip_horizontally = image_ops.flips(orientation)
    if flip_horizontally:
        xmin, xmax = 1 - xmax, 1 - xmin
    if flip_vertically:
        ymin, ymax = 1 - ymax, 1 - ymin
    return [xmin, ymin, xmax, ymax]


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
    notes = [note for reading in readings for note in reading.notes]
    return ExampleSet(examples, list(classes), defects, notes=notes)


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
