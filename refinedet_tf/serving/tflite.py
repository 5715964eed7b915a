"""TFLite files: detections on phones and boards.

The file detects in one image of the model's input size. With `postprocess="op"` the suppression is TFLite's own
`TFLite_Detection_PostProcess`. That operation decodes offsets from anchors it is given, and it takes these as an
ordinary input: fed with the *refined* anchors of the image, it is RefineDet's second step.
"""

from collections.abc import Callable, Collection, Iterable, Iterator

import numpy as np
import tensorflow as tf
from flatbuffers import flexbuffers
from tensorflow import keras
from tensorflow.lite.tools import flatbuffer_utils

from refinedet_tf.config import ModelConfig, as_dict
from refinedet_tf.errors import ExportError
from refinedet_tf.ops.boxes import CENTER_VARIANCE, SIZE_VARIANCE
from refinedet_tf.ops.detections import decode_predictions, keep_top_k, refine_anchors
from refinedet_tf.ops.resizing import Resizing
from refinedet_tf.serving.frozen import frozen_network
from refinedet_tf.serving.metadata import Metadata, append_metadata
from refinedet_tf.serving.tensor_ranges import computed_tensors, layer_of_tensor

QUANTIZATIONS = ("none", "float16", "dynamic", "int8")
POSTPROCESSES = ("op", "none")
INPUT_TYPES = ("uint8", "float32")
# Names and order of the Object Detection API's TFLite models; all are float32.
OUTPUT_NAMES = ("detection_boxes", "detection_classes", "detection_scores", "num_detections")
PREDICTION_NAMES = ("arm_objectness", "arm_offsets", "odm_classes", "odm_offsets")
POSTPROCESS_OP = "TFLite_Detection_PostProcess"
# On t > 1 threads the operation's suppression per class passes over the class of index t (its workers share a counter
# that starts at t and is raised before it is read). So the first classes are empty ones.
MAX_THREADS = 16
UNUSED_CLASSES = MAX_THREADS + 1


def convert_tflite(
    model: keras.Model,
    quantize: str = "none",
    postprocess: str = "op",
    input_type: str = "uint8",
    calibration_images: Iterable[np.ndarray] = (),
    float_layers: Collection[str] = (),
) -> bytes:
    """Converts a model to a TFLite file with metadata and one signature, `serving_default`.

    Its input is `images`, RGB, 0..255, `[1, *input_size, 3]`. Its outputs are with `postprocess="op"`
    `detection_boxes` `[1, k, 4]` (ymin, xmin, ymax, xmax, relative to that input, unclipped), `detection_classes`
    `[1, k]`, `detection_scores` `[1, k]` and `num_detections` `[1]`, all float32; with `none` the four raw predictions.

    Args:
        model: a `RefineDet`.
        quantize: `none` (float32), `float16` (weights only), `dynamic` (int8 weights) or `int8` (network in int8;
            preprocessing, joining the levels, decoding and suppression stay in float32, since int8 is too coarse for
            pixels and boxes).
        postprocess: what the file does with raw predictions: `op` or `none`.
        input_type: `uint8` or `float32`.
        calibration_images: for `int8`: RGB, 0..255, `[h, w, 3]` of any size, resized here as everywhere; some hundred
            that look like what the model will see.
        float_layers: for `int8`: names of layers that stay in float32, for a network whose first layers lose too much;
            `tensor_ranges` finds these.

    Raises:
        ExportError: there are no images to calibrate with, or the model has no such layer.
    """
    if quantize == "int8":
        calibration_images = list(calibration_images)
        if not calibration_images:
            raise ExportError("int8 needs images to calibrate with; name a data set or a folder of some.")
        unknown = sorted(set(float_layers) - {layer.name for layer in model.layers})
        if unknown:
            raise ExportError(f"The model has no layer {', '.join(unknown)}; `model.summary()` lists what it has.")
    config = model.config
    content = _convert(model, quantize, postprocess, tf.as_dtype(input_type), calibration_images, float_layers)
    if postprocess == "op":
        content = _with_detections_per_class(content, config.detection.max_detections)
    anchors = model.anchors.numpy() if postprocess == "none" else None
    settings = _settings(config, quantize, postprocess, input_type)
    return append_metadata(content, Metadata(list(config.classes), settings, anchors))


