"""Shows where an int8 TFLite file loses precision: compares its tensors with those of the network in float32."""

import csv
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import tensorflow as tf
from tensorflow.lite.tools import flatbuffer_utils


@dataclass(frozen=True)
class TensorRange:
    """One int8 tensor.

    Attributes:
        layer: the layer of the Keras model that computes it; `convert_tflite` takes it among `float_layers`.
        low, high: the range that int8 can express, in the tensor's own unit.
        step: the distance between neighboring values.
        float_low, float_high: the range that occurred in float32.
        precision: signal to error in decibels, 10 log10(variance in float32 / mean squared difference from it). Losses
            of earlier layers are included; a layer that is far below the one before it causes the loss itself.
    """

    layer: str
    low: float
    high: float
    step: float
    float_low: float
    float_high: float
    precision: float


def measure_tensor_ranges(
    exact: bytes, quantized: bytes, images: Iterable[np.ndarray], layers: Collection[str]
) -> list[TensorRange]:
    """Runs two files on the same images and compares their tensors.

    Args:
        exact: a TFLite file in float32.
        quantized: the same model, input type and postprocessing as int8.
        images: in the form of the files' input, `[1, h, w, 3]`.
        layers: names of the model's layers.

    Returns:
        The tensors that are computed in int8, in the order of computation.
    """
    exact_names, names = computed_tensors(exact), computed_tensors(quantized)
    exact, quantized = _open(exact), _open(quantized)
    details = [tensor for tensor in exact.get_tensor_details() if tensor["name"] in exact_names]
    known = {_without_number(tensor["name"]): tensor["index"] for tensor in details}
    int8 = {tensor["name"]: tensor for tensor in quantized.get_tensor_details() if tensor["dtype"] == np.int8}
    tensors = [int8[name] for name in names if name in int8 and _without_number(name) in known]
    sums = np.zeros([len(tensors), 4])  # of values, of their squares, of squared errors, and how many
    lows, highs = np.full(len(tensors), np.inf), np.full(len(tensors), -np.inf)
    for image in images:
        _run(exact, image)
        _run(quantized, image)
        for row, tensor in enumerate(tensors):
            expected = exact.get_tensor(known[_without_number(tensor["name"])]).astype(np.float64)
            scale, zero_point = tensor["quantization"]
            error = (quantized.get_tensor(tensor["index"]).astype(np.float64) - zero_point) * scale - expected
            sums[row] += expected.sum(), (expected**2).sum(), (error**2).sum(), expected.size
            lows[row], highs[row] = min(lows[row], expected.min()), max(highs[row], expected.max())

    total, squares, errors, count = sums.T
    variances = squares / count - (total / count) ** 2
    with np.errstate(divide="ignore"):
        precisions = 10 * np.log10(variances * count) - 10 * np.log10(errors)
    return [
        TensorRange(
            layer=layer_of_tensor(tensor["name"], layers) or tensor["name"],
            low=(-128 - tensor["quantization"][1]) * tensor["quantization"][0],
            high=(127 - tensor["quantization"][1]) * tensor["quantization"][0],
            step=tensor["quantization"][0],
            float_low=float(low),
            float_high=float(high),
            precision=float(precision),
        )
        for tensor, low, high, precision in zip(tensors, lows, highs, precisions, strict=True)
    ]


def computed_tensors(content: bytes) -> list[str]:
    """Returns the names of the tensors of a TFLite file that are not constant, in the order of computation."""
    graph = flatbuffer_utils.convert_bytearray_to_object(bytearray(content)).subgraphs[0]
    return [graph.tensors[index].name.decode() for operator in graph.operators for index in operator.outputs]


def layer_of_tensor(tensor_name: str, layers: Collection[str]) -> str | None:
    """Returns the layer that computes a tensor, from its name, which lists the operations that were fused.

    `refinedet_1/conv1_bn_1/add;refinedet_1/conv1_1/convolution` comes from `conv1`: a convolution comes before what is
    fused into it. TensorFlow may have added a number to a layer's name. TensorFlow 2.15 also lists layers that share a
    constant with this one, such as a zero bias; the tensor's own convolution comes after theirs.
    """
    convolutions, others = [], []
    for operation in tensor_name.split(";"):
        *scopes, kind = operation.split("/")
        for scope in scopes:
            layer = scope if scope in layers else re.sub(r"_\d+$", "", scope)
            if layer in layers:
                is_convolution = "conv" in kind.lower() or kind.startswith("depthwise")
                (convolutions if is_convolution else others).append(layer)
    return convolutions[-1] if convolutions else min(others, key=lambda layer: (len(layer), layer), default=None)


def write_tensor_ranges(ranges: Sequence[TensorRange], path: str | os.PathLike) -> None:
    """Writes the ranges as CSV, one line for each tensor."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(TensorRange)])
        writer.writeheader()
        writer.writerows(asdict(entry) for entry in ranges)


def _open(content: bytes) -> tf.lite.Interpreter:
    interpreter = tf.lite.Interpreter(
        model_content=content,
        experimental_preserve_all_tensors=True,
        # Delegates keep their tensors to themselves.
        experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    return interpreter


def _without_number(tensor_name: str) -> str:
    """The name that is the same in both files; where a constant has it, too, the converter adds some number to one."""
    return tensor_name.rstrip("0123456789")


def _run(interpreter: tf.lite.Interpreter, image: np.ndarray) -> None:
    (details,) = interpreter.get_input_details()
    interpreter.set_tensor(details["index"], image)
    interpreter.invoke()
