"""The signatures of an exported SavedModel."""

import contextlib
import functools
import io
import json
import os
import tempfile
from collections.abc import Callable

import tensorflow as tf
from tensorflow import keras

from refinedet_tf.config import as_dict
from refinedet_tf.ops.detections import decode_predictions, suppress
from refinedet_tf.ops.images import decode
from refinedet_tf.ops.resizing import Resizing
from refinedet_tf.serving.frozen import frozen_network
from refinedet_tf.serving.labels import LABELS, label_table, write_labels
from refinedet_tf.serving.metadata import SETTINGS

# The names of the TensorFlow Object Detection API, in its order.
OUTPUT_NAMES = ("detection_boxes", "detection_scores", "detection_classes", "num_detections")
PREDICTION_NAMES = ("arm_objectness", "arm_offsets", "odm_classes", "odm_offsets")
WEIGHTS = ("variables", "float32", "float16", "bfloat16")

IMAGES = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
THRESHOLDS = (
    tf.TensorSpec([], tf.float32, name="score_threshold"),
    tf.TensorSpec([], tf.float32, name="iou_threshold"),
    tf.TensorSpec([], tf.int32, name="max_detections"),
)
IMAGE_BYTES = tf.TensorSpec([None], tf.string, name="image_bytes")


def export_saved_model(model: keras.Model, path: str, weights: str = "variables") -> None:
    """Writes a SavedModel that detects on its own.

    Four signatures, of which each takes any number of images. Detections are `detection_boxes` float32 `[b, k, 4]`
    (ymin, xmin, ymax, xmax relative to the image as it was sent, clipped to it), `detection_scores` float32 `[b, k]`,
    `detection_classes` int32 `[b, k]` (from 0, -1 in padding) and `num_detections` int32 `[b]`.

    - `serving_default`: `images`, uint8 RGB `[b, h, w, 3]` of any size; gives detections.
    - `serving_bytes`: `image_bytes`, string `[b]`, JPEG or PNG files of any sizes; gives detections,
      `detection_class_names` string `[b, k]` (empty in padding) and `image_is_valid` bool `[b]`. A file that cannot be
      decoded has no detections and the flag false, and leaves the others alone.
    - `serving_raw`: `images`; gives the model's four raw predictions and the `anchors`, `[b, n, 4]`, relative to the
      image as it was sent, so that boxes decoded from them are, too.
    - `serving_tunable`: `images` and the scalars `score_threshold`, `iou_threshold` and `max_detections` (which is `k`
      then); gives detections.

    Args:
        model: what is served: a `RefineDet`.
        path: the folder to write.
        weights: `variables` keeps them as the model has them. The others freeze the network into constants of that
            type, which for the half-precision ones are cast to float32 before use: half the size, the same speed.
    """
    input_shape = (*model.config.input_size, 3)
    is_frozen = weights != "variables"
    network = frozen_network(model, input_shape, weights) if is_frozen else functools.partial(model, training=False)
    archive = keras.export.ExportArchive()
    with tempfile.TemporaryDirectory() as folder:
        labels = os.path.join(folder, LABELS)
        write_labels(labels, model.config.classes)
        table = label_table(labels)
        archive.track(table)
        archive.label_table = table  # Keras 2 saves attributes; what it is told to track, only if it is a layer
        for name, (serve, inputs) in signatures(network, model, table.lookup).items():
            archive.add_endpoint(name, serve, input_signature=inputs)
        with contextlib.redirect_stdout(io.StringIO()):  # Keras prints every captured variable
            archive.write_out(path)
    thresholds = {"objectness_threshold": model.config.objectness_threshold, **as_dict(model.config.detection)}
    write_settings(path, {"weights": weights, **thresholds})


def write_settings(path: str, settings: dict) -> None:
    """Writes what was exported, and with which thresholds, to `assets.extra/detector.json`."""
    folder = tf.io.gfile.join(path, "assets.extra")
    tf.io.gfile.makedirs(folder)
    with tf.io.gfile.GFile(tf.io.gfile.join(folder, SETTINGS), "w") as file:
        file.write(json.dumps(settings, indent=1))


