"""From predictions for a data set to its average precision."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from refinedet_tf.data.examples import Example
from refinedet_tf.evaluation.voc import ImageDetections, ImageTruth, VocResult, voc_average_precision


def evaluate(
    predict: Callable[[tf.data.Dataset], dict[str, np.ndarray]],
    examples: Sequence[Example],
    classes: Sequence[str],
    images: tf.data.Dataset,
) -> VocResult:
    """VOC average precision of a model's detections.

    The coordinates are those of the authors' test script. A VOC annotation counts pixels from 1, and the readers
    divide it by the image size as it is, so relative * size is the annotation again. A detection is scaled by the size
    and clipped to pixels counted from 0 (`detections_to_images`), and then written counted from 1, which puts
    it one pixel to the lower right of what the model learned. Published figures include this shift, and so do these;
    at an IoU of 0.5 it matters to tiny objects only.

    Args:
        predict: such as `model.predict`: a dataset of image batches in, the detections of all images out, as
            `detections_to_images` takes them.
        examples: the images' annotations.
        classes: the names of the classes, by index.
        images: batches of resized images, in the order of `examples`, each once.

    Returns:
        The average precision of each class.

    Raises:
        ValueError: there are not as many predictions as examples.
    """
    sizes = [(example.height, example.width) for example in examples]
    counted_from_1 = [
        ImageDetections(image.boxes + 1, image.scores, image.classes)
        for image in detections_to_images(predict(images), sizes)
    ]
    return voc_average_precision(counted_from_1, examples_to_truths(examples), classes)


def detections_to_images(detections: dict[str, np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[ImageDetections]:
    """Takes a model's detections apart, in pixels of the original images.

    Args:
        detections: `boxes` [n, k, 4], relative (xmin, ymin, xmax, ymax), `scores` [n, k], `classes` [n, k] and
            `num_detections` [n]; what lies beyond the number of detections is padding.
        sizes: (height, width) of each of the n original images.

    Returns:
        The detections of each image; x is clipped to [0, width - 1] and y to [0, height - 1].

    Raises:
        ValueError: n is not the number of sizes.
    """
    detections = {key: np.asarray(values) for key, values in detections.items()}
    counts = detections["num_detections"]
    if len(counts) != len(sizes):
        raise ValueError(
            f"Predictions for {len(counts)} images but {len(sizes)} examples; "
            "predict every example once, and drop no remainder of a batch."
        )
    images = []
    for index, (height, width) in enumerate(sizes):
        valid = slice(int(counts[index]))
        boxes = detections["boxes"][index, valid].astype(np.float64) * ((width, height) * 2)
        boxes = np.clip(boxes, 0, (width - 1, height - 1) * 2)
        images.append(ImageDetections(boxes, detections["scores"][index, valid], detections["classes"][index, valid]))
    return images


def examples_to_truths(examples: Sequence[Example]) -> list[ImageTruth]:
    """The annotations in pixels of the original images, as they stood in the annotation file.

    Crowds count as difficult: they need not be found, and what is found in them is no error.
    """
    return [
        ImageTruth(
            boxes=np.asarray(example.boxes, np.float64) * ((example.width, example.height) * 2),
            classes=np.asarray(example.classes),
            difficult=np.asarray(example.difficult | example.crowd, bool),
        )
        for example in examples
    ]
