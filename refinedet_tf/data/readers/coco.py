"""Reads data sets in COCO's format, in COCO's layout or as labeling tools export them."""

import json
import os
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from refinedet_tf.data.examples import Defect, ExampleSet
from refinedet_tf.data.readers.annotations import (
    AnnotatedObject,
    Listing,
    Reading,
    add_example,
    check_image,
    check_listed,
    number,
    read_listing,
)
from refinedet_tf.data.readers.files import is_inside
from refinedet_tf.errors import DataError

SPLIT = "SPLIT"  # stands for the name of a split in paths of a recipe


def read_coco(
    root: str | os.PathLike,
    splits: Sequence[str] | None,
    classes: Sequence[str] | None,
    *,
    annotations: str | None = None,
    images: str | None = None,
) -> ExampleSet:
    """Reads splits of a data set in COCO's format.

    Every image is decoded once, as training will decode it, and boxes are divided by its actual size. Category ids may
    have gaps; only names matter.

    Args:
        root: the data folder; in COCO's layout it has annotations/instances_SPLIT.json, and images in SPLIT/ or
            images/SPLIT/.
        splits: names such as train2017; None takes the whole of the only JSON file.
        classes: class names in the order of their indices; None takes the categories by ascending id.
        annotations: the JSON file, relative to `root`, in another layout; `SPLIT` in it stands for the split.
        images: the folder of the images in that layout; by default that of the JSON file, or else `root`.

    Returns:
        The usable images, including those without objects, and all defects. Crowd regions are marked.

    Raises:
        DataError: a file is missing or invalid, the categories do not match `classes`, or no image is usable.
    """
    return read_listing(list_coco(root, splits, classes, annotations=annotations, images=images))


def list_coco(
    root: str | os.PathLike,
    splits: Sequence[str] | None,
    classes: Sequence[str] | None,
    *,
    annotations: str | None = None,
    images: str | None = None,
) -> Listing:
    """Lists the images that `read_coco` reads, without opening one."""
    root, title = Path(root), "all" if splits is None else ", ".join(splits)
    files = [_load(*_find(root, split, annotations, images)) for split in splits or [None]]
    for file in files:
        classes = check_listed(classes, list(file.names.values()), file.path)
    defects = [defect for file in files for defect in file.defects]
    entries = [entry for file in files for entry in file.images]
    ids = {name: category_id for file in files for category_id, name in file.names.items()}
    return Listing(entries, _read, classes, defects, title, root, ids)


class _Image(NamedTuple):
    """An image: its JSON file, the folders it may be in, its entry, and its annotations with their class names."""

    source: str
    folders: list[Path]
    entry: dict[str, Any]
    annotations: list[tuple[str, dict[str, Any]]]


@dataclass
class _File:
    """A JSON file, with `names` by ascending category id."""

    path: str
    names: dict[int, str]
    images: list[_Image]
    defects: list[Defect]


def _find(root: Path, split: str | None, annotations: str | None, images: str | None) -> tuple[Path, list[Path]]:
    """Returns the JSON file of a split and the folders in which its images may be."""
    if annotations is not None:
        path, folder = (
            None if name is None else root / name.replace(SPLIT, split or "") for name in (annotations, images)
        )
        if not path.is_file():
            raise DataError(f"There is no {path} (data.annotations).")
        if folder is not None and not folder.is_dir():
            raise DataError(f"There is no folder {folder} (data.images).")
        return path, [path.parent, root] if folder is None else [folder]
    known = sorted(file.stem.removeprefix("instances_") for file in root.glob("annotations/instances_*.json"))
    if split is None:
        if len(known) != 1:
            raise DataError(f"{root}/annotations has {len(known)} instances_*.json; name one as data.annotations.")
        split = known[0]
    path = root / "annotations" / f"instances_{split}.json"
    if not path.is_file():
        raise DataError(
            f"There is no {path}; splits in that folder: {', '.join(known) or 'none'}. "
            "For another layout set data.annotations."
        )
    folders = [root / split, root / "images" / split]
    if not any(folder.is_dir() for folder in folders):
        raise DataError(f"The images of {path} must be in {folders[0]} or {folders[1]}; neither folder exists.")
    return path, folders


