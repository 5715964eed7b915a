"""Conversion to TFLite, for phones and boards.

A file detects in one image of the model's input size. With `postprocess="op"`, suppression is TFLite's own
`TFLite_Detection_PostProcess`. That operation decodes offsets relative to anchors, which are an ordinary input: given
the *refined* anchors of the image, it performs RefineDet's second step.
"""

from collections.abc import Callable, Collection, Iterable, Iterator

import numpy as np
import tensorflow as tf
from flatbuffers import flexbuffers
from tensorflow import keras
from tensorflow.lite.tools import flatbuffer_utils

from refinedet_tf.config import ModelConfig
from refinedet_tf.errors import ExportError
from refinedet_tf.ops.boxes import CENTER_VARIANCE, SIZE_VARIANCE
from refinedet_tf.ops.detections import decode_predictions, keep_top_k, refine_anchors
from refinedet_tf.serving.frozen import frozen_network
from refinedet_tf.serving.inputs import INPUT_NAME, InputForm
from refinedet_tf.serving.metadata import MAX_THREADS, Metadata, append_metadata
from refinedet_tf.serving.model_metadata import add_model_metadata
from refinedet_tf.serving.outputs import TFLITE_OUTPUT_NAMES, YX, raw_predictions
from refinedet_tf.serving.settings import detection_settings
from refinedet_tf.serving.tensor_ranges import computed_tensors, layer_of_tensor

QUANTIZATIONS = ("none", "float16", "dynamic", "int8")
POSTPROCESSES = ("op", "none")
POSTPROCESS_OP = "TFLite_Detection_PostProcess"
# With t > 1 threads, the operation skips the class of index t (its workers share a counter that starts at t and is
# incremented before it is read). The first classes are therefore empty ones.
UNUSED_CLASSES = MAX_THREADS + 1


def convert_tflite(
    model: keras.Model,
    *,
    quantize: str = "none",
    postprocess: str = "op",
    input_type: str = "uint8",
    calibration_images: Iterable[np.ndarray] = (),
    float_layers: Collection[str] = (),
) -> bytes:
    """Converts a model to a TFLite file with metadata and one signature, `serving_default`.

    The input is `images`, RGB, 0..255, `[1, *input_size, 3]`. With `postprocess="op"`, the outputs are
    `detection_boxes` `[1, k, 4]` (ymin, xmin, ymax, xmax, relative to that input, unclipped), `detection_classes`
    `[1, k]`, `detection_scores` `[1, k]` and `num_detections` `[1]`, all float32; with `none`, raw predictions.

    Args:
        model: a `RefineDet`.
        quantize: `none` (float32), `float16` (weights only), `dynamic` (int8 weights) or `int8` (the network in int8;
            preprocessing, joining the levels, decoding and suppression stay in float32, because int8 is too coarse for
            pixels and boxes).
        postprocess: `op` to decode and suppress inside the file, `none` to return raw predictions.
        input_type: `uint8` or `float32`.
        calibration_images: for `int8`: RGB, 0..255, `[h, w, 3]` of any size; they are resized here. Take a few hundred
            that resemble what the model will see.
        float_layers: for `int8`: names of layers that stay in float32, for a network whose first layers lose too much
            precision; `tensor_ranges` finds these.

    Raises:
        ExportError: there are no images to calibrate with, or the model has no such layer.
    """
    if quantize == "int8":
        calibration_images = list(calibration_images)
        if not calibration_images:
            raise ExportError("int8 needs images to calibrate with; name a data set or a folder of some.")
        unknown = sorted(set(float_layers) - {layer.name for layer in model.layers})
        if unknown:
            raise ExportError(f"The model has no layer {', '.join(unknown)}; `model.summary()` lists its layers.")
    config = model.config
    form = InputForm(model.resizing, input_type)
    converter = _converter(model, form, quantize, postprocess)
    if quantize == "int8":
        inputs = [form.prepare(image) for image in calibration_images]
        content = _convert_to_int8(converter, inputs, model, {"preprocessing", *float_layers})
    else:
        content = converter.convert()
    if postprocess == "op":
        content = add_model_metadata(_with_detections_per_class(content, config.detection.max_detections))
    anchors = model.anchors.numpy() if postprocess == "none" else None
    settings = {
        "input": form.as_settings(),
        "quantize": quantize,
        "postprocess": postprocess,
        **detection_settings(config),
    }
    return append_metadata(content, Metadata(list(config.classes), settings, anchors))


