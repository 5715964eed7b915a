"""Running an exported SavedModel."""

import contextlib
import copy
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from refinedet_tf.errors import ExportError
from refinedet_tf.inference.decoding import decode_batch
from refinedet_tf.serving.checksums import checksum_of_file, open_settings
from refinedet_tf.serving.metadata import FILES, SETTINGS
from refinedet_tf.serving.outputs import from_outputs

SIGNATURES = ("serving_default", "serving_bytes", "serving_raw", "serving_tunable")
TUNABLE = ("score_threshold", "iou_threshold", "max_detections")


class SavedModel:
    """A SavedModel that this project exported, ready to run one of its signatures.

    Attributes:
        classes: the class names by index.
        mixed_sizes: images of a batch must have one size.
        settings: how the weights are kept (`weights`), and the detection settings.
    """

    def __init__(self, path: str | os.PathLike, signature: str = "serving_default"):
        """Opens a folder.

        Args:
            path: the folder.
            signature: one of `SIGNATURES`; all give the same detections.

        Raises:
            ExportError: the folder is no SavedModel of this project.
        """
        path = os.fspath(path)
        with _damage_explained(path):
            self.settings = read_settings(path)
            self.classes = self.settings["classes"]
            self._loaded = tf.saved_model.load(path)  # kept, because a signature alone does not keep its variables
            self._serve = self._loaded.signatures[signature]
        self.mixed_sizes = False
        self._signature = signature

    def with_signature(self, signature: str) -> "SavedModel":
        """Returns the same opened folder, ready to run another of its signatures."""
        other = copy.copy(self)
        other._serve, other._signature = self._loaded.signatures[signature], signature
        return other

    def detect_batch(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detects in images, uint8 RGB `[b, h, w, 3]` of any size.

        Returns:
            Detections `[b, k, ...]` as `RefineDet.detect` returns them.
        """
        if self._signature == "serving_raw":
            outputs = self._serve(images=images)
            return decode_batch(outputs, outputs["anchors"].numpy(), self.settings)
        if self._signature == "serving_bytes":
            # Lossless, and without compression, which would take longer than detection.
            files = tf.stack([tf.io.encode_png(image, compression=0) for image in images])
            return self.detect_files(files)[0]
        if self._signature == "serving_tunable":
            settings = {name: tf.constant(self.settings[name]) for name in TUNABLE}
            return from_outputs(self._serve(images=images, **settings))
        return from_outputs(self._serve(images=images))

    def detect_files(self, contents: Sequence[bytes] | tf.Tensor) -> tuple[dict[str, tf.Tensor], np.ndarray]:
        """Detects in image files of any sizes; needs the signature `serving_bytes`.

        Returns:
            Detections as above, and whether each file could be decoded, bool `[b]`.
        """
        outputs = self._serve(image_bytes=tf.convert_to_tensor(contents, tf.string))
        return from_outputs(outputs), outputs["image_is_valid"].numpy()


def is_exact(path: str | os.PathLike) -> bool:
    """Returns whether a SavedModel computes with weights in float32.

    Raises:
        ExportError: the folder is no SavedModel of this project.
    """
    path = os.fspath(path)
    with _damage_explained(path):
        return read_settings(path)["weights"] in ("variables", "float32")


def read_settings(path: str) -> dict[str, Any]:
    """Reads the settings of a SavedModel, and checks that all of its files are as they were written.

    Raises:
        ValueError: a file is missing or has been changed, or the folder was not exported by this version.
        tf.errors.OpError: a file cannot be read.
    """
    with tf.io.gfile.GFile(tf.io.gfile.join(path, "assets.extra", SETTINGS)) as file:
        settings = open_settings(file.read())
    for name, checksum in settings.pop(FILES).items():
        if checksum_of_file(tf.io.gfile.join(path, name)) != checksum:
            raise ValueError(f"{name} is incomplete or has been changed")
    return settings


@contextlib.contextmanager
def _damage_explained(path: str) -> Iterator[None]:
    """Damaged folders raise errors of many kinds, from TensorFlow, Protocol Buffers and `json`."""
    try:
        yield
    except Exception as error:
        raise ExportError(f"{path} is not a SavedModel that this project exported: {error}") from error
