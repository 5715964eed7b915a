"""Writes a recipe for a data set: classes, input size, anchor sizes, batch, epochs and schedule."""

import math
import os
from collections.abc import Sequence

import numpy as np
import yaml

from refinedet_tf.data.examples import ExampleSet
from refinedet_tf.data.inspection import anchor_coverage
from refinedet_tf.data.readers import read_data
from refinedet_tf.errors import DataError
from refinedet_tf.ops.anchors import ASPECT_RATIOS, STRIDES

PAPER_SIZES = [4.0 * stride for stride in STRIDES]
WANTED_COVERAGE = 0.95
REACHED = 0.5  # the IoU of matching
SMALL = 16  # pixels; at 320 x 320 the smallest anchors of the paper are 32
SEARCHED_BOXES = 4000
IMAGES_ON_CPU, IMAGES_ON_GPUS = 12_000, 600_000  # images that a training sees; about 40 epochs of 300 images on CPUs
# What a training starts from. On CPUs it is the pretrained detector, so the network has to be the same.
ON_CPU = {
    "backbone": "{name: efficientnet_lite0, frozen_stages: 2}",
    "width": 96,
    "learning_rate": 5e-4,
    "weights": "voc-lite0-320  # comes with the package",
}
ON_GPUS = {
    "backbone": "{name: resnet101}",
    "width": 256,
    "learning_rate": 1e-3,
    "weights": "imagenet  # of keras.applications, a download",
}

_TEMPLATE = """\
# {data_dir}: {images} training images, {boxes} objects.
model:
  classes: {classes}
  input_size: [{size}, {size}]  # {size_reason}
  backbone: {backbone}
  width: {width}
  batch_norm: true
  # Anchors of these sizes reach {coverage:.3f} of the training boxes at IoU 0.5; those of the paper, {paper:.3f}.
  anchor_sizes: {anchors}
data:
  format: {data_format}
  train_splits: {train_splits}
  val_splits: {val_splits}
  max_boxes: {max_boxes}  # the fullest training image has {fullest}
train:
  # {device}.
  epochs: {epochs}
  batch_size: {batch_size}
  optimizer: adam
  learning_rate: {learning_rate}
  schedule: cosine
  warmup_steps: {warmup_steps}
  weight_decay: 1.0e-4
  clip_norm: 10.0
  evaluate_every: {evaluate_every}
  weights: {weights}
"""


