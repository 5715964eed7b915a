"""Writing a SavedModel that detects on its own."""

import functools
import os
import tempfile
from collections.abc import Sequence

import tensorflow as tf
from tensorflow import keras

from refinedet_tf.errors import ExportError
from refinedet_tf.ops.images import MAX_PIXELS
from refinedet_tf.serving.checksums import checksum_of_file, seal_settings
from refinedet_tf.serving.frozen import frozen_network
from refinedet_tf.serving.labels import LABELS, label_table, write_labels
from refinedet_tf.serving.metadata import FILES, SETTINGS
from refinedet_tf.serving.settings import detection_settings
from refinedet_tf.serving.signatures import signatures
from refinedet_tf.serving.warmup import write_warmup_requests

WEIGHTS = ("variables", "float32", "float16", "bfloat16")


def export_saved_model(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    weights: str = "variables",
    warmup_batch_sizes: Sequence[int] = (),
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Writes a SavedModel with four signatures, which need TensorFlow only.

    Each takes any number of images. Detections are `detection_boxes` float32 `[b, k, 4]` (ymin, xmin, ymax, xmax
    relative to the image as it was sent, clipped to it), `detection_scores` float32 `[b, k]`, `detection_classes` int32
    `[b, k]` (from 0, -1 in padding) and `num_detections` int32 `[b]`.

    - `serving_default`: `images`, uint8 RGB `[b, h, w, 3]` of any size; returns detections.
    - `serving_bytes`: `image_bytes`, string `[b]`, JPEG or PNG files of any sizes; returns detections,
      `detection_class_names` string `[b, k]` (empty in padding) and `image_is_valid` bool `[b]`. A file that cannot be
      decoded has no detections and the flag false; it does not affect the others.
      A file whose header claims more than `max_pixels` pixels is flagged, too, before it is decoded.
    - `serving_raw`: `images`; returns the model's four raw predictions and the `anchors`, `[b, n, 4]`, relative to the
      image as it was sent, so that boxes decoded from them are, too.
    - `serving_tunable`: `images` and the scalars `score_threshold`, `iou_threshold` and `max_detections` (which then is
      `k`); returns detections.

    Args:
        model: a `RefineDet`.
        path: the folder to write; it must not exist or be empty. Everything is first written beside it, so that no
            half-written model is ever found there.
        weights: one of `WEIGHTS`. `variables` keeps them as the model has them. The others freeze the network into
            constants of that type; half-precision ones are cast to float32 before use: half the size, the same speed.
        warmup_batch_sizes: batch sizes for which to write TensorFlow Serving's warm-up requests.
        max_pixels: of an image file; a few kilobytes can claim gigabytes of pixels.

    Raises:
        ExportError: the folder exists and is not empty, or warm-up requests need a package that is not installed.
    """
    path = os.fspath(path)
    if weights not in WEIGHTS:
        raise ExportError(f"weights={weights!r} is not one of {', '.join(WEIGHTS)}.")
    if tf.io.gfile.exists(path) and (not tf.io.gfile.isdir(path) or tf.io.gfile.listdir(path)):
        raise ExportError(f"{path} exists and is not empty; choose another folder.")
    parent, name = os.path.split(os.path.abspath(path) if "://" not in path else path.rstrip("/"))
    unfinished = tf.io.gfile.join(parent, f"~{name}")
    if tf.io.gfile.exists(unfinished):
        tf.io.gfile.rmtree(unfinished)
    _write_graph(model, unfinished, weights, max_pixels)
    config = model.config
    _write_settings(unfinished, {"weights": weights, "classes": list(config.classes), **detection_settings(config)})
    if warmup_batch_sizes:
        write_warmup_requests(unfinished, config.input_size, warmup_batch_sizes)
    if tf.io.gfile.exists(path):
        tf.io.gfile.rmtree(path)  # an empty folder
    tf.io.gfile.rename(unfinished, path)


def _write_graph(model: keras.Model, path: str, weights: str, max_pixels: int) -> None:
    is_frozen = weights != "variables"
    input_shape = (*model.config.input_size, 3)
    network = frozen_network(model, input_shape, weights) if is_frozen else functools.partial(model, training=False)
    # A graph of its own, which all signatures share.
    network = tf.function(network, input_signature=[tf.TensorSpec([None, *input_shape])], autograph=False)
    archive = tf.Module()
    with tempfile.TemporaryDirectory() as folder:
        labels = os.path.join(folder, LABELS)
        write_labels(labels, model.config.classes)
        archive.label_table = label_table(labels)
        # Traced here: Keras's ExportArchive hands on functions, which TensorFlow would trace again to save them.
        traced = {
            name: tf.function(serve, input_signature=inputs, autograph=False).get_concrete_function()
            for name, (serve, inputs) in signatures(network, model, archive.label_table.lookup, max_pixels).items()
        }
        archive.weights = list({id(each): each for one in traced.values() for each in one.variables}.values())
        tf.saved_model.save(archive, path, signatures=traced)


def _write_settings(path: str, settings: dict) -> None:
    """Writes how the model was exported, and the checksum of every file, to `assets.extra/detector.json`."""
    checksums = {name: checksum_of_file(tf.io.gfile.join(path, name)) for name in _files(path)}
    folder = tf.io.gfile.join(path, "assets.extra")
    tf.io.gfile.makedirs(folder)
    with tf.io.gfile.GFile(tf.io.gfile.join(folder, SETTINGS), "w") as file:
        file.write(seal_settings({**settings, FILES: checksums}))


def _files(path: str) -> list[str]:
    """Returns the files below a folder, relative to it, with slashes."""
    found = ((folder, name) for folder, _, names in tf.io.gfile.walk(path) for name in names)
    paths = (tf.io.gfile.join(folder, name) for folder, name in found)
    return sorted(os.path.relpath(file, path).replace(os.sep, "/") for file in paths)
