"""Reads data sets in PASCAL VOC layout, and folders of photos with VOC's XML files beside them."""

import functools
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

from refinedet_tf.data.examples import Defect, ExampleSet
from refinedet_tf.data.readers.annotations import (
    AnnotatedObject,
    Listing,
    Reading,
    add_example,
    check_image,
    number,
    read_listing,
)
from refinedet_tf.data.readers.files import image_beside, is_inside
from refinedet_tf.errors import DataError


def read_voc(root: str | os.PathLike, splits: Sequence[str] | None, classes: Sequence[str] | None) -> ExampleSet:
    """Reads the images that lists of a VOC folder name.

    Every image is decoded once, as training will decode it, and boxes are divided by its actual size. Coordinates are
    divided by width and height without subtracting 1, as in the released code.

    Args:
        root: a year folder such as VOCdevkit/VOC2007, with Annotations/*.xml, ImageSets/Main/*.txt and JPEGImages/*, or
            VOCdevkit itself; without splits also any folder of XML files with their photos beside them.
        splits: names of lists in ImageSets/Main, without ".txt"; below VOCdevkit with the year folder, such as
            VOC2007/trainval. An image in several lists of a folder is read once. None takes all XML files.
        classes: class names in the order of their indices; None takes those found, sorted.

    Returns:
        The usable images, including those without objects, and all defects.

    Raises:
        DataError: a folder or list is missing, an object's class is not in `classes`, or no image is usable.
    """
    return read_listing(list_voc(root, splits, classes))


def list_voc(root: str | os.PathLike, splits: Sequence[str] | None, classes: Sequence[str] | None) -> Listing:
    """Lists the images that `read_voc` reads, without opening one."""
    root, title = Path(root), "all" if splits is None else ", ".join(splits)
    images, repeated = _list_all(root) if splits is None else _list_images(root, splits)
    return Listing(images, functools.partial(_read, root), classes, repeated, title, root)


class _Image(NamedTuple):
    """An image: its id, its annotation, and the image file without extension."""

    image_id: str
    xml_path: Path
    photo: Path


def _list_all(root: Path) -> tuple[list[_Image], list[Defect]]:
    """Returns all annotated images of a folder in VOC layout, or of any folder; ids are paths without extension."""
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.")
    base = root / "Annotations" if (root / "Annotations").is_dir() else root
    photos = root / "JPEGImages" if base != root and (root / "JPEGImages").is_dir() else base
    names = [path.relative_to(base).with_suffix("").as_posix() for path in sorted(base.rglob("*.xml"))]
    images = [_Image(name, base / f"{name}.xml", photos / name) for name in names]
    if not images:
        raise DataError(f"{root} has no XML files.")
    return images, []


def _list_images(root: Path, splits: Sequence[str]) -> tuple[list[_Image], list[Defect]]:
    """Returns the images in the lists, each once, and a defect for each repetition."""
    images, defects = {}, []
    for split in splits:
        year, _, name = split.rpartition("/")
        _check_layout(root / year)
        folder = root / year / "ImageSets" / "Main"
        path = folder / f"{name}.txt"
        if not path.is_file():
            known = sorted(file.stem for file in folder.glob("*.txt"))
            raise DataError(f"There is no list {path}; the lists there are: {', '.join(known) or 'none'}.")
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        for image_id in filter(None, map(str.strip, text.splitlines())):
            xml_path = root / year / "Annotations" / f"{image_id}.xml"
            image = _Image(image_id, xml_path, root / year / "JPEGImages" / image_id)
            if not is_inside(root, xml_path):
                defects.append(Defect(str(path), f"image outside the data folder, skipped: {image_id}"))
                continue
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
    hint = hint or (" To divide images without lists, set data.split." if missing == ["ImageSets/Main"] else "")
    raise DataError(f"{root} is not in VOC layout: it has no {', no '.join(missing)}.{hint}")


def _read(root: Path, image: _Image) -> Reading:
    image_id, xml_path, photo = image
    reading = Reading(str(xml_path))
    defects = reading.defects
    try:
        annotation = ElementTree.parse(xml_path).getroot()
    except (FileNotFoundError, ElementTree.ParseError, ValueError, LookupError) as error:
        defects.append(Defect(str(xml_path), f"unreadable annotation, image skipped: {error}"))
        return reading
    image_path = image_beside(photo)
    if image_path is None:
        image_path = photo.parent / annotation.findtext("filename", "").strip()
        if not is_inside(root, image_path):
            defects.append(Defect(str(xml_path), "<filename> is outside the data folder, image skipped"))
            return reading
    if not os.path.isfile(image_path):
        defects.append(Defect(str(photo), "missing image, skipped"))
        return reading
    checked = check_image(tf.io.read_file(str(image_path)).numpy(), str(image_path), defects)
    if checked is None:
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
    add_example(reading, image_id, str(image_path), checked, objects, stated_size=(width, height))
    return reading
