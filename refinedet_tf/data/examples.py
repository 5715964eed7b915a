"""Annotated images, and the problems found while reading them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

RECORD_HEADER = 12  # bytes before a record: its length and a checksum


@dataclass(frozen=True)
class Example:
    """One annotated image.

    Attributes:
        image_id: name of the image in its data set.
        image_path: the image file, or the record file that contains the encoded image.
        height: height of the upright image in pixels, that is, after its EXIF orientation.
        width: width of the upright image in pixels.
        boxes: float32 `[m, 4]`, relative `(xmin, ymin, xmax, ymax)` in 0..1 of the upright image, each with an area.
        classes: int32 `[m]`, 0-based.
        difficult: bool `[m]`, objects that VOC's evaluation ignores; training uses them, as the authors' does.
        crowd: bool `[m]`, regions full of objects of a class, as COCO marks them: not trained on (anchors on them may
            be negatives, as in the authors' code) and ignored in evaluation.
        ignored: float32 `[k, 4]`, boxes of objects of other classes that take no part in training, neither as objects
            nor as background.
        part: position of the encoded image in a record file, in bytes: start of the record, offset of the image in the
            record's contents, length of the image. None if `image_path` is an image file.
        areas: float32 `[m]`, areas of the objects' outlines in square pixels, NaN where the annotation states none; by
            them COCO's evaluation calls objects small, medium or large. None if no area is stated.
    """

    image_id: str
    image_path: str
    height: int
    width: int
    boxes: np.ndarray
    classes: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    part: tuple[int, int, int] | None = None
    areas: np.ndarray | None = None
    ignored: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))

    def read_image(self) -> bytes:
        """Returns the encoded image.

        Raises:
            tf.errors.OpError: the file cannot be read.
        """
        with tf.io.gfile.GFile(self.image_path, "rb") as file:
            if self.part is None:
                return file.read()
            start, offset, length = self.part
            file.seek(start + RECORD_HEADER + offset)
            return file.read(length)


@dataclass(frozen=True)
class Defect:
    """A problem in a data set that did not stop the reader.

    Attributes:
        where: the file, and the object in it.
        what: the kind of problem and how it was handled; details follow a colon.
    """

    where: str
    what: str


@dataclass(frozen=True)
class ExampleSet:
    """Examples, their class names, and the defects found while reading.

    Attributes:
        examples: in the order of the lists that name them.
        classes: `classes[i]` is the name of class `i`.
        defects: in the same order as the examples.
        category_ids: for each class, its id among COCO's categories; None if the data has none.
        notes: what a user should know although nothing is lost, in the form of defects.
    """

    examples: list[Example]
    classes: list[str]
    defects: list[Defect]
    category_ids: list[int] | None = None
    notes: list[Defect] = field(default_factory=list)

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.examples)

    def summary(self) -> str:
        """Returns a few lines of text: images, boxes per class, defects and notes by kind with the first of each."""
        boxes = Counter(int(index) for example in self.examples for index in example.classes)
        empty = sum(len(example.classes) == 0 for example in self.examples)
        per_class = ", ".join(f"{name} {boxes[index]}" for index, name in enumerate(self.classes))
        crowds = sum(int(example.crowd.sum()) for example in self.examples)
        note = f" ({crowds} of them crowds)" if crowds else ""
        lines = [f"{len(self)} images ({empty} without boxes), {boxes.total()} boxes{note}: {per_class}"]
        for defects in (self.defects, self.notes):
            kinds = Counter(defect.what.split(":")[0] for defect in defects)
            for kind, count in kinds.most_common():
                first = next(defect for defect in defects if defect.what.split(":")[0] == kind)
                lines.append(f"{count} x {kind}; first: {first.where}")
        return "\n".join(lines)


def merge(sets: Sequence[ExampleSet]) -> ExampleSet:
    """Joins sets with the same classes."""
    first, *others = sets
    if not others:
        return first
    return ExampleSet(
        [example for each in sets for example in each.examples],
        first.classes,
        [defect for each in sets for defect in each.defects],
        first.category_ids,
        [note for each in sets for note in each.notes],
    )
