"""What a reader of annotations returns: examples, and everything that was wrong with the rest."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

RECORD_HEADER = 12  # bytes that TFRecord puts before a record: its length and a checksum


@dataclass(frozen=True)
class Example:
    """One annotated image.

    Attributes:
        image_id: name of the image in its data set.
        image_path: the file, or the record file that the encoded image is a part of.
        height: of the stored pixels.
        width: of the stored pixels.
        boxes: float32 `[m, 4]`, relative `(xmin, ymin, xmax, ymax)` in 0..1, each with an area.
        classes: int32 `[m]`, 0-based.
        difficult: bool `[m]`, objects that VOC's evaluation ignores; training uses them, as the authors do.
        crowd: bool `[m]`, regions full of objects of a class, as COCO marks them: not trained on (anchors on them may
            be negatives, as the authors have it) and ignored in evaluation.
        part: where in the record file the encoded image is, in bytes: at which the record begins, offset and length of
            the image in the record's contents. None if `image_path` is the image.
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

    def read_image(self) -> bytes:
        """The encoded image, as it is stored.

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
    """Something wrong in a data set that reading survived.

    Attributes:
        where: the file, and the object in it.
        what: the kind of defect and what was done about it; details, if any, follow a colon.
    """

    where: str
    what: str


@dataclass(frozen=True)
class ExampleSet:
    """Examples, the names of their classes, and the defects found while reading.

    Attributes:
        examples: in the order of the lists they were read from.
        classes: `classes[i]` is the name of class `i`.
        defects: in the same order as the examples.
    """

    examples: list[Example]
    classes: list[str]
    defects: list[Defect]
    category_ids: list[int] | None = None  # of each class, its id in COCO's categories

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.examples)

    def summary(self) -> str:
        """A few lines for people: images, boxes per class, defects by kind with the first of each."""
        boxes = Counter(int(index) for example in self.examples for index in example.classes)
        empty = sum(len(example.classes) == 0 for example in self.examples)
        per_class = ", ".join(f"{name} {boxes[index]}" for index, name in enumerate(self.classes))
        crowds = sum(int(example.crowd.sum()) for example in self.examples)
        note = f" ({crowds} of them crowds)" if crowds else ""
        lines = [f"{len(self)} images ({empty} without boxes), {boxes.total()} boxes{note}: {per_class}"]
        kinds = Counter(defect.what.split(":")[0] for defect in self.defects)
        for kind, count in kinds.most_common():
            first = next(defect for defect in self.defects if defect.what.split(":")[0] == kind)
            lines.append(f"{count} x {kind}; first: {first.where}")
        return "\n".join(lines)
