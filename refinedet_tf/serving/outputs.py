"""The outputs of exported models: their names, their order and their corner order, written and read here only.

The names are those of the TensorFlow Object Detection API. Inside the project, boxes are (xmin, ymin, xmax, ymax);
in exported detections they are (ymin, xmin, ymax, xmax), as that API's clients expect.
"""

from collections.abc import Mapping

import tensorflow as tf

OUTPUT_NAMES = ("detection_boxes", "detection_scores", "detection_classes", "num_detections")
# The order in which `TFLite_Detection_PostProcess` returns them.
TFLITE_OUTPUT_NAMES = ("detection_boxes", "detection_classes", "detection_scores", "num_detections")
PREDICTION_NAMES = ("arm_objectness", "arm_offsets", "odm_classes", "odm_offsets")

YX = [1, 0, 3, 2]  # exchanges the axes of corners, in either direction


def to_outputs(detections: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Converts detections to the outputs of an exported model.

    Args:
        detections: `boxes`, `scores`, `classes` and `num_detections`, as `RefineDet.detect` returns them.

    Returns:
        `OUTPUT_NAMES`, with boxes clipped to the image.
    """
    boxes = tf.gather(tf.clip_by_value(detections["boxes"], 0.0, 1.0), YX, axis=-1)
    values = (boxes, detections["scores"], detections["classes"], detections["num_detections"])
    return dict(zip(OUTPUT_NAMES, values, strict=True))


def from_outputs(outputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Converts the outputs of an exported model to detections, the inverse of `to_outputs`.

    Args:
        outputs: tensors or arrays with `OUTPUT_NAMES`. TFLite returns float32 for all, and anything in padding.

    Returns:
        `boxes` float32 `[b, k, 4]`, (xmin, ymin, xmax, ymax); `scores` float32 `[b, k]`; `classes` int32 `[b, k]`;
        `num_detections` int32 `[b]`. In padding, boxes and scores are 0 and classes -1.
    """
    boxes, scores, classes, count = (outputs[name] for name in OUTPUT_NAMES)
    count = tf.cast(count, tf.int32)
    is_detection = tf.range(tf.shape(scores)[1]) < count[:, tf.newaxis]
    return {
        "boxes": tf.where(is_detection[..., tf.newaxis], tf.gather(boxes, YX, axis=-1), 0.0),
        "scores": tf.where(is_detection, scores, 0.0),
        "classes": tf.where(is_detection, tf.cast(classes, tf.int32), -1),
        "num_detections": count,
    }


def raw_predictions(outputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Selects the four raw predictions among a model's outputs."""
    return {name: outputs[name] for name in PREDICTION_NAMES}