def new_recipe(
    data_format: str,
    data_dir: str | os.PathLike,
    train_splits: Sequence[str],
    val_splits: Sequence[str],
    *,
    gpus: int,
) -> str:
    """Looks at a data set and returns a recipe for it, as YAML with the reasons.

    Args:
        data_format: one of `config.DATA_FORMATS`.
        data_dir: the data set.
        train_splits: the splits to train on.
        val_splits: the splits to evaluate on.
        gpus: the number of GPUs to train on; 0 for CPUs.

    Raises:
        DataError: the data cannot be read, or no training image has an object.
    """
    train_set = read_data(data_format, data_dir, train_splits, None)
    read_data(data_format, data_dir, val_splits, train_set.classes)
    boxes = np.concatenate([example.boxes[~example.crowd] for example in train_set.examples])
    if not len(boxes):
        raise DataError(f"{os.fspath(data_dir)}: no training image has an object.")
    size, size_reason = _input_size(train_set, boxes)
    anchors = fit_anchors(boxes, size)
    fullest = max(int((~example.crowd).sum()) for example in train_set.examples)
    images = len(train_set)
    batch_size = min(32 * gpus if gpus else 8, 2 ** int(math.log2(images)))
    epochs = int(np.clip(round((IMAGES_ON_GPUS if gpus else IMAGES_ON_CPU) / images), 12, 300))
    steps = epochs * (images // batch_size)
    return _TEMPLATE.format(
        data_dir=os.fspath(data_dir),
        images=images,
        boxes=len(boxes),
        classes=_flow(train_set.classes),
        size=size,
        size_reason=size_reason,
        **(ON_GPUS if gpus else ON_CPU),
        coverage=coverage(boxes, size, anchors),
        paper=coverage(boxes, size, PAPER_SIZES),
        anchors=_flow([float(anchor) for anchor in anchors]),
        data_format=data_format,
        train_splits=_flow(list(train_splits)),
        val_splits=_flow(list(val_splits)),
        max_boxes=int(np.clip(10 * math.ceil(1.2 * fullest / 10), 10, 300)),
        fullest=fullest,
        device=f"For {gpus} GPU{'s' * (gpus > 1)}" if gpus else "For CPUs",
        epochs=epochs,
        batch_size=batch_size,
        warmup_steps=min(500, max(1, steps // 20)),
        evaluate_every=max(1, epochs // 10),
    )


def coverage(boxes: np.ndarray, size: int, anchors: Sequence[float]) -> float:
    """Returns the share of boxes that an anchor overlaps by an IoU of at least 0.5."""
    return float((anchor_coverage(boxes, (size, size), anchors) >= REACHED).mean())


def fit_anchors(boxes: np.ndarray, size: int) -> list[float]:
    """Returns four anchor sizes that reach as many boxes as possible: the paper's if they reach 0.95 of them.

    Anchors of a box are those of the nearest cell of each level, which is right but for boxes at the border.

    Args:
        boxes: float32 `[n, 4]`, relative to the image.
        size: side of the input in pixels.

    Returns:
        The sides in pixels at strides 8, 16, 32, 64, ascending.
    """
    if coverage(boxes, size, PAPER_SIZES) >= WANTED_COVERAGE:
        return PAPER_SIZES
    if len(boxes) > SEARCHED_BOXES:
        boxes = boxes[np.linspace(0, len(boxes) - 1, SEARCHED_BOXES).astype(int)]
    candidates = [stride * 2.0 ** (np.arange(-2, 17) / 4) for stride in STRIDES]
    overlaps = [
        np.stack([_nearest_overlap(boxes * size, stride, side, size) for side in sides])
        for stride, sides in zip(STRIDES, candidates, strict=True)
    ]
    chosen = [8 + 2] * len(STRIDES)  # the paper's: 4 x stride
    best = (-1.0, -1.0)
    improved = True
    while improved:  # one level at a time, until none can be bettered
        improved = False
        for level in range(len(STRIDES)):
            for place in range(len(candidates[level])):
                trial = [*chosen[:level], place, *chosen[level + 1 :]]
                reach = np.max([overlaps[k][p] for k, p in enumerate(trial)], axis=0)
                score = ((reach >= REACHED).mean(), reach.mean())
                if score > best:
                    best, chosen, improved = score, trial, True
    return [float(round(candidates[level][place])) for level, place in enumerate(chosen)]


def _nearest_overlap(boxes: np.ndarray, stride: int, side: float, size: int) -> np.ndarray:
    """The best IoU of each box, in pixels, with the anchors of the cell nearest to its center."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    cells = (np.clip(np.floor(centers / stride), 0, size // stride - 1) + 0.5) * stride
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    best = np.zeros(len(boxes))
    for ratio in ASPECT_RATIOS:
        half = np.array([side * math.sqrt(ratio), side / math.sqrt(ratio)]) / 2
        sides = np.minimum(boxes[:, 2:], cells + half) - np.maximum(boxes[:, :2], cells - half)
        shared = np.prod(np.maximum(sides, 0), axis=1)
        best = np.maximum(best, shared / (areas + side**2 - shared))
    return best


def _input_size(train_set: ExampleSet, boxes: np.ndarray) -> tuple[int, str]:
    """512 if many objects would be too small at 320 and the images have the detail, else 320."""
    sides = 320 * np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    share = float((sides < SMALL).mean())
    detailed = np.median([max(example.height, example.width) for example in train_set.examples]) > 320
    if share > 0.25 and detailed:
        return 512, f"{share:.2f} of the objects would be smaller than {SMALL} pixels at 320"
    return 320, f"{share:.2f} of the objects are smaller than {SMALL} pixels"


def _flow(values: list) -> str:
    """A list in YAML on one line."""
    return yaml.safe_dump(values, default_flow_style=True, width=10**9, allow_unicode=True).strip()
