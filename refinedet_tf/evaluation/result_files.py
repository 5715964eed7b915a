"""Reads and writes detections as files: the VOC server's, COCO's, and those of `refinedet detect`."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from refinedet_tf.data.examples import Example, ExampleSet
from refinedet_tf.errors import DataError
from refinedet_tf.evaluation.images import ImageDetections, clip_boxes


def write_voc_results(folder: str | os.PathLike, detections: Sequence[ImageDetections], data: ExampleSet) -> None:
    """Writes the files that the VOC server takes, `comp4_det_test_CLASS.txt`.

    A line has the image id, the score and xmin, ymin, xmax, ymax in pixels counted from 1, with six decimals.

    Args:
        folder: is made if missing; files in it are replaced.
        detections: of each image, in pixels.
        data: the images.
    """
    lines = {name: [] for name in data.classes}
    for found, example in zip(detections, data.examples, strict=True):
        image_id = os.path.basename(example.image_id)
        found = clip_boxes(found, example.width - 1, example.height - 1, offset=1)
        for box, score, label in zip(found.boxes, found.scores, found.classes, strict=True):
            numbers = " ".join(f"{value:.6f}" for value in (score, *box))
            lines[data.classes[label]].append(f"{image_id} {numbers}\n")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in lines.items():
        (folder / f"comp4_det_test_{name}.txt").write_text("".join(rows), encoding="utf-8")


def write_coco_results(path: str | os.PathLike, detections: Sequence[ImageDetections], data: ExampleSet) -> None:
    """Writes COCO's result JSON, with the data set's own image and category ids.

    Boxes are (x, y, width, height) in pixels, clipped to the image. Image ids of digits are written as numbers;
    categories of data without ids are numbered from 1 in alphabetical order.

    Args:
        path: the file.
        detections: of each image, in pixels.
        data: the images.
    """
    category_ids = _category_ids(data)
    results = []
    for found, example in zip(detections, data.examples, strict=True):
        image_id = _coco_image_id(example)
        found = clip_boxes(found, example.width, example.height)
        boxes = np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], axis=1)
        for box, score, label in zip(boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True):
            results.append(
                {
                    "image_id": image_id,
                    "category_id": category_ids[label],
                    "bbox": [round(value, 3) for value in box],
                    "score": score,
                }
            )
    Path(path).write_text(json.dumps(results), encoding="utf-8")


def read_detections(path: str | os.PathLike, data: ExampleSet) -> list[ImageDetections]:
    """Reads saved detections of labeled images.

    Args:
        path: the `detections.json` of `refinedet detect`, or COCO's result JSON of any detector. The former names
            images by file, the latter by the data set's ids.
        data: the images.

    Returns:
        The detections of each image, in pixels, in the order of the examples.

    Raises:
        DataError: the file is neither, does not belong to these images, or has classes that the data lack.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        is_coco = isinstance(content, list)
        entries = list(_coco_entries(content, data) if is_coco else _own_entries(content, data))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} is neither a detections.json of `refinedet detect` nor COCO's result JSON: "
            f"{type(error).__name__}: {error}."
        ) from error
    places = _places(data.examples, by_file=not is_coco)
    by_image: list[list[tuple]] = [[] for _ in data.examples]
    unknown, seen = [], set()
    for key, rows in entries:
        if key in places:
            seen.add(places[key])
            by_image[places[key]] += rows
        else:
            unknown.append(key)
    if unknown and (is_coco or not seen):
        raise DataError(f"{path} has detections of image {unknown[0]!r}, which is not among the {len(data)} images.")
    if unknown:
        logging.info("%s: detections of %d other images are not used.", path, len(unknown))
    missing = [example.image_id for index, example in enumerate(data.examples) if index not in seen]
    if missing and not is_coco:  # COCO's format does not list images without detections
        raise DataError(f"{path} lacks {len(missing)} of the {len(data)} images, {missing[0]} for one.")
    return [_to_detections(rows) for rows in by_image]


def _category_ids(data: ExampleSet) -> list[int]:
    if data.category_ids is not None:
        return data.category_ids
    # By name: a model may have the classes in another order than the data.
    numbers = {name: number for number, name in enumerate(sorted(data.classes), start=1)}
    return [numbers[name] for name in data.classes]


def _coco_image_id(example: Example) -> int | str:
    return int(example.image_id) if example.image_id.isdecimal() else example.image_id


def _coco_entries(content: list[dict[str, Any]], data: ExampleSet) -> Iterator[tuple[str, list[tuple]]]:
    labels = {category_id: index for index, category_id in enumerate(_category_ids(data))}
    for entry in content:
        x, y, width, height = map(float, entry["bbox"])
        if entry["category_id"] not in labels:
            raise DataError(
                f"Category id {entry['category_id']} of the detections is not in the data, which have {sorted(labels)}."
            )
        row = ([x, y, x + width, y + height], float(entry["score"]), labels[entry["category_id"]])
        yield str(entry["image_id"]), [row]


def _own_entries(content: dict[str, Any], data: ExampleSet) -> Iterator[tuple[str, list[tuple]]]:
    labels = {name: index for index, name in enumerate(data.classes)}
    for image in content["images"]:
        rows = []
        for entry in image["detections"]:
            if entry["class"] not in labels:
                raise DataError(f"Class {entry['class']!r} of the detections is not in the data: {', '.join(labels)}.")
            box = [float(value) for value in entry["box"]]
            rows.append((box, float(entry["score"]), labels[entry["class"]]))
        yield Path(image["file"]).stem, rows


def _places(examples: Sequence[Example], *, by_file: bool) -> dict[str, int]:
    """Returns the index of each example by its id, or by the name of its file without extension."""
    places: dict[str, int] = {}
    for index, example in enumerate(examples):
        # A record file holds many images, which only their ids tell apart.
        file = example.image_path if example.part is None else example.image_id
        key = Path(file).stem if by_file else str(_coco_image_id(example))
        if key in places:
            raise DataError(f"Two images are named {key}; evaluate saved detections on one folder of images at a time.")
        places[key] = index
    return places


def _to_detections(rows: list[tuple]) -> ImageDetections:
    boxes, scores, classes = zip(*rows, strict=True) if rows else ([], [], [])
    if not all(math.isfinite(value) for box in boxes for value in box) or not all(map(math.isfinite, scores)):
        raise DataError("A saved detection has a box or score that is not a finite number.")
    order = np.argsort(-np.array(scores, float), kind="stable")
    return ImageDetections(
        np.array(boxes, float).reshape(-1, 4)[order], np.array(scores, float)[order], np.array(classes, int)[order]
    )
