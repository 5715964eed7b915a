"""The signatures of an exported model."""

import contextlib
import io
from collections.abc import Sequence

import tensorflow as tf
from tensorflow import keras

from refinedet_tf.ops.images import resize

# The names of the TensorFlow Object Detection API, in its order.
OUTPUT_NAMES = ("detection_boxes", "detection_scores", "detection_classes", "num_detections")


def export_saved_model(model: keras.Model, path: str) -> None:
    """Writes a SavedModel that detects on its own.

    `serving_default` takes `images`, uint8 RGB `[b, h, w, 3]` of any size, and gives `detection_boxes` float32
    `[b, k, 4]` (ymin, xmin, ymax, xmax relative to the image, clipped to it), `detection_scores` float32 `[b, k]`,
    `detection_classes` int32 `[b, k]` (from 0, -1 in padding) and `num_detections` int32 `[b]`.

    Args:
        model: what is served: has `detect(images)`, `config.classes` and `config.input_size`.
        path: the folder to write.
    """
    input_size = tuple(model.config.input_size)

    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return serving_outputs(model.detect(resize(images, input_size)))

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serving_default",
        serve,
        input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")],
    )
    with contextlib.redirect_stdout(io.StringIO()):  # Keras prints every captured variable
        archive.write_out(path)
    write_labels(path, model.config.classes)


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


def write_labels(path: str, classes: Sequence[str]) -> None:
    """Writes the class names, one a line in the order of their indices, to `assets.extra/labels.txt`."""
    folder = tf.io.gfile.join(path, "assets.extra")
    tf.io.gfile.makedirs(folder)
    with tf.io.gfile.GFile(tf.io.gfile.join(folder, "labels.txt"), "w") as file:
        file.write("".join(f"{name}\n" for name in classes))


def read_labels(path: str) -> list[str]:
    """The class names of an exported model."""
    with tf.io.gfile.GFile(tf.io.gfile.join(path, "assets.extra", "labels.txt")) as file:
        return file.read().splitlines()