def _settings(config: ModelConfig, quantize: str, postprocess: str, input_type: str) -> dict:
    height, width = config.input_size
    return {
        "input": {
            "name": "images",
            "type": input_type,
            "height": height,
            "width": width,
            "channels": "RGB",
            "range": [0, 255],
            "normalization": {"mean": 0, "std": 1},  # the file does what its backbone needs
            "resize": config.resize,
            "interpolation": "bilinear, half-pixel centres, no antialiasing",
        },
        "quantize": quantize,
        "postprocess": postprocess,
        "objectness_threshold": config.objectness_threshold,
        **as_dict(config.detection),
    }


def _convert(
    model: keras.Model,
    quantize: str,
    postprocess: str,
    dtype: tf.DType,
    images: Iterable[np.ndarray],
    float_layers: Collection[str],
) -> bytes:
    size = tuple(model.config.input_size)
    find = _post_processing(model.anchors, model.config) if postprocess == "op" else _raw_predictions
    # Left to itself, the converter would leave a Keras 3 model's variables variable.
    network = frozen_network(model, (*size, 3), "float32")

    @tf.function(input_signature=[tf.TensorSpec([1, *size, 3], dtype, name="images")])
    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return find(network(tf.cast(images, tf.float32)))

    owner = tf.Module()
    owner.serve = serve
    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], owner)
    converter.allow_custom_ops = postprocess == "op"
    if quantize != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8":
        inputs = [prepare_image(image, model.resizing, dtype)[np.newaxis] for image in images]
        return _convert_to_int8(converter, inputs, model, {"preprocessing", *float_layers})
    return converter.convert()


def prepare_image(image: np.ndarray, resizing: Resizing, dtype: tf.DType) -> np.ndarray:
    """An image of any size as a TFLite file takes it: resized, and rounded where the input is uint8."""
    resized = resizing.resize(image)
    return tf.cast(tf.round(resized) if dtype == tf.uint8 else resized, dtype).numpy()


