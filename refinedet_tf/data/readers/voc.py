"""Reads data sets in PASCAL VOC layout: Annotations/*.xml, ImageSets/Main/*.txt, JPEGImages/*."""

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from refinedet_tf.data.examples import Defect, ExampleSet
from refinedet_tf.data.readers.annotations import (
    AnnotatedObject,
    Reading,
    add_example,
    check_image,
    collect,
    number,
    read_all,
)
from refinedet_tf.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


def read_voc(root: str | os.PathLike, splits: Sequence[str], classes: Sequence[str] | None) -> ExampleSet:
    """Reads the images that lists of a VOC folder name.

    Every image is decoded once, as training will decode it, and boxes are divided by its actual size. Coordinates are
    divided by width and height without subtracting 1, as in the released code.

    Args:
        root: a year folder such as VOCdevkit/VOC2007, or VOCdevkit itself.
        splits: names of lists in ImageSets/Main, without ".txt"; below VOCdevkit with the year folder, such as
            VOC2007/trainval. An image in several lists of a folder is read once.
        classes: class names in the order of their indices; None takes those found, sorted.

    Returns:
        The usable images, including those without objects, and all defects.

    Raises:
        DataError: a folder or list is missing, an object's class is not in `classes`, or no image is usable.
    """
    images, repeated = _list_images(Path(root), splits)
    readings = read_all(images, lambda image: _read(*image), f"Reading {', '.join(splits)}")
    return collect(readings, classes, repeated, f"{', '.join(splits)} of {root}")


def _list_images(root: Path, splits: Sequence[str]) -> tuple[list[tuple[Path, str]], list[Defect]]:
    """Returns the (year folder, image id) pairs in the lists, each once, and a defect for each repetition."""
    images, defects = {}, []
    for split in splits:
        year, _, name = split.rpartition("/")
        _check_layout(root / year)
        folder = root / year / "ImageSets" / "Main"
        path = folder / f"{name}.txt"
        if not path.is_file():
            known = sorted(file.stem for file in folder.glob("*.txt"))
            raise DataError(f"There is no list {path}; the lists there are: {', '.join(known) or 'none'}.")
        for image_id in filter(None, map(str.strip, path.read_text(encoding="utf-8-sig").splitlines())):
            image = (root / year, image_id)
            if image in images:
                defects.append(Defect(str(path), f"image listed twice, read once: {image_id}"))
            images[image] = True
    return list(images), defects


def _check_layout(root: Path) -> None:
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.")
    missing = [name for name in ("Annotations", "ImageSets/Main", "JPEGImages") if not (root / name).is_dir()]
    if not missing:
        return
    inside = [path.parent for pattern in ("*/ImageSets", "*/*/ImageSets") for path in sorted(root.glob(pattern))]
    hint = f" Did you mean {' or '.join(map(str, inside))}?" if inside else ""
    raise DataError(f"{root} is not in VOC layout: it has no {', no '.join(missing)}.{hint}")


def _read(root: Path, image_id: str) -> Reading:
    xml_path = root / "Annotations" / f"{image_id}.xml"
    reading = Reading(str(xml_path))
    defects = reading.defects
    try:
        annotation = ElementTree.parse(xml_path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        defects.append(Defect(str(xml_path), f"unreadable annotation, image skipped: {error}"))
        return reading
    image_path = _image_path(root / "JPEGImages", image_id, annotation.findtext("filename", ""))
    if image_path is None:
        defects.append(Defect(str(root / "JPEGImages" / image_id), "missing image, skipped"))
        return reading
    image = check_image(tf.io.read_file(str(image_path)).numpy(), str(image_path), defects)
    if image is None:
        return reading
    objects = []
    for count, item in enumerate(annotation.findall("object"), start=1):
        corners = [number(item.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
        objects.append(
            AnnotatedObject(
                f"{xml_path}, object {count}",
                item.findtext("name", "").strip(),
                corners,
                difficult=number(item.findtext("difficult")) == 1,
            )
        )
    width, height = (number(annotation.findtext(f"size/{side}")) for side in ("width", "height"))
    add_example(reading, image_id, str(image_path), image, objects, stated_size=(width, height))
    return reading


def _image_path(folder: Path, image_id: str, filename: str) -> Path | None:
    """Returns the file named after the image id, as in VOC, or else the one that <filename> names."""
    candidates = [folder / f"{image_id}{extension}" for extension in EXTENSIONS] + [folder / filename.strip()]
    return next((path for path in candidates if path.is_file()), None)
