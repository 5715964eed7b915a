"""Reader of data sets in PASCAL VOC layout: Annotations/*.xml, ImageSets/Main/*.txt, JPEGImages/*.

A split with a few damaged files is still worth training on, so what is wrong with one image or one box is noted as
a `Defect`; a missing folder, a missing split or a class that the recipe does not list is an error.
"""

import difflib
import math
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from refinedet_tf.data.examples import DataError, Defect, Example, ExampleSet
from refinedet_tf.ops import images as image_ops

EXTENSIONS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


def read_voc(root: str | os.PathLike, splits: Sequence[str], classes: Sequence[str]) -> ExampleSet:
    """Reads the images that some lists of a VOC folder name.

    Every image is decoded once, as training will decode it: a file cut short is found here and not in the middle of an
    epoch, and boxes are divided by the size that the image really has. Coordinates are divided by width and height as
    they stand, without subtracting 1, as in the released code.

    Args:
        root: a year folder such as VOCdevkit/VOC2007.
        splits: names of lists in ImageSets/Main, without ".txt". An image in several of them is read once.
        classes: names of the classes, in the order of their indices.

    Returns:
        The readable images, those without objects among them, and the defects of the rest.

    Raises:
        DataError: a folder or list is missing, an annotation names a class that is not in `classes`, or no image
            is left.
    """
    root = Path(root)
    _check_layout(root)
    image_ids, repeated = _image_ids(root, splits)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reading = pool.map(lambda image_id: _read(root, image_id, classes), image_ids)
        progress = tqdm(reading, total=len(image_ids), desc=f"Reading {', '.join(splits)}", unit="image", delay=2)
        results = list(progress)
    _check_classes(results, classes)
    examples = [result.example for result in results if result.example is not None]
    defects = repeated + [defect for result in results for defect in result.defects]
    if not examples:
        reason = f"; the first problem is {defects[0].where}: {defects[0].what}" if defects else ""
        raise DataError(f"{', '.join(splits)} of {root} has no usable image{reason}.")
    return ExampleSet(examples, list(classes), defects)


@dataclass
class _Result:
    """What reading one image gave; `unknown` are the (class name, annotation file) pairs that are not listed."""

    example: Example | None = None
    defects: list[Defect] = field(default_factory=list)
    unknown: list[tuple[str, str]] = field(default_factory=list)


def _check_layout(root: Path) -> None:
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.")
    missing = [name for name in ("Annotations", "ImageSets/Main", "JPEGImages") if not (root / name).is_dir()]
    if not missing:
        return
    inside = [path.parent for pattern in ("*/ImageSets", "*/*/ImageSets") for path in sorted(root.glob(pattern))]
    hint = f" Did you mean {' or '.join(map(str, inside))}?" if inside else ""
    raise DataError(f"{root} is not in VOC layout: it has no {', no '.join(missing)}.{hint}")


def _image_ids(root: Path, splits: Sequence[str]) -> tuple[list[str], list[Defect]]:
    """The ids in the lists, each once, and a defect for each repetition."""
    folder = root / "ImageSets" / "Main"
    image_ids, defects = {}, []
    for split in splits:
        path = folder / f"{split}.txt"
        if not path.is_file():
            known = sorted(file.stem for file in folder.glob("*.txt"))
            raise DataError(f"There is no list {path}; lists in that folder: {', '.join(known) or 'none'}.")
        for image_id in filter(None, map(str.strip, path.read_text(encoding="utf-8-sig").splitlines())):
            if image_id in image_ids:
                defects.append(Defect(str(path), f"image listed again, read once: {image_id}"))
            image_ids[image_id] = True
    return list(image_ids), defects


