"""Detections in files, in the forms that other tools read.

Each image's results are written as they come. Whatever ends the program, a full disk or a kill included, the files hold
what was done before and can be read. Only `coco/instances.json` is written at the end.
"""

import csv
import io
import json
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from refinedet_tf.inference.detector import Detections

PIXEL_DECIMALS = 2
SCORE_DECIMALS = 4


@dataclass(frozen=True)
class ImageResult:
    """The detections of one image file.

    Attributes:
        file: the image as the user named it.
        name: its path relative to the folder that was searched, with slashes; results are named after it.
        image_id: its number in COCO files.
        width: in pixels.
        height: in pixels.
        found: the detections.
    """

    file: str
    name: str
    image_id: int
    width: int
    height: int
    found: Detections

    def corners(self) -> list[list[float]]:
        """Returns boxes in pixels, (xmin, ymin, xmax, ymax), rounded."""
        return pixel_corners(self.found, self.width, self.height)


def pixel_corners(found: Detections, width: int, height: int) -> list[list[float]]:
    """Returns boxes in pixels, (xmin, ymin, xmax, ymax), rounded."""
    pixels = found.boxes.astype(float) * (width, height, width, height)
    return [[round(value, PIXEL_DECIMALS) for value in box] for box in pixels.tolist()]


def rounded_scores(found: Detections) -> list[float]:
    """Returns the scores as they are written."""
    return [round(float(score), SCORE_DECIMALS) for score in found.scores]


def describe(found: Detections, width: int, height: int) -> list[dict[str, Any]]:
    """Returns detections as plain values for JSON: `class`, `score`, and `box` in pixels, (xmin, ymin, xmax, ymax)."""
    return [
        {"class": name, "score": score, "box": box}
        for name, score, box in zip(
            found.names, rounded_scores(found), pixel_corners(found, width, height), strict=True
        )
    ]


def coco_rows(found: Detections, width: int, height: int) -> list[dict[str, Any]]:
    """Returns detections as in COCO's results: `category_id` from 1, `bbox` (x, y, width, height, pixels), `score`."""
    rows = []
    for label, (xmin, ymin, xmax, ymax), score in zip(
        found.classes.tolist(), pixel_corners(found, width, height), rounded_scores(found), strict=True
    ):
        size = [round(xmax - xmin, PIXEL_DECIMALS), round(ymax - ymin, PIXEL_DECIMALS)]
        rows.append({"category_id": label + 1, "bbox": [xmin, ymin, *size], "score": score})
    return rows


class ResultWriter:
    """Writes the results of one image after another; each subclass writes one format."""

    def __init__(self, output_dir: Path, classes: Sequence[str], settings: dict[str, Any]):
        """Starts the files.

        Args:
            output_dir: an existing folder.
            classes: the class names of the model, by index.
            settings: the settings of the run, such as `model` and `score_threshold`.
        """
        raise NotImplementedError

    def add(self, result: ImageResult) -> None:
        """Writes the detections of an image."""
        raise NotImplementedError

    def skip(self, file: str, reason: str) -> None:
        """Records an image that cannot be read, if the format has a place for it."""

    def close(self) -> None:
        """Finishes the files."""


class JsonWriter(ResultWriter):
    """`detections.json`: the settings, `images` with their detections, and `skipped` with the reasons."""

    def __init__(self, output_dir: Path, classes: Sequence[str], settings: dict[str, Any]):
        """Starts the file; see `ResultWriter`."""
        del classes
        self._skipped = []
        head = json.dumps(settings, indent=1).removesuffix("\n}")
        self._file = GrowingFile(output_dir / "detections.json", f'{head},\n "images": [', self._tail())
        self._separator = "\n  "

    def add(self, result: ImageResult) -> None:
        """Adds an entry to `images`."""
        entry = {
            "file": result.file,
            "width": result.width,
            "height": result.height,
            "detections": describe(result.found, result.width, result.height),
        }
        self._file.append(self._separator + json.dumps(entry), self._tail())
        self._separator = ",\n  "

    def skip(self, file: str, reason: str) -> None:
        """Adds an entry to `skipped`."""
        self._skipped.append({"file": file, "reason": reason})
        self._file.append("", self._tail())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _tail(self) -> str:
        return f'\n ],\n "skipped": {json.dumps(self._skipped)}\n}}\n'


class CocoWriter(ResultWriter):
    """`coco/results.json`, which `COCO.loadRes` of pycocotools reads, and `coco/instances.json`, which `COCO` reads.

    The latter names the images and categories that the ids in both files mean, and has the detections as annotations.
    Category ids are class indices counted from 1.
    """

    def __init__(self, output_dir: Path, classes: Sequence[str], settings: dict[str, Any]):
        """Starts `results.json`; see `ResultWriter`."""
        del settings
        self._folder = output_dir / "coco"
        self._folder.mkdir(exist_ok=True)
        self._results = GrowingFile(self._folder / "results.json", "[", "\n]\n")
        self._images, self._annotations = [], []
        self._categories = [{"id": index, "name": name} for index, name in enumerate(classes, start=1)]

    def add(self, result: ImageResult) -> None:
        """Adds the detections to `results.json`, and remembers them for `instances.json`."""
        rows = [{"image_id": result.image_id, **row} for row in coco_rows(result.found, result.width, result.height)]
        if rows:
            separator = ",\n " if self._annotations else "\n "
            self._results.append(separator + ",\n ".join(map(json.dumps, rows)), "\n]\n")
        self._images.append(
            {"id": result.image_id, "file_name": result.name, "width": result.width, "height": result.height}
        )
        for row in rows:
            area = round(row["bbox"][2] * row["bbox"][3], PIXEL_DECIMALS)
            self._annotations.append({"id": len(self._annotations) + 1, **row, "area": area, "iscrowd": 0})

    def close(self) -> None:
        """Closes `results.json` and writes `instances.json`."""
        self._results.close()
        content = {"images": self._images, "annotations": self._annotations, "categories": self._categories}
        (self._folder / "instances.json").write_text(json.dumps(content), encoding="utf-8")


