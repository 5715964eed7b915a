"""The functions behind the signatures of an exported SavedModel."""

from collections.abc import Callable

import tensorflow as tf
from tensorflow import keras

from refinedet_tf.config import as_dict
from refinedet_tf.ops.detections import decode_predictions, suppress
from refinedet_tf.ops.images import MAX_PIXELS, decode, first_image
from refinedet_tf.ops.resizing import Resizing
from refinedet_tf.serving.outputs import raw_predictions, to_outputs

IMAGES = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
THRESHOLDS = (
    tf.TensorSpec([], tf.float32, name="score_threshold"),
    tf.TensorSpec([], tf.float32, name="iou_threshold"),
    tf.TensorSpec([], tf.int32, name="max_detections"),
)
IMAGE_BYTES = tf.TensorSpec([None], tf.string, name="image_bytes")


def signatures(
    network: Callable[[tf.Tensor], dict[str, tf.Tensor]],
    model: keras.Model,
    class_names: Callable[[tf.Tensor], tf.Tensor],
    max_pixels: int = MAX_PIXELS,
) -> dict[str, tuple[Callable, list[tf.TensorSpec]]]:
    """Returns the functions of an exported model and their inputs, by name; see `saved_model.export_saved_model`.

    Args:
        network: from float32 `[b, *input_size, 3]`, RGB, 0..255, to raw predictions.
        model: the `RefineDet` whose anchors, input size and detection settings apply.
        class_names: from int64 indices of any shape to names, empty for the padding's -1.
        max_pixels: `serving_bytes` flags files that claim more pixels instead of decoding them.
    """
    resizing, config = model.resizing, model.config
    anchors = model.anchors.numpy()  # a constant of each graph, where a tensor would be one more input of it
    settings = as_dict(config.detection)

    def run_network(images: tf.Tensor) -> dict[str, tf.Tensor]:
        # oneDNN's convolution returns an empty batch in the shape of its input. A black image stands in for none.
        count = tf.shape(images)[0]
        stand_in = tf.zeros([tf.cast(count == 0, tf.int32), *resizing.size, 3])
        predictions = network(tf.concat([images, stand_in], axis=0))
        return {name: value[:count] for name, value in predictions.items()}

    def predict(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return run_network(resizing.resize(images))

    def anchors_in(image_size: tf.Tensor) -> tf.Tensor:
        # Decoding is relative to anchors: anchors relative to the image as it was sent lead to boxes relative to it.
        return resizing.boxes_to_image(anchors, image_size)

    def boxes_and_scores(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return decode_predictions(predict(images), anchors_in(tf.shape(images)[1:3]), config.objectness_threshold)

    def serve_images(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return to_outputs(suppress(*boxes_and_scores(images), **settings))

    def serve_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        images, image_sizes, is_valid = decode_batch(image_bytes, resizing, max_pixels)
        boxes, scores = decode_predictions(run_network(images), anchors_in(image_sizes), config.objectness_threshold)
        scores = tf.where(is_valid[:, tf.newaxis, tf.newaxis], scores, 0.0)
        detections = suppress(boxes, scores, **settings)
        return {
            **to_outputs(detections),
            "detection_class_names": class_names(tf.cast(detections["classes"], tf.int64)),
            "image_is_valid": is_valid,
        }

    def serve_raw(images: tf.Tensor) -> dict[str, tf.Tensor]:
        predictions = predict(images)
        # One copy for each image: a server that batches requests splits outputs along the first dimension.
        copies = tf.tile(anchors_in(tf.shape(images)[1:3])[tf.newaxis], [tf.shape(images)[0], 1, 1])
        return {**raw_predictions(predictions), "anchors": copies}

    def serve_tunable(
        images: tf.Tensor, score_threshold: tf.Tensor, iou_threshold: tf.Tensor, max_detections: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        # Nothing uses the number before it is checked, so that no other operation fails first.
        check = tf.debugging.assert_positive(max_detections, message="max_detections must be at least 1.")
        with tf.control_dependencies([check]):
            max_detections = tf.identity(max_detections)
        detections = suppress(
            *boxes_and_scores(images),
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            pre_suppression_top_k=config.detection.pre_suppression_top_k,
            max_detections=max_detections,
            suppression=config.detection.suppression,
        )
        return to_outputs(detections)

    return {
        "serving_default": (serve_images, [IMAGES]),
        "serving_bytes": (serve_bytes, [IMAGE_BYTES]),
        "serving_raw": (serve_raw, [IMAGES]),
        "serving_tunable": (serve_tunable, [IMAGES, *THRESHOLDS]),
    }


def decode_batch(contents: tf.Tensor, resizing: Resizing, max_pixels: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Decodes and resizes image files of any sizes, one after the other: one full-size image is in memory at a time.

    Args:
        contents: string `[b]`.
        resizing: the size to make, and how.
        max_pixels: files whose header claims more pixels are not decoded.

    Returns:
        float32 `[b, *size, 3]`, RGB, 0..255, black where a file is not decoded; int32 `[b, 2]`, height and width of the
        images as they were; bool `[b]`, whether a file was decoded.
    """
    count = tf.shape(contents)[0]

    def measure(index: tf.Tensor, content: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return index, *first_image(content)

    def is_small(index: tf.Tensor, content: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
        del index, content
        return (pixels > 0) & (pixels <= max_pixels)

    def prepare(index: tf.Tensor, content: tf.Tensor, pixels: tf.Tensor) -> tuple[tf.Tensor, ...]:
        del pixels
        image = decode(content)
        return index, resizing.resize(image), tf.shape(image)[:2]

    # A data set is the one place in a graph where an error can be caught: files that cannot be decoded drop out of it.
    # The blank image after all others takes their place.
    files = tf.data.Dataset.from_tensor_slices((tf.range(count), contents))
    readable = files.map(measure).filter(is_small).map(prepare).ignore_errors()
    blank = tf.data.Dataset.from_tensors((count, tf.zeros([*resizing.size, 3]), tf.constant(resizing.size, tf.int32)))
    whole = readable.concatenate(blank).batch(tf.cast(count, tf.int64) + 1)
    indices, images, image_sizes = whole.get_single_element()
    last = tf.size(indices) - 1
    rows = tf.tensor_scatter_nd_update(tf.fill([count + 1], last), indices[:, tf.newaxis], tf.range(last + 1))[:count]
    return tf.gather(images, rows), tf.gather(image_sizes, rows), rows < last