def _read(root: Path, image_id: str, classes: Sequence[str]) -> _Result:
    result = _Result()
    xml_path = root / "Annotations" / f"{image_id}.xml"
    try:
        annotation = ElementTree.parse(xml_path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        result.defects.append(Defect(str(xml_path), f"unreadable annotation, image skipped: {error}"))
        return result
    image_path = _image_path(root / "JPEGImages", image_id, annotation.findtext("filename", ""))
    if image_path is None:
        result.defects.append(Defect(str(root / "JPEGImages" / image_id), "missing image, skipped"))
        return result
    try:
        height, width, _ = image_ops.decode(tf.io.read_file(str(image_path))).shape
    except tf.errors.OpError as error:
        reason = error.message.split("}} ")[-1].removesuffix(" [Op:DecodeImage]")
        result.defects.append(Defect(str(image_path), f"unreadable image, skipped: {reason}"))
        return result
    stated = tuple(_number(annotation.findtext(f"size/{side}")) for side in ("width", "height"))
    if all(side > 0 for side in stated) and stated != (width, height):
        what = f"wrong <size>, the image's own was used: {stated[0]:g} x {stated[1]:g}, is {width} x {height}"
        result.defects.append(Defect(str(xml_path), what))

    boxes, indices, difficult = [], [], []
    for number, item in enumerate(annotation.findall("object"), start=1):
        name = item.findtext("name", "").strip()
        if name not in classes:
            result.unknown.append((name, str(xml_path)))
            continue
        corners = [_number(item.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
        box, what = _relative_box(corners, height, width)
        if what:
            shown = ", ".join(f"{corner:g}" for corner in corners)
            result.defects.append(Defect(f"{xml_path}, object {number}: {name} ({shown})", what))
        if box is not None:
            boxes.append(box)
            indices.append(classes.index(name))
            difficult.append(_number(item.findtext("difficult")) == 1)
    result.example = Example(image_id, str(image_path), height, width,
                             boxes=np.array(boxes, np.float32).reshape(-1, 4),
                             classes=np.array(indices, np.int32), difficult=np.array(difficult, bool))
    return result


def _image_path(folder: Path, image_id: str, filename: str) -> Path | None:
    """The file called after the image id, as VOC has it, or else the one that <filename> names."""
    candidates = [folder / f"{image_id}{extension}" for extension in EXTENSIONS] + [folder / filename.strip()]
    return next((path for path in candidates if path.is_file()), None)


def _number(text: str | None) -> float:
    """The text as a number; NaN when there is none."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _relative_box(corners: list[float], height: int, width: int) -> tuple[list[float] | None, str | None]:
    """Pixel corners to a box in 0..1, or None when nothing of it is usable, and what was wrong with it, if anything.

    Boxes that reach over the border by up to a pixel are rounding and are clipped without a word.
    """
    if not all(map(math.isfinite, corners)):
        return None, "unreadable box, dropped"
    xmin, ymin, xmax, ymax = corners
    if xmax <= xmin or ymax <= ymin:
        return None, "box without area, dropped"
    box = [min(max(xmin / width, 0.0), 1.0), min(max(ymin / height, 0.0), 1.0),
           min(max(xmax / width, 0.0), 1.0), min(max(ymax / height, 0.0), 1.0)]
    if box[2] <= box[0] or box[3] <= box[1]:
        return None, "box outside the image, dropped"
    if xmin < -1 or ymin < -1 or xmax > width + 1 or ymax > height + 1:
        return box, "box partly outside the image, clipped"
    return box, None


def _check_classes(results: Sequence[_Result], classes: Sequence[str]) -> None:
    """Raises for all unlisted class names of a split at once, each with the first file that has it."""
    files = {}
    for name, file in (pair for result in results for pair in result.unknown):
        files.setdefault(name, []).append(file)
    if not files:
        return
    found = []
    for name, where in files.items():
        nearest = difflib.get_close_matches(name, classes, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        found.append(f"{name!r} ({len(where)} objects, first in {where[0]}{hint})")
    raise DataError(f"The annotations have classes that model.classes does not list: {', '.join(found)}. "
                    f"Listed are: {', '.join(classes)}. Add the missing names to model.classes or correct the files.")
