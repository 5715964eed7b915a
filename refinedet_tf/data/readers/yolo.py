"""Reads data sets in YOLO format: one text file of objects per image, as Ultralytics, Roboflow and labelImg write them.

A line of a label file is `class x y width height`, relative to the image, with the center at (x, y); or the class and
the corners of a polygon, `x1 y1 x2 y2 ...`, of which the bounding box is taken.
"""

import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from refinedet_tf.config.recipes import load_yaml
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
from refinedet_tf.data.readers.files import find_images, is_inside
from refinedet_tf.errors import DataError

ALIASES = {"val": ("val", "valid", "validation"), "valid": ("valid", "val")}
YAML_FILES = ("data.yaml", "dataset.yaml")
NAMES_FILES = ("classes.txt", "labels/classes.txt")


def read_yolo(root: str | os.PathLike, splits: Sequence[str] | None, classes: Sequence[str] | None) -> ExampleSet:
    """Reads splits of a data set in YOLO format.

    Every image is decoded once, as training will decode it. An image in `.../images/...` has its objects in
    `.../labels/...`, another one beside it, in a text file of its name. An image without such a file has no objects.

    Args:
        root: a folder with the class names in data.yaml or classes.txt.
        splits: names such as train: what data.yaml says for it, or SPLIT/images, images/SPLIT or SPLIT; `val` also
            finds `valid`. None takes all images in images/ or, without such a folder, in `root`.
        classes: class names in the order of their indices; None takes those of the data.

    Returns:
        The usable images, including those without objects, and all defects. Image ids are paths relative to `root`
        without extension.

    Raises:
        DataError: a file or folder is missing or invalid, the class names do not match `classes`, or no image is
            usable.
    """
    return read_listing(list_yolo(root, splits, classes))


def list_yolo(root: str | os.PathLike, splits: Sequence[str] | None, classes: Sequence[str] | None) -> Listing:
    """Lists the images that `read_yolo` reads, without opening one."""
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.")
    settings, names, source = _read_settings(root)
    classes = check_listed(classes, names, source)
    if splits is None:
        paths = list(find_images(root / "images" if (root / "images").is_dir() else root))
    else:
        paths = [path for split in splits for path in _images_of(root, split, settings)]
    defects = (
        [Defect(str(path), "image listed twice, read once") for path in dict.fromkeys(paths) if paths.count(path) > 1]
        if len(set(paths)) < len(paths)
        else []
    )
    title = "all" if splits is None else ", ".join(splits)
    read = functools.partial(_read, root, names)
    return Listing(list(dict.fromkeys(paths)), read, classes, defects, title, root)


def _read_settings(root: Path) -> tuple[dict[str, Any], list[str], str]:
    """Returns the content of data.yaml, the class names, and the file that lists them."""
    settings = {}
    for path in (root / name for name in YAML_FILES):
        if path.is_file():
            try:
                settings = load_yaml(path.read_bytes())
            except ValueError as error:
                raise DataError(f"{path} is not readable YAML: {str(error).splitlines()[0]}") from error
            names = settings.get("names") if isinstance(settings, dict) else None
            return settings, _check_names(names, path), str(path)
    for path in (root / name for name in NAMES_FILES):
        if path.is_file():
            lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            return settings, _check_names([line.strip() for line in lines if line.strip()], path), str(path)
    raise DataError(f"{root} has no class names: it needs {' or '.join((*YAML_FILES, *NAMES_FILES))}.")


def _check_names(names: Any, path: Path) -> list[str]:
    """Returns class names, which data.yaml may give as a list or by their indices."""
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise DataError(f"{path}: the indices of `names` must be 0, 1, ... without gaps.")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int) for name in names):
        raise DataError(f"{path} lists no class names.")
    return [str(name) for name in names]


def _images_of(root: Path, split: str, settings: dict[str, Any]) -> list[Path]:
    """Returns the images of a split, in order."""
    aliases = ALIASES.get(split, (split,))
    for entries in (settings.get(alias) for alias in aliases):
        if not entries:
            continue
        places = [
            _resolve(root, settings, str(entry)) for entry in (entries if isinstance(entries, list) else [entries])
        ]
        if all(place is not None for place in places):
            return [path for place in places for path in _images_at(root, place)]
    for alias in aliases:
        for folder in (root / alias / "images", root / "images" / alias, root / alias):
            if is_inside(root, folder) and folder.is_dir():
                return list(find_images(folder))
    known = sorted(path.name for path in [*root.iterdir(), *root.glob("images/*")] if path.is_dir())
    raise DataError(
        f"{root} has no split {split}: neither data.yaml nor a folder {split}/images or images/{split} says which "
        f"images it has. Folders there: {', '.join(known) or 'none'}. Without splits, set data.split."
    )


def _resolve(root: Path, settings: dict[str, Any], entry: str) -> Path | None:
    """Returns the existing file or folder that an entry of data.yaml means, or None.

    Entries are relative to `path` if that is given, and to the file otherwise, but many files give paths of the machine
    that wrote them, or `../train/images` for a folder beside data.yaml: only the end of a path that exists counts.
    """
    parts = [part for part in Path(entry).parts if part not in ("..", ".", os.sep)]
    bases = [part for part in Path(str(settings.get("path") or "")).parts if part not in ("..", ".", os.sep)]
    candidates = [root.joinpath(*bases, *parts), *(root.joinpath(*parts[start:]) for start in range(len(parts)))]
    return next((path for path in candidates if path.exists()), None)


def _images_at(root: Path, place: Path) -> list[Path]:
    """Returns the images in a folder, or those that a text file lists."""
    if place.is_dir():
        return list(find_images(place))
    lines = place.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    paths = (Path(os.path.normpath(place.parent / line.strip())) for line in lines if line.strip())
    return [path for path in paths if is_inside(root, path)]


def _read(root: Path, names: Sequence[str], path: Path) -> Reading:
    label_path = _label_path(root, path)
    reading = Reading(str(label_path))
    if not os.path.isfile(path):
        reading.defects.append(Defect(str(path), "missing image, skipped"))
        return reading
    image = check_image(tf.io.read_file(str(path)).numpy(), str(path), reading.defects)
    if image is None:
        return reading
    lines = []
    if label_path.is_file():
        lines = label_path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    else:
        reading.notes.append(Defect(str(path), "image without a label file, taken as one without objects"))
    objects = []
    for count, line in enumerate(lines, start=1):
        where = f"{label_path}, line {count}"
        values = [number(value) for value in line.split()]
        if not values:
            continue
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            what = f"neither box nor polygon, object dropped: {len(values)} numbers"
            reading.defects.append(Defect(where, what))
        elif not (0 <= values[0] < len(names) and values[0] == int(values[0])):
            reading.defects.append(Defect(where, f"class without a name, object dropped: {line.split()[0][:20]}"))
        else:
            objects.append(AnnotatedObject(where, names[int(values[0])], _corners(values[1:])))
    image_id = path.relative_to(root).with_suffix("").as_posix()
    add_example(reading, image_id, str(path), image, objects, relative=True)
    return reading


def _label_path(root: Path, path: Path) -> Path:
    parts = list(path.relative_to(root).parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index("images")
        parts[last] = "labels"
    return root.joinpath(*parts).with_suffix(".txt")


def _corners(values: Sequence[float]) -> list[float]:
    """Returns (xmin, ymin, xmax, ymax) of a box (x, y, width, height) or of a polygon."""
    if len(values) == 4:
        x, y, width, height = values
        return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    if not all(map(math.isfinite, values)):
        return [math.nan] * 4
    return [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]
