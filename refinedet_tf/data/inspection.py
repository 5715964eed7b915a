"""Describes a data set and lists its problems before training."""

import hashlib
import io
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from refinedet_tf.config import Config
from refinedet_tf.data.examples import Defect, Example, ExampleSet
from refinedet_tf.ops.anchors import generate_anchors
from refinedet_tf.ops.boxes import pairwise_iou
from refinedet_tf.ops.images import exif_orientation
from refinedet_tf.ops.resizing import Resizing

COVERAGE_IOU = 0.5
SIZE_BOUNDS = (16, 32, 64, 128, 256)  # sides of boxes in pixels of the model's input
EXTENSIONS = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",), "GIF": (".gif",), "BMP": (".bmp",)}
SHOWN_DEFECTS = 3  # of each kind, in the text


def inspect_data(sets: Mapping[str, ExampleSet], config: Config) -> dict[str, Any]:
    """Describes splits of a data set.

    Args:
        sets: the examples of each split.
        config: the recipe, for input size, anchors and boxes per image.

    Returns:
        A dict of plain values for JSON: `splits` with counts, sizes and anchor coverage of each split; `errors`, which
        lose data or falsify results, and `notes`, which do not, both as lists of `where` and `what`.
    """
    errors, notes, digests = [], [], {}
    for split, example_set in sets.items():
        errors += example_set.defects
        errors += _duplicate_boxes(example_set)
        notes += example_set.notes
        notes += _too_many_boxes(example_set, config.data.max_boxes)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            files = list(pool.map(_inspect_file, example_set.examples))
        notes += [note for _, file_notes in files for note in file_notes]
        digests[split] = [digest for digest, _ in files]
    twice, shared = _repeated_images(sets, digests)
    return {
        "splits": {split: _describe(example_set, config) for split, example_set in sets.items()},
        "errors": [asdict(defect) for defect in errors + shared],
        "notes": [asdict(defect) for defect in notes + twice],
    }


def as_text(report: Mapping[str, Any]) -> str:
    """Formats the report of `inspect_data` as text."""
    lines = []
    for split, values in report["splits"].items():
        lines += [
            f"{split}: {values['images']} images ({values['images_without_boxes']} without boxes), "
            f"{values['boxes']} boxes ({values['difficult']} difficult, {values['crowd']} crowds)",
            "  boxes per class: " + ", ".join(f"{name} {n}" for name, n in values["boxes_per_class"].items()),
            "  image sizes: " + ", ".join(f"{n} x {size}" for size, n in values["image_sizes"].items()),
            "  boxes per image: " + ", ".join(f"{key} {n:g}" for key, n in values["boxes_per_image"].items()),
            f"  boxes that an anchor reaches at IoU {COVERAGE_IOU}, by side at the model's input:",
        ]
        lines += [
            f"    {row['pixels']:>8}: {row['reached']} of {row['boxes']} ({row['reached'] / row['boxes']:.1%})"
            for row in values["anchor_coverage"]
            if row["boxes"]
        ]
    for title in ("errors", "notes"):
        lines.append(f"{title}: {len(report[title]) or 'none'}")
        kinds = defaultdict(list)
        for defect in report[title]:
            kinds[defect["what"].split(":")[0]].append(defect)
        for kind, defects in kinds.items():
            lines.append(f"  {len(defects)} x {kind}")
            lines += [f"    {defect['where']}{defect['what'][len(kind) :]}" for defect in defects[:SHOWN_DEFECTS]]
            if len(defects) > SHOWN_DEFECTS:
                lines.append("    ...")
    return "\n".join(lines)


def anchor_coverage(boxes: np.ndarray, input_size: Sequence[int], anchor_sizes: Sequence[float]) -> np.ndarray:
    """Returns the best IoU of each box with any anchor.

    A box below the matching threshold still gets its best anchor (step 1 of `ops.matching.match`), but no other.

    Args:
        boxes: float32 `[n, 4]`, relative.
        input_size: height and width of the model's input in pixels.
        anchor_sizes: as in the recipe.

    Returns:
        float32 `[n]`.
    """
    anchors = generate_anchors(input_size, anchor_sizes)
    batches = np.split(boxes, range(256, len(boxes), 256))
    return np.concatenate([pairwise_iou(batch, anchors).numpy().max(axis=1) for batch in batches])


