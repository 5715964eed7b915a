"""Detections and ground truth of images, in the form that all metrics take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from refinedet_tf.data.examples import Example


@dataclass(frozen=True)
class ImageDetections:
    """The detections of one image.

    Attributes:
        boxes: float `[k, 4]`, (xmin, ymin, xmax, ymax) in pixels of the original image.
        scores: float `[k]`.
        classes: int `[k]`, from 0.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def __post_init__(self) -> None:
        _check_lengths(self, "scores", "classes")


@dataclass(frozen=True)
class ImageTruth:
    """The annotated objects of one image.

    Attributes:
        boxes: float `[m, 4]`, (xmin, ymin, xmax, ymax) in pixels of the original image.
        classes: int `[m]`, from 0.
        difficult: bool `[m]`; such objects need not be found, and finding them is not an error.
        areas: float `[m]`, square pixels, by which COCO calls an object small, medium or large; None takes the area of
            the box.
        ignored: float `[n, 4]`, boxes of objects of no class, in pixels; detections of any class there are not errors.
    """

    boxes: np.ndarray
    classes: np.ndarray
    difficult: np.ndarray
    areas: np.ndarray | None = None
    ignored: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))

    def __post_init__(self) -> None:
        _check_lengths(self, "classes", "difficult")


def check_images(detections: Sequence[ImageDetections], truths: Sequence[ImageTruth], class_count: int) -> None:
    """Checks that detections and ground truth can be compared.

    Raises:
        ValueError: there are no images, the two differ in length, or a class index is out of range.
    """
    if len(detections) != len(truths):
        raise ValueError(
            f"{len(detections)} images with detections but {len(truths)} with ground truth; "
            "give both for the same images, in the same order."
        )
    if not len(truths):
        raise ValueError("There is no image to evaluate.")
    for what, images in (("detection", detections), ("ground truth", truths)):
        indices = np.concatenate([image.classes for image in images])
        unknown = indices[(indices < 0) | (indices >= class_count)]
        if len(unknown):
            raise ValueError(
                f"A {what} has class {int(unknown[0])}, but there are {class_count} classes (0 to {class_count - 1})."
            )


def detections_to_images(
    detections: Mapping[str, np.ndarray], sizes: Sequence[tuple[int, int]]
) -> list[ImageDetections]:
    """Splits a model's detections by image and scales them to pixels.

    Args:
        detections: `boxes` `[n, k, 4]`, relative (xmin, ymin, xmax, ymax), `scores` `[n, k]`, `classes` `[n, k]` and
            `num_detections` `[n]`. Rows beyond the number of detections are padding.
        sizes: (height, width) of each of the n original images.

    Returns:
        The detections of each image, not clipped.

    Raises:
        ValueError: n differs from the number of sizes.
    """
    detections = {key: np.asarray(values) for key, values in detections.items()}
    counts = detections["num_detections"]
    if len(counts) != len(sizes):
        raise ValueError(
            f"Predictions for {len(counts)} images but {len(sizes)} examples; "
            "predict every example once, and do not drop the remainder of a batch."
        )
    images = []
    for index, (height, width) in enumerate(sizes):
        valid = slice(int(counts[index]))
        boxes = detections["boxes"][index, valid].astype(np.float64) * ((width, height) * 2)
        images.append(ImageDetections(boxes, detections["scores"][index, valid], detections["classes"][index, valid]))
    return images


def examples_to_truths(examples: Sequence[Example]) -> list[ImageTruth]:
    """Returns the annotations in pixels of the original images, as the annotation file has them.

    Crowds count as difficult: they need not be found, and detections in them are not errors. The same holds for
    detections of any class on ignored objects.
    """
    return [_to_truth(example) for example in examples]


def clip_boxes(image: ImageDetections, right: float, bottom: float, offset: float = 0.0) -> ImageDetections:
    """Clips x to [0, right] and y to [0, bottom], then adds an offset to all coordinates."""
    return ImageDetections(np.clip(image.boxes, 0, (right, bottom) * 2) + offset, image.scores, image.classes)


def _to_truth(example: Example) -> ImageTruth:
    size = (example.width, example.height) * 2
    boxes = np.asarray(example.boxes, np.float64) * size
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    if example.areas is not None:
        areas = np.where(np.isnan(example.areas), areas, example.areas)
    return ImageTruth(
        boxes=boxes,
        classes=np.asarray(example.classes),
        difficult=np.asarray(example.difficult | example.crowd, bool),
        areas=areas,
        ignored=np.asarray(example.ignored, np.float64) * size,
    )


def _check_lengths(image: ImageDetections | ImageTruth, *names: str) -> None:
    count = len(image.boxes)
    if np.shape(image.boxes) != (count, 4):
        raise ValueError(f"boxes has shape {np.shape(image.boxes)}; it must be [{count}, 4].")
    for name in names:
        if np.shape(getattr(image, name)) != (count,):
            raise ValueError(f"{name} has shape {np.shape(getattr(image, name))} for {count} boxes.")