class CsvWriter(ResultWriter):
    """`detections.csv`: one line for each object, boxes in pixels."""

    def __init__(self, output_dir: Path, classes: Sequence[str], settings: dict[str, Any]):
        """Writes the header; see `ResultWriter`."""
        del classes, settings
        header = "file,width,height,class,score,xmin,ymin,xmax,ymax\n"
        self._file = GrowingFile(output_dir / "detections.csv", header, "")

    def add(self, result: ImageResult) -> None:
        """Writes a line for each object."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        for name, score, box in zip(result.found.names, rounded_scores(result.found), result.corners(), strict=True):
            writer.writerow([result.file, result.width, result.height, name, score, *box])
        self._file.append(text.getvalue(), "")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class YoloWriter(ResultWriter):
    """`yolo/labels/NAME.txt` for each image, empty without objects, and `yolo/classes.txt`."""

    def __init__(self, output_dir: Path, classes: Sequence[str], settings: dict[str, Any]):
        """Writes the class names; see `ResultWriter`."""
        del settings
        self._folder = output_dir / "yolo"
        self._folder.mkdir(exist_ok=True)
        write_whole(self._folder / "classes.txt", "".join(f"{name}\n" for name in classes))

    def add(self, result: ImageResult) -> None:
        """Writes a line for each object: class index, center and size relative to the image."""
        lines = []
        for label, (xmin, ymin, xmax, ymax) in zip(
            result.found.classes.tolist(), result.found.boxes.tolist(), strict=True
        ):
            center_and_size = ((xmin + xmax) / 2, (ymin + ymax) / 2, xmax - xmin, ymax - ymin)
            lines.append(" ".join([str(label), *(f"{value:.6f}" for value in center_and_size)]) + "\n")
        write_whole(self._folder / "labels" / PurePosixPath(result.name).with_suffix(".txt"), "".join(lines))


class VocWriter(ResultWriter):
    """`voc/Annotations/NAME.xml` for each image, boxes in pixels."""

    def __init__(self, output_dir: Path, classes: Sequence[str], settings: dict[str, Any]):
        """Makes the folder; see `ResultWriter`."""
        del classes, settings
        self._folder = output_dir / "voc" / "Annotations"
        self._folder.mkdir(parents=True, exist_ok=True)

    def add(self, result: ImageResult) -> None:
        """Writes the annotation."""
        name = PurePosixPath(result.name)
        root = ElementTree.Element("annotation")
        _add_elements(root, {"folder": name.parent.name, "filename": name.name})
        size = {"width": result.width, "height": result.height, "depth": 3}
        _add_elements(ElementTree.SubElement(root, "size"), size)
        _add_elements(root, {"segmented": 0})
        for label, corners in zip(result.found.names, result.corners(), strict=True):
            item = ElementTree.SubElement(root, "object")
            _add_elements(item, {"name": label, "pose": "Unspecified", "truncated": 0, "difficult": 0})
            box = dict(zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
            _add_elements(ElementTree.SubElement(item, "bndbox"), box)
        ElementTree.indent(root)
        text = ElementTree.tostring(root, encoding="unicode") + "\n"
        write_whole(self._folder / name.with_suffix(".xml"), text)


WRITERS = {"json": JsonWriter, "coco": CocoWriter, "csv": CsvWriter, "yolo": YoloWriter, "voc": VocWriter}
# These name an image's file after the image without its extension.
WITHOUT_EXTENSION = ("yolo", "voc")


class GrowingFile:
    """A text file that ends properly after every addition, however the program ends.

    An addition and the end of the file are one write over the old end. If the disk is full, the old end is restored.
    """

    def __init__(self, path: Path, head: str, tail: str):
        """Starts a file that consists of `head` and `tail`."""
        self._path = path
        self._file = io.FileIO(path, "w")
        self._position = 0
        self._tail = b""
        self.append(head, tail)

    def append(self, text: str, tail: str) -> None:
        """Adds text, and replaces the end of the file."""
        text, tail = text.encode(), tail.encode()
        try:
            self._write(text + tail)
        except OSError as error:
            self._write(self._tail)
            raise type(error)(error.errno, error.strerror, str(self._path)) from error
        self._position += len(text)
        self._tail = tail

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, content: bytes) -> None:
        self._file.seek(self._position)
        rest = memoryview(content)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._file.truncate()


def write_whole(path: Path, text: str) -> None:
    """Writes a text file that is complete or not there at all; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _add_elements(parent: ElementTree.Element, values: dict[str, Any]) -> None:
    for tag, value in values.items():
        ElementTree.SubElement(parent, tag).text = str(value)