def _raw_predictions(predictions: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {name: predictions[name] for name in PREDICTION_NAMES}


def _post_processing(anchors: tf.Tensor, config: ModelConfig) -> Callable:
    """The function from raw predictions of one image to detections that ends in TFLite's operation."""
    detection = config.detection
    smallest = np.finfo(np.float32).tiny  # the operation refuses thresholds of 0
    # It keeps scores that are equal to the threshold, TensorFlow's only higher ones.
    score_threshold = np.nextafter(np.float32(detection.score_threshold), np.float32(1))
    attributes = {
        "max_detections": f"i: {detection.max_detections}",
        "max_classes_per_detection": "i: 1",
        "use_regular_nms": "b: true",  # per class; the fast variant suppresses over all classes
        "nms_score_threshold": f"f: {max(score_threshold, smallest)}",
        "nms_iou_threshold": f"f: {max(detection.iou_threshold, smallest)}",
        "num_classes": f"i: {UNUSED_CLASSES + len(config.classes)}",
        "y_scale": f"f: {1 / CENTER_VARIANCE}",
        "x_scale": f"f: {1 / CENTER_VARIANCE}",
        "h_scale": f"f: {1 / SIZE_VARIANCE}",
        "w_scale": f"f: {1 / SIZE_VARIANCE}",
    }
    texts = [f'attr {{ key: "{key}" value {{ {value} }} }}' for key, value in attributes.items()]

    # The converter puts the operation in the place of this function and never runs its body.
    @tf.function(experimental_implements=" ".join([f'name: "{POSTPROCESS_OP}"', *texts]))
    def suppress(offsets: tf.Tensor, scores: tf.Tensor, anchors: tf.Tensor) -> tuple[tf.Tensor, ...]:
        k = detection.max_detections
        return tf.zeros([1, k, 4]), tf.zeros([1, k]), tf.zeros([1, k]), tf.zeros([1])

    def find(predictions: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        refined = refine_anchors(predictions["arm_offsets"], anchors)[0]
        size = refined[:, 2:] - refined[:, :2]
        centered = tf.concat([(refined[:, 2:] + refined[:, :2]) / 2.0, size], axis=-1)
        _, scores = decode_predictions(predictions, anchors, config.objectness_threshold)
        scores = keep_top_k(scores, detection.pre_suppression_top_k)
        boxes, classes, scores, count = suppress(
            tf.gather(predictions["odm_offsets"], [1, 0, 3, 2], axis=-1),
            tf.pad(scores, [[0, 0], [0, 0], [UNUSED_CLASSES, 0]]),
            tf.gather(centered, [1, 0, 3, 2], axis=-1),
        )
        classes = tf.nn.relu(classes - UNUSED_CLASSES)  # 0 in padding
        return dict(zip(OUTPUT_NAMES, (boxes, classes, scores, count), strict=True))

    return find


def _convert_to_int8(
    converter: tf.lite.TFLiteConverter, images: list[np.ndarray], model: keras.Model, float_layers: Collection[str]
) -> bytes:
    def representative_dataset() -> Iterator[dict[str, np.ndarray]]:
        return ({"images": image} for image in images)

    converter.representative_dataset = representative_dataset
    # TensorFlow's tool for selective quantisation: it measures ranges once, then quantises all but the named nodes.
    debugger = tf.lite.experimental.QuantizationDebugger(converter=converter, debug_dataset=representative_dataset)
    debugger.calibrated_model, decoding = _without_decoding_ranges(debugger.calibrated_model)
    layers = [layer.name for layer in model.layers]
    names = computed_tensors(debugger.calibrated_model)
    kept = [name for name in names if layer_of_tensor(name, layers) in float_layers]
    debugger.options = tf.lite.experimental.QuantizationDebugOptions(
        denylisted_nodes=decoding + kept,
        denylisted_ops=["TOPK_V2"],  # has two outputs, so it is not found by the name of one
    )
    return debugger.get_nondebug_quantized_model()


def _without_decoding_ranges(content: bytes) -> tuple[bytes, list[str]]:
    """Takes from a calibrated file the ranges of all tensors from the joining of the heads' levels on.

    A concatenation of nothing but reshaped maps is where the levels are joined; what depends on one decodes. With their
    ranges left in, slices of the named tensors would be quantised after all.

    Returns:
        The file, and the names of these tensors.
    """
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    graph = model.subgraphs[0]
    reshaped, decoding = set(), set()
    for operator in graph.operators:
        kind = flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex)
        inputs, outputs = set(operator.inputs), set(operator.outputs)
        if kind == "RESHAPE":
            reshaped |= outputs
        if inputs & decoding or (kind == "CONCATENATION" and inputs <= reshaped):
            decoding |= outputs
    for index in decoding:
        graph.tensors[index].quantization = None
    names = [graph.tensors[index].name.decode() for index in sorted(decoding)]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model)), names


def _with_detections_per_class(content: bytes, count: int) -> bytes:
    """Sets an attribute of the operation that TensorFlow's converter leaves out, and whose default is 100."""
    model = flatbuffer_utils.convert_bytearray_to_object(content)
    (operator,) = (
        operator
        for operator in model.subgraphs[0].operators
        if model.operatorCodes[operator.opcodeIndex].customCode == POSTPROCESS_OP.encode()
    )
    options = {**flexbuffers.Loads(bytes(operator.customOptions)), "detections_per_class": count}
    operator.customOptions = np.frombuffer(bytes(flexbuffers.Dumps(options)), np.uint8)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