def _load(path: Path, folders: list[Path]) -> _File:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not an instances JSON of COCO: {type(error).__name__}: {error}.") from error
    for key in ("categories", "images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{path} is not an instances JSON of COCO: it has no list `{key}`.")
    names = {}
    for category in content["categories"]:
        if not (isinstance(category, dict) and type(category.get("id")) is int and _is_text(category.get("name"))):
            raise DataError(
                f"{path} is not an instances JSON of COCO: a category needs a whole number as `id` and text as `name`, "
                f"not {reprlib.repr(category)}."
            )
        names[category["id"]] = category["name"]
    defects, images = [], {}
    for image in content["images"]:
        if isinstance(image, dict) and _is_id(image.get("id")) and _is_text(image.get("file_name")):
            images[image["id"]] = image
        else:
            defects.append(Defect(f"{path}, image {_id(image)}", "image without id or file name, skipped"))
    if len(images) + len(defects) < len(content["images"]):
        repeated = len(content["images"]) - len(images) - len(defects)
        defects.append(Defect(str(path), f"repeated image ids, the last entry was used: {repeated}"))
    annotations = {image_id: [] for image_id in images}
    for annotation in content["annotations"]:
        where = f"{path}, annotation {_id(annotation)}"
        values = annotation if isinstance(annotation, dict) else {}
        category_id, image_id = values.get("category_id"), values.get("image_id")
        if type(category_id) is not int or category_id not in names:
            what = f"unknown category id, object dropped: {reprlib.repr(category_id)}"
            defects.append(Defect(where, what))
        elif not _is_id(image_id) or image_id not in annotations:
            defects.append(Defect(where, f"annotation of an unknown image, dropped: {reprlib.repr(image_id)}"))
        else:
            annotations[image_id].append((names[category_id], annotation))
    entries = [_Image(str(path), folders, image, annotations[image_id]) for image_id, image in images.items()]
    return _File(str(path), dict(sorted(names.items())), entries, defects)


def _is_id(value: Any) -> bool:
    return type(value) is int or _is_text(value)


def _is_text(value: Any) -> bool:
    """Returns whether a value is text that can be written; JSON may hold halves of characters."""
    return isinstance(value, str) and value.encode("utf-8", "ignore").decode() == value


def _id(entry: Any) -> str:
    return reprlib.repr(entry.get("id") if isinstance(entry, dict) else entry)


def _read(image: _Image) -> Reading:
    source, folders, entry, annotations = image
    reading = Reading(source)
    defects = reading.defects
    name, where = entry["file_name"], f"{source}, image {_id(entry)}"
    candidates = [folder / variant for variant in (name, name.replace("\\", "/")) for folder in folders]
    inside = [path for path in candidates if any(is_inside(folder, path) for folder in folders)]
    if not inside:
        defects.append(Defect(where, f"file name is outside the image folder, skipped: {name}"))
        return reading
    path = next(filter(os.path.isfile, inside), None)
    if path is None:
        defects.append(Defect(str(inside[0]), "missing image, skipped"))
        return reading
    checked = check_image(tf.io.read_file(str(path)).numpy(), str(path), defects)
    if checked is None:
        return reading
    objects = [
        AnnotatedObject(
            f"{source}, annotation {_id(annotation)} of {path.name}",
            label,
            _corners(annotation.get("bbox")),
            crowd=annotation.get("iscrowd") == 1,
            area=number(annotation.get("area")),
        )
        for label, annotation in annotations
    ]
    stated_size = number(entry.get("width")), number(entry.get("height"))
    add_example(reading, str(entry["id"]), str(path), checked, objects, stated_size=stated_size, where=where)
    return reading


def _corners(bbox: Any) -> list[float]:
    """Converts (x, y, width, height) to (xmin, ymin, xmax, ymax), with NaN in place of anything but numbers."""
    x, y, width, height = map(number, bbox if isinstance(bbox, list) and len(bbox) == 4 else [None] * 4)
    return [x, y, x + width, y + height]
