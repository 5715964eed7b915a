"""The input of an exported model that takes images of its own size only, as TFLite files do."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from refinedet_tf.ops.resizing import Resizing

INPUT_NAME = "images"
INPUT_TYPES = ("uint8", "float32")


@dataclass(frozen=True)
class InputForm:
    """The form of an input: RGB, 0..255, `[1, height, width, 3]`; the file normalizes pixels itself.

    Attributes:
        resizing: the input size, and how images are brought to it.
        dtype: one of `INPUT_TYPES`.
    """

    resizing: Resizing
    dtype: str

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Resizes an image `[h, w, 3]` of any size, RGB, 0..255, and adds the batch dimension.

        Where the input is uint8, pixels are rounded.
        """
        resized = self.resizing.resize(image)[tf.newaxis]
        return tf.cast(tf.round(resized) if self.dtype == "uint8" else resized, self.dtype).numpy()

    def as_settings(self) -> dict[str, Any]:
        """Returns the form as plain values, complete enough to repeat `prepare` in another program."""
        return {
            "name": INPUT_NAME,
            "type": self.dtype,
            "height": self.resizing.height,
            "width": self.resizing.width,
            "channels": "RGB",
            "range": [0, 255],
            "normalization": {"mean": 0, "std": 1},
            "resize": self.resizing.mode,
            "interpolation": "bilinear, half-pixel centers, no antialiasing",
        }

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> "InputForm":
        """Reads what `as_settings` returned."""
        return cls(Resizing(settings["height"], settings["width"], settings["resize"]), settings["type"])
