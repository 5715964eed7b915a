"""From raw predictions of a batch to detections in the form that `RefineDet.detect` returns."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from refinedet_tf.inference.numpy_decoder import decode_detections
from refinedet_tf.serving.outputs import raw_predictions

PADDING = {"boxes": 0, "scores": 0, "classes": -1}


def decode_batch(
    outputs: Mapping[str, np.ndarray], anchors: Sequence[np.ndarray], settings: dict[str, Any]
) -> dict[str, tf.Tensor]:
    """Decodes and suppresses with NumPy, one image after the other.

    Args:
        outputs: raw predictions `[b, n, ...]`; other entries are ignored.
        anchors: of each image, `[n, 4]`.
        settings: as an exported file carries them.

    Returns:
        `boxes` `[b, k, 4]`, `scores` `[b, k]`, `classes` `[b, k]` and `num_detections` `[b]`, k being `max_detections`.
    """
    predictions = {name: np.asarray(value) for name, value in raw_predictions(outputs).items()}
    found = [
        decode_detections({name: value[row] for name, value in predictions.items()}, anchors[row], settings)
        for row in range(len(anchors))
    ]
    return pad_detections(found, settings["max_detections"])


def pad_detections(images: Sequence[dict[str, np.ndarray]], length: int) -> dict[str, tf.Tensor]:
    """Pads the detections of images, each with its own number of them, to a batch.

    Args:
        images: for each image `boxes` `[m, 4]`, `scores` `[m]` and `classes` `[m]`, with m at most `length`.
        length: rows of each image in the batch.
    """
    batch = {
        name: tf.stack([
            np.pad(image[name], [(0, length - len(image[name]))] + [(0, 0)] * (image[name].ndim - 1),
                   constant_values=padding)
            for image in images
        ])
        for name, padding in PADDING.items()
    }  # fmt: skip
    return {**batch, "num_detections": tf.constant([len(image["scores"]) for image in images], tf.int32)}