def signatures(
    network: Callable[[tf.Tensor], dict[str, tf.Tensor]],
    model: keras.Model,
    class_names: Callable[[tf.Tensor], tf.Tensor],
) -> dict[str, tuple[Callable, list[tf.TensorSpec]]]:
    """The functions of an exported model and their inputs, by name; see `export_saved_model`.

    Args:
        network: from float32 `[b, *input_size, 3]`, RGB, 0..255, to raw predictions.
        model: the `RefineDet` whose anchors, input size and detection settings apply.
        class_names: from int64 indices of any shape to names, empty for the padding's -1.
    """
    anchors, resizing, config = model.anchors, model.resizing, model.config
    settings = as_dict(config.detection)

    def predict(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return network(resizing.resize(images))

    def anchors_in(image_size: tf.Tensor) -> tf.Tensor:
        # Decoding is relative to anchors: from those of the image as it was sent come boxes in it.
        return resizing.boxes_to_image(anchors, image_size)

    def boxes_and_scores(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return decode_predictions(predict(images), anchors_in(tf.shape(images)[1:3]), config.objectness_threshold)

    def serve_images(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return serving_outputs(suppress(*boxes_and_scores(images), **settings))

    def serve_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        images, image_sizes, is_valid = decode_batch(image_bytes, resizing)
        boxes, scores = decode_predictions(network(images), anchors_in(image_sizes), config.objectness_threshold)
        scores = tf.where(is_valid[:, tf.newaxis, tf.newaxis], scores, 0.0)
        detections = suppress(boxes, scores, **settings)
        return {
            **serving_outputs(detections),
            "detection_class_names": class_names(tf.cast(detections["classes"], tf.int64)),
            "image_is_valid": is_valid,
        }

    def serve_raw(images: tf.Tensor) -> dict[str, tf.Tensor]:
        predictions = predict(images)
        # One copy for each image: a server that batches requests takes outputs apart along the first dimension.
        copies = tf.tile(anchors_in(tf.shape(images)[1:3])[tf.newaxis], [tf.shape(images)[0], 1, 1])
        return {**{name: predictions[name] for name in PREDICTION_NAMES}, "anchors": copies}

    def serve_tunable(
        images: tf.Tensor, score_threshold: tf.Tensor, iou_threshold: tf.Tensor, max_detections: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        detections = suppress(
            *boxes_and_scores(images),
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            pre_suppression_top_k=config.detection.pre_suppression_top_k,
            max_detections=max_detections,
            suppression=config.detection.suppression,
        )
        return serving_outputs(detections)

    return {
        "serving_default": (serve_images, [IMAGES]),
        "serving_bytes": (serve_bytes, [IMAGE_BYTES]),
        "serving_raw": (serve_raw, [IMAGES]),
        "serving_tunable": (serve_tunable, [IMAGES, *THRESHOLDS]),
    }


def decode_batch(contents: tf.Tensor, resizing: Resizing) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Decodes and resizes image files of any sizes.

    Args:
        contents: string `[b]`.
        resizing: the size to make, and how.

    Returns:
        float32 `[b, *size, 3]`, RGB, 0..255, black where a file cannot be decoded; int32 `[b, 2]`, height and width of
        the images as they were; bool `[b]`, whether a file can be decoded.
    """
    count = tf.shape(contents)[0]

    def prepare(index: tf.Tensor, content: tf.Tensor) -> tuple[tf.Tensor, ...]:
        image = decode(content)
        return index, resizing.resize(image), tf.shape(image)[:2]

    # A data set is the one place in a graph where an error can be caught: what cannot be decoded falls out of it. The
    # blank image behind all others takes the place of these.
    files = tf.data.Dataset.from_tensor_slices((tf.range(count), contents))
    readable = files.map(prepare, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
    blank = tf.data.Dataset.from_tensors((count, tf.zeros([*resizing.size, 3]), tf.constant(resizing.size, tf.int32)))
    whole = readable.concatenate(blank).batch(tf.cast(count, tf.int64) + 1)
    indices, images, image_sizes = whole.get_single_element()
    last = tf.size(indices) - 1
    rows = tf.tensor_scatter_nd_update(tf.fill([count + 1], last), indices[:, tf.newaxis], tf.range(last + 1))[:count]
    return tf.gather(images, rows), tf.gather(image_sizes, rows), rows < last


def serving_outputs(detections: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Detections under the names, and with the corner order, that clients of exported models expect."""
    boxes = tf.clip_by_value(detections["boxes"], 0.0, 1.0)
    return dict(
        zip(
            OUTPUT_NAMES,
            (
                tf.gather(boxes, [1, 0, 3, 2], axis=-1),
                detections["scores"],
                detections["classes"],
                detections["num_detections"],
            ),
            strict=True,
        )
    )
