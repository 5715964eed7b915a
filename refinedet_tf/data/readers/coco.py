"""Reads data sets in COCO's format: annotations/instances_SPLIT.json with the images in SPLIT/."""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from refinedet_tf.data.examples import Defect, ExampleSet
from refinedet_tf.data.readers.annotations import (
    AnnotatedObject,
    Reading,
    add_example,
    check_image,
    check_listed,
    collect,
    number,
    read_all,
)
from refinedet_tf.errors import DataError


def read_coco(root: str | os.PathLike, splits: Sequence[str], classes: Sequence[str] | None) -> ExampleSet:
    """Reads splits of a data set in COCO's format.

    Every image is decoded once, as training will decode it, and boxes are divided by its actual size. Category ids may
    have gaps; only names matter.

    Args:
        root: a folder with annotations/instances_SPLIT.json, and images in SPLIT/ or images/SPLIT/.
        splits: names such as train2017.
        classes: class names in the order of their indices; None takes the categories by ascending id.

    Returns:
        The usable images, including those without objects, and all defects. Crowd regions are marked.

    Raises:
        DataError: a file is missing or invalid, the categories do not match `classes`, or no image is usable.
    """
    files = [_load(Path(root), split) for split in splits]
    for file in files:
        classes = check_listed(classes, list(file.names.values()), file.path)
    defects = [defect for file in files for defect in file.defects]
    images = [(file, image) for file in files for image in file.images]
    readings = read_all(images, lambda image: _read(*image), f"Reading {', '.join(splits)}")
    found = collect(readings, classes, defects, f"{', '.join(splits)} of {root}")
    ids = {name: category_id for file in files for category_id, name in file.names.items()}
    return dataclasses.replace(found, category_ids=[ids[name] for name in found.classes])


@dataclass
class _File:
    """An instances file, with `names` by ascending category id and `annotations` by image id."""

    path: str
    folder: Path
    names: dict[int, str]
    images: list[dict[str, Any]]
    annotations: dict[int, list[dict[str, Any]]]
    defects: list[Defect]


def _load(root: Path, split: str) -> _File:
    path = root / "annotations" / f"instances_{split}.json"
    if not path.is_file():
        known = sorted(file.stem.removeprefix("instances_") for file in path.parent.glob("instances_*.json"))
        raise DataError(f"There is no {path}; splits in that folder: {', '.join(known) or 'none'}.")
    folders = [root / split, root / "images" / split]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise DataError(f"The images of {path} must be in {folders[0]} or {folders[1]}; neither folder exists.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {category["id"]: category["name"] for category in sorted(content["categories"], key=lambda c: c["id"])}
        images = {image["id"]: image for image in content["images"]}
        annotations, defects = {image_id: [] for image_id in images}, []
        if len(images) < len(content["images"]):
            repeated = len(content["images"]) - len(images)
            defects.append(Defect(str(path), f"repeated image ids, the last entry was used: {repeated}"))
        for annotation in content["annotations"]:
            where = f"{path}, annotation {annotation.get('id')}"
            if annotation["category_id"] not in names:
                what = f"unknown category id, object dropped: {annotation['category_id']}"
                defects.append(Defect(where, what))
            elif annotation["image_id"] not in annotations:
                defects.append(Defect(where, f"annotation of an unknown image, dropped: {annotation['image_id']}"))
            else:
                annotations[annotation["image_id"]].append(annotation)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not an instances JSON of COCO: {type(error).__name__}: {error}.") from error
    return _File(str(path), folder, names, list(images.values()), annotations, defects)


def _read(file: _File, image: dict[str, Any]) -> Reading:
    reading = Reading(file.path)
    defects = reading.defects
    path = file.folder / str(image.get("file_name"))
    if not path.is_file():
        defects.append(Defect(str(path), "missing image, skipped"))
        return reading
    checked = check_image(tf.io.read_file(str(path)).numpy(), str(path), defects)
    if checked is None:
        return reading
    objects = []
    for annotation in file.annotations[image["id"]]:
        where = f"{file.path}, annotation {annotation.get('id')} of {path.name}"
        objects.append(
            AnnotatedObject(
                where,
                file.names[annotation["category_id"]],
                _corners(annotation.get("bbox")),
                crowd=annotation.get("iscrowd") == 1,
                area=number(annotation.get("area")),
            )
        )
    stated_size = number(image.get("width")), number(image.get("height"))
    where = f"{file.path}, image {image['id']}"
    add_example(reading, str(image["id"]), str(path), checked, objects, stated_size=stated_size, where=where)
    return reading


def _corners(bbox: Any) -> list[float]:
    """Converts (x, y, width, height) to (xmin, ymin, xmax, ymax), with NaN in place of anything but numbers."""
    x, y, width, height = map(number, bbox if isinstance(bbox, list) and len(bbox) == 4 else [None] * 4)
    return [x, y, x + width, y + height]
