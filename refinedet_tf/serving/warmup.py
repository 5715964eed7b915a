"""Requests that TensorFlow Serving sends to a freshly loaded model before it accepts any others."""

from collections.abc import Sequence

import tensorflow as tf

from refinedet_tf.errors import ExportError

GRAY = 128
# Where TensorFlow Serving looks for them, inside a SavedModel's folder.
WARMUP_REQUESTS = ("assets.extra", "tf_serving_warmup_requests")


def write_warmup_requests(path: str, input_size: Sequence[int], batch_sizes: Sequence[int]) -> None:
    """Writes one request to `serving_default` and one to `serving_bytes` for each batch size.

    The first request of a new batch size is slow, because TensorFlow then optimizes the graph and allocates memory.

    Args:
        path: the folder of an exported SavedModel.
        input_size: height and width of the gray images that are sent.
        batch_sizes: numbers of images in a request; if the server batches, its `allowed_batch_sizes`.

    Raises:
        ExportError: tensorflow-serving-api is not installed.
    """
    try:
        from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
    except ImportError as error:
        raise ExportError("Warm-up requests need tensorflow-serving-api: pip install refinedet-tf[serving].") from error

    image = tf.fill([*input_size, 3], tf.constant(GRAY, tf.uint8))
    inputs = {
        "serving_default": ("images", image),
        "serving_bytes": ("image_bytes", tf.io.encode_jpeg(image)),
    }
    file = tf.io.gfile.join(path, *WARMUP_REQUESTS)
    tf.io.gfile.makedirs(tf.io.gfile.join(path, WARMUP_REQUESTS[0]))
    with tf.io.TFRecordWriter(file) as writer:
        for batch_size in batch_sizes:
            for signature, (name, value) in inputs.items():
                request = predict_pb2.PredictRequest()
                # The server fills in its own name of the model.
                request.model_spec.signature_name = signature
                request.inputs[name].CopyFrom(tf.make_tensor_proto(tf.stack([value] * batch_size)))
                predict_log = prediction_log_pb2.PredictLog(request=request)
                writer.write(prediction_log_pb2.PredictionLog(predict_log=predict_log).SerializeToString())