def _describe(example_set: ExampleSet, config: Config) -> dict[str, Any]:
    examples = example_set.examples
    counts = [len(example.classes) for example in examples]
    classes = np.concatenate([example.classes for example in examples])
    of_class = np.bincount(classes, minlength=len(example_set.classes))
    sizes = Counter(f"{example.width} x {example.height}" for example in examples).most_common()
    shown = dict(sizes[:5])
    if len(sizes) > 5:
        shown["other sizes"] = sum(count for _, count in sizes[5:])
    return {
        "images": len(examples),
        "images_without_boxes": counts.count(0),
        "boxes": sum(counts),
        "difficult": sum(int(example.difficult.sum()) for example in examples),
        "crowd": sum(int(example.crowd.sum()) for example in examples),
        "boxes_per_class": dict(zip(example_set.classes, of_class.tolist(), strict=True)),
        "image_sizes": shown,
        "boxes_per_image": {
            "min": min(counts),
            "median": float(np.median(counts)),
            "mean": round(float(np.mean(counts)), 2),
            "max": max(counts),
        },
        "anchor_coverage": _coverage_by_size(examples, config),
    }


def _coverage_by_size(examples: Sequence[Example], config: Config) -> list[dict[str, Any]]:
    """Counts boxes (without crowds) by size, and how many of them an anchor reaches."""
    height, width = config.model.input_size
    resizing = Resizing(height, width, config.model.resize)
    boxes = np.concatenate(
        [
            resizing.boxes_to_input(example.boxes[~example.crowd], (example.height, example.width))
            for example in examples
        ]
    )
    reached = anchor_coverage(boxes, (height, width), config.model.anchor_sizes) >= COVERAGE_IOU
    sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * width * (boxes[:, 3] - boxes[:, 1]) * height)
    ranges = np.digitize(sides, SIZE_BOUNDS)
    between = [f"{low}-{high}" for low, high in itertools.pairwise(SIZE_BOUNDS)]
    names = [f"< {SIZE_BOUNDS[0]}", *between, f">= {SIZE_BOUNDS[-1]}"]
    rows = [(name, ranges == index) for index, name in enumerate(names)] + [("all", np.ones(len(boxes), bool))]
    return [{"pixels": name, "boxes": int(of.sum()), "reached": int((of & reached).sum())} for name, of in rows]


def _duplicate_boxes(example_set: ExampleSet) -> Iterable[Defect]:
    for example in example_set.examples:
        objects = Counter(zip(example.classes.tolist(), *example.boxes.T.tolist(), strict=True))
        for (index, *_), count in objects.items():
            if count > 1:
                what = f"repeated box: {example_set.classes[index]} {count} times"
                yield Defect(f"{example.image_path}, image {example.image_id}", what)


def _too_many_boxes(example_set: ExampleSet, max_boxes: int) -> Iterable[Defect]:
    for example in example_set.examples:
        count = int((~example.crowd).sum())
        if count > max_boxes:
            what = f"more than data.max_boxes = {max_boxes} boxes, training uses the first: {count}"
            yield Defect(f"{example.image_path}, image {example.image_id}", what)


def _inspect_file(example: Example) -> tuple[str, list[Defect]]:
    """Returns a hash of the encoded image, and notes on its format."""
    contents = example.read_image()
    where = f"{example.image_path}, image {example.image_id}"
    notes = []
    try:
        with Image.open(io.BytesIO(contents)) as image:  # reads the header only
            orientation = exif_orientation(image.info.get("exif", b""))
            if orientation != 1:
                notes.append(Defect(where, f"EXIF orientation, image and boxes are upright: {orientation}"))
            if image.mode not in ("RGB", "P"):
                notes.append(Defect(where, f"not RGB, converted: {image.mode}"))
            extension = os.path.splitext(example.image_path)[1].lower()
            if example.part is None and extension not in EXTENSIONS.get(image.format, (extension,)):
                notes.append(Defect(where, f"file format differs from the name: {image.format}"))
    except UnidentifiedImageError:
        pass  # TensorFlow can decode it
    return hashlib.sha256(contents).hexdigest(), notes


def _repeated_images(
    sets: Mapping[str, ExampleSet], digests: Mapping[str, Sequence[str]]
) -> tuple[list[Defect], list[Defect]]:
    """Finds identical files: within a split, and in two splits, which makes evaluation results too good."""
    places = defaultdict(list)
    for split, example_set in sets.items():
        for example, digest in zip(example_set.examples, digests[split], strict=True):
            places[digest].append((split, f"{split}: {example.image_path}, image {example.image_id}"))
    twice, shared = [], []
    for found in places.values():
        (split, where), *others = found
        if {other for other, _ in others} - {split}:
            elsewhere = ", ".join(place for other, place in others if other != split)
            shared.append(Defect(where, f"identical image in two splits: {elsewhere}"))
        elif others:
            twice.append(Defect(where, f"identical image: {', '.join(place for _, place in others)}"))
    return twice, shared
