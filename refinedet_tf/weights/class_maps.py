"""Fits the class heads of a file to the classes of a model."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from refinedet_tf.config.recipes import load_yaml
from refinedet_tf.errors import WeightFileError
from refinedet_tf.layers import ANCHORS_PER_CELL
from refinedet_tf.model import RefineDet
from refinedet_tf.weights.assignment import Weights, named_variables

# Variables whose last axis runs over anchors and, for each, over background and classes.
_CLASS_VARIABLE = re.compile(r"odm\d_classes(_pointwise)?/(kernel|bias)")
_SHIPPED = ("coco_to_voc",)
MAPPED = "rows mapped by class"

ClassMap = str | os.PathLike | Mapping[str, int]


@dataclass(frozen=True)
class FittedClasses:
    """Weights for the classes of a model.

    Attributes:
        weights: the weights, with class heads of the model's size if there are any.
        left_out: variables that take nothing from the file.
        lines: the source of each class, for the report.
    """

    weights: Weights
    left_out: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def read_class_map(class_map: ClassMap | None) -> dict[str, int] | None:
    """Reads a map from the model's classes to the file's.

    Args:
        class_map: `coco_to_voc`, a YAML or JSON file, or the mapping itself: the model's class name -> the index in the
            file, from 1 as in Caffe, where the background is 0. None gives None.

    Returns:
        The mapping.

    Raises:
        WeightFileError: the file is missing or holds no such mapping.
    """
    if class_map is None:
        return None
    values, source = class_map, "The class map"
    if not isinstance(class_map, Mapping):
        shipped = class_map in _SHIPPED
        path = Path(__file__).with_name(f"{class_map}.yaml") if shipped else Path(class_map)
        source = os.fspath(class_map)
        if not path.is_file():
            raise WeightFileError(f"There is no class map {source!r}; shipped with the library: {', '.join(_SHIPPED)}.")
        try:
            values = load_yaml(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise WeightFileError(f"{source} is not a readable class map: {error}") from error
    if not isinstance(values, Mapping) or not values:
        raise WeightFileError(f"{source} must map class names to indices, as in {{aeroplane: 5, bicycle: 2}}.")
    for name, index in values.items():
        if not isinstance(name, str) or type(index) is not int or index < 1:
            raise WeightFileError(f"{source}: {name!r}: {index!r} is not a class name and an index from 1.")
    return dict(values)


def fit_classes(model: RefineDet, weights: Weights, class_map: dict[str, int] | None, source: str) -> FittedClasses:
    """Fits the class heads of a file to the classes of a model.

    Rows are taken by the map if there is one, else by name if the file has names, else as they are if the file has as
    many classes as the model. Otherwise the class heads are left out. Rows without a source keep the model's values.

    Args:
        model: the model; it is not changed.
        weights: the content of the file.
        class_map: from `read_class_map`.
        source: path or name of the weights, for messages.

    Returns:
        The weights for the model, and how classes were mapped.

    Raises:
        WeightFileError: the file has no class heads to map, or the map names none of the model's classes or an index
            that the file does not have.
    """
    variables = {name: value for name, value in named_variables(model).items() if _CLASS_VARIABLE.fullmatch(name)}
    heads = [name for name in variables if name in weights.arrays]
    counts = {weights.arrays[name].shape[-1] // ANCHORS_PER_CELL for name in heads if weights.arrays[name].ndim}
    if not heads and class_map:
        raise WeightFileError(f"{source} ({weights.family}) has no class heads, so a class map cannot apply.")
    if len(counts) != 1:  # no heads, or heads that disagree, whose shapes cannot all fit
        return FittedClasses(weights)
    count = counts.pop()
    if count < 2:  # no class at all, which `assign` reports
        return FittedClasses(weights)
    classes = list(model.config.classes)
    if class_map is None and weights.classes is None and count == 1 + len(classes):
        return FittedClasses(weights, lines=[f"{len(classes)} classes in the order of the file, which has no names"])
    if class_map is None and weights.classes == classes:
        return FittedClasses(weights)

    rows = [0, *(_row(name, class_map, weights.classes) for name in classes)]
    if not any(rows):
        if class_map:
            raise WeightFileError(f"The class map names none of the model's classes {', '.join(classes)}.")
        line = f"class heads left out: the file has {count - 1} classes, the model {len(classes)}"
        return FittedClasses(weights, list(variables), [line + "; a class map would carry classes over"])
    beyond = {name: row for name, row in zip(classes, rows[1:], strict=True) if row is not None and row >= count}
    if beyond:
        listed = ", ".join(f"{name}: {row}" for name, row in beyond.items())
        raise WeightFileError(f"{source} has {count - 1} classes; the class map asks for {listed}.")

    arrays, transforms = dict(weights.arrays), dict(weights.transforms)
    for name in heads:
        if arrays[name].shape[-1] == count * ANCHORS_PER_CELL:
            arrays[name] = map_rows(arrays[name], variables[name].numpy(), rows)
            transforms[name] = ", ".join(filter(None, (transforms.get(name), MAPPED)))
    return FittedClasses(
        replace(weights, arrays=arrays, transforms=transforms),
        lines=[_line(name, row, weights.classes) for name, row in zip(["background", *classes], rows, strict=True)],
    )


def map_rows(array: np.ndarray, current: np.ndarray, rows: list[int | None]) -> np.ndarray:
    """Reorders the classes of every anchor.

    Args:
        array: the file's, `[..., 3 * source]`: the classes of the first anchor, of the second, of the third.
        current: the model's, `[..., 3 * len(rows)]`.
        rows: for each of the model's classes its index in the file, or None to keep the current values.

    Returns:
        `[..., 3 * len(rows)]`.
    """
    if array.shape[:-1] != current.shape[:-1]:
        return array  # of another width, which `assign` reports
    source = array.reshape(*array.shape[:-1], ANCHORS_PER_CELL, -1)
    result = current.reshape(*current.shape[:-1], ANCHORS_PER_CELL, len(rows)).copy()
    for index, row in enumerate(rows):
        if row is not None:
            result[..., index] = source[..., row]
    return result.reshape(current.shape)


def _row(name: str, class_map: dict[str, int] | None, source_classes: list[str] | None) -> int | None:
    if class_map:
        return class_map.get(name)
    return source_classes.index(name) + 1 if source_classes and name in source_classes else None


def _line(name: str, row: int | None, source_classes: list[str] | None) -> str:
    if row is None:
        return f"{name}: not in the file, unchanged"
    known = source_classes is not None and row > 0
    return f"{name} <- {row}" + (f" ({source_classes[row - 1]})" if known else "")