def _converter(model: keras.Model, form: InputForm, quantize: str, postprocess: str) -> tf.lite.TFLiteConverter:
    find = _post_processing(model.anchors, model.config) if postprocess == "op" else raw_predictions
    # The converter does not freeze the variables of a Keras 3 model by itself.
    network = frozen_network(model, (*form.resizing.size, 3), "float32")

    @tf.function(
        input_signature=[tf.TensorSpec([1, *form.resizing.size, 3], form.dtype, name=INPUT_NAME)], autograph=False
    )
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
    return converter


def _post_processing(anchors: tf.Tensor, config: ModelConfig) -> Callable:
    """Returns a function from raw predictions of one image to detections that ends in TFLite's operation."""
    detection = config.detection
    smallest = np.finfo(np.float32).tiny  # the operation refuses thresholds of 0
    # It keeps scores equal to the threshold; TensorFlow's keeps only higher ones.
    score_threshold = np.nextafter(np.float32(detection.score_threshold), np.float32(1))
    attributes = {
        "max_detections": f"i: {detection.max_detections}",
        "max_classes_per_detection": "i: 1",
        # The regular variant suppresses per class. The fast one takes each anchor's best class and suppresses across.
        "use_regular_nms": f"b: {str(detection.suppression == 'per_class').lower()}",
        "nms_score_threshold": f"f: {max(score_threshold, smallest)}",
        "nms_iou_threshold": f"f: {max(detection.iou_threshold, smallest)}",
        "num_classes": f"i: {UNUSED_CLASSES + len(config.classes)}",
        "y_scale": f"f: {1 / CENTER_VARIANCE}",
        "x_scale": f"f: {1 / CENTER_VARIANCE}",
        "h_scale": f"f: {1 / SIZE_VARIANCE}",
        "w_scale": f"f: {1 / SIZE_VARIANCE}",
    }
    texts = [f'attr {{ key: "{key}" value {{ {value} }} }}' for key, value in attributes.items()]

    # The converter replaces this function by the operation and never runs its body.
    @tf.function(experimental_implements=" ".join([f'name: "{POSTPROCESS_OP}"', *texts]), autograph=False)
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
            tf.gather(predictions["odm_offsets"], YX, axis=-1),
            tf.pad(scores, [[0, 0], [0, 0], [UNUSED_CLASSES, 0]]),
            tf.gather(centered, YX, axis=-1),
        )
        classes = tf.nn.relu(classes - UNUSED_CLASSES)  # 0 in padding
        return dict(zip(TFLITE_OUTPUT_NAMES, (boxes, classes, scores, count), strict=True))

    return find


def _convert_to_int8(
    converter: tf.lite.TFLiteConverter, images: list[np.ndarray], model: keras.Model, float_layers: Collection[str]
) -> bytes:
    def representative_dataset() -> Iterator[dict[str, np.ndarray]]:
        return ({INPUT_NAME: image} for image in images)

    converter.representative_dataset = representative_dataset
    # TensorFlow's tool for selective quantization: it measures ranges once, then quantizes all but the named nodes.
    debugger = tf.lite.experimental.QuantizationDebugger(converter=converter, debug_dataset=representative_dataset)
    debugger.calibrated_model, decoding = _without_decoding_ranges(debugger.calibrated_model)
    layers = [layer.name for layer in model.layers]
    names = computed_tensors(debugger.calibrated_model)
    kept = [name for name in names if layer_of_tensor(name, layers) in float_layers]
    debugger.options = tf.lite.experimental.QuantizationDebugOptions(
        denylisted_nodes=decoding + kept,
        denylisted_ops=["TOPK_V2"],  # by kind: having two outputs, it is not found by the name of one
    )
    return debugger.get_nondebug_quantized_model()


def _without_decoding_ranges(content: bytes) -> tuple[bytes, list[str]]:
    """Removes the ranges of all tensors computed after the heads' levels are joined from a calibrated file.

    The levels are joined by a concatenation of reshaped maps only; everything that depends on one belongs to decoding.
    If the ranges stayed, slices of these tensors would be quantized in spite of the denylist.

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
    """Sets an attribute of the operation that TensorFlow's converter omits and whose default is 100."""
    model = flatbuffer_utils.convert_bytearray_to_object(content)
    (operator,) = (
        operator
        for operator in model.subgraphs[0].operators
        if model.operatorCodes[operator.opcodeIndex].customCode == POSTPROCESS_OP.encode()
    )
    options = {**flexbuffers.Loads(bytes(operator.customOptions)), "detections_per_class": count}
    operator.customOptions = np.frombuffer(bytes(flexbuffers.Dumps(options)), np.uint8)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
