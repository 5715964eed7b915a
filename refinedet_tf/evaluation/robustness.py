"""Average precision on images that are made worse: JPEG compression, blur, brightness, half resolution."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from refinedet_tf.data.examples import ExampleSet
from refinedet_tf.evaluation.evaluator import Predictor, evaluate
from refinedet_tf.evaluation.tables import decimals, or_none, text_table
from refinedet_tf.ops.resizing import resize_bilinear


@dataclass(frozen=True)
class RobustnessRow:
    """Average precision on images that were made worse in one way.

    Attributes:
        name: the way.
        ap_11_point: as in `EvaluationResult`.
        ap_area: likewise.
        coco_ap: likewise.
    """

    name: str
    ap_11_point: float
    ap_area: float
    coco_ap: float

    def as_dict(self) -> dict[str, Any]:
        """Returns the row for JSON."""
        figures = ("ap_11_point", "ap_area", "coco_ap")
        return {"name": self.name, **{figure: or_none(getattr(self, figure)) for figure in figures}}


def compress(image: tf.Tensor, quality: int) -> tf.Tensor:
    """Encodes an image, uint8 `[h, w, 3]`, as JPEG of a quality from 0 to 100 and decodes it."""
    encoded = tf.io.encode_jpeg(image, quality=quality, chroma_downsampling=True)
    return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")


def blur(image: tf.Tensor, sigma: float) -> tf.Tensor:
    """Blurs an image, uint8 `[h, w, 3]`, with a Gaussian of a standard deviation in pixels."""
    radius = int(np.ceil(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = tf.constant(weights / weights.sum(), tf.float32)
    x = tf.cast(image, tf.float32)
    for axis in range(2):
        # Borders are repeated: positions outside take the nearest pixel.
        length = tf.shape(x)[axis]
        places = tf.clip_by_value(tf.range(length)[:, tf.newaxis] + tf.range(-radius, radius + 1), 0, length - 1)
        windows = tf.gather(x, places, axis=axis)
        x = tf.tensordot(windows, kernel, [[axis + 1], [0]])
    return tf.cast(tf.round(x), tf.uint8)


def brighten(image: tf.Tensor, factor: float) -> tf.Tensor:
    """Multiplies an image, uint8 `[h, w, 3]`, by a factor; the result is limited to 255."""
    return tf.cast(tf.clip_by_value(tf.round(tf.cast(image, tf.float32) * factor), 0, 255), tf.uint8)


def halve(image: tf.Tensor) -> tf.Tensor:
    """Scales an image, uint8 `[h, w, 3]`, to half its sides (area means) and back, so that detail is lost."""
    size = tf.shape(image)[:2]
    small = tf.image.resize(tf.cast(image, tf.float32), tf.maximum(size // 2, 1), method="area")
    return tf.cast(tf.round(tf.clip_by_value(resize_bilinear(small, size), 0, 255)), tf.uint8)


CORRUPTIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "unchanged": lambda image: image,
    "JPEG quality 30": lambda image: compress(image, 30),
    "JPEG quality 10": lambda image: compress(image, 10),
    "blur, 1 pixel": lambda image: blur(image, 1.0),
    "blur, 2 pixels": lambda image: blur(image, 2.0),
    "half as bright": lambda image: brighten(image, 0.5),
    "1.5 times as bright": lambda image: brighten(image, 1.5),
    "half resolution": halve,
}


class _Corrupted:
    """A predictor that sees its images changed."""

    def __init__(self, predictor: Predictor, change: Callable[[tf.Tensor], tf.Tensor]):
        self.predictor = predictor
        self.change = change

    def predict(self, images: tf.data.Dataset) -> Mapping[str, np.ndarray]:
        changed = images.map(lambda batch: self.change(batch[0])[tf.newaxis], num_parallel_calls=tf.data.AUTOTUNE)
        return self.predictor.predict(changed)


def evaluate_robustness(predictor: Predictor, data: ExampleSet) -> list[RobustnessRow]:
    """Evaluates a detector on the images as they are and changed in each way of `CORRUPTIONS`.

    Args:
        predictor: a `Detector`, or anything that takes images of their original size.
        data: the labeled images.
    """
    rows = []
    for name, change in CORRUPTIONS.items():
        result = evaluate(_Corrupted(predictor, change), data)
        rows.append(RobustnessRow(name, result.ap_11_point, result.ap_area, result.coco_ap))
    return rows


def robustness_table(rows: Iterable[RobustnessRow]) -> str:
    """Returns a text table of the rows."""
    cells = [("images", "AP 11-point", "AP area", "COCO AP")]
    cells += [(row.name, decimals(row.ap_11_point), decimals(row.ap_area), decimals(row.coco_ap)) for row in rows]
    return text_table(cells, mean_row=False)
