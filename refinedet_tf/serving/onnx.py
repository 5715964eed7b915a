"""Conversion to ONNX, for ONNX Runtime, OpenVINO and others."""

import json
import logging

import tensorflow as tf
from tensorflow import keras

from refinedet_tf.errors import ExportError
from refinedet_tf.serving.checksums import seal_onnx
from refinedet_tf.serving.frozen import frozen_network
from refinedet_tf.serving.metadata import SETTINGS
from refinedet_tf.serving.settings import detection_settings
from refinedet_tf.serving.signatures import signatures

OPSET = 17
CLASSES = "classes"  # the metadata entry with the class names, as JSON


def convert_onnx(model: keras.Model) -> bytes:
    """Converts the signature `serving_default` of a model to an ONNX file, decoding and suppression included.

    The input is `images`, uint8 RGB `[b, h, w, 3]` of any size. The outputs are `detection_boxes`, `detection_scores`,
    `detection_classes` and `num_detections`, as in a SavedModel. The metadata entries `classes` and `detector.json`
    hold the class names and the detection settings as JSON.

    Args:
        model: a `RefineDet`.

    Raises:
        ExportError: tf2onnx is not installed.
    """
    try:
        import tf2onnx
    except ImportError as error:
        raise ExportError("The export to ONNX needs tf2onnx: pip install refinedet-tf[onnx].") from error

    network = frozen_network(model, (*model.config.input_size, 3), "float32")
    serve, inputs = signatures(network, model, lambda indices: indices)["serving_default"]
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        converted, _ = tf2onnx.convert.from_function(tf.function(serve, autograph=False), inputs, opset=OPSET)
    finally:
        logger.setLevel(level)
    config = model.config
    for key, value in ((CLASSES, list(config.classes)), (SETTINGS, detection_settings(config))):
        converted.metadata_props.add(key=key, value=json.dumps(value))
    return seal_onnx(converted.SerializeToString())
