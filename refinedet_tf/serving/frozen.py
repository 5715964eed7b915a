"""Freezes a network: its variables become constants of the graph, in full or half precision."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from tensorflow import keras
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

# Smaller constants, such as means and shapes, stay as they are.
SMALLEST_HALVED = 64


def frozen_network(
    model: keras.Model, input_shape: Sequence[int], weights: str
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Copies the inference graph of a model with constants in place of its variables.

    Args:
        model: maps images to a dict of tensors.
        input_shape: shape of one image.
        weights: the type of the stored constants: `float32`, `float16` or `bfloat16`. They are cast to float32 before
            use.

    Returns:
        A function like `model(images, training=False)`.
    """
    images = tf.TensorSpec([None, *input_shape], tf.float32, name="images")
    function = tf.function(functools.partial(model, training=False), autograph=False).get_concrete_function(images)
    # A function returns the values of a dict in the order of the sorted keys.
    shapes = {name: output.shape for name, output in sorted(function.structured_outputs.items())}
    frozen = convert_variables_to_constants_v2(function)
    graph = frozen.graph.as_graph_def()
    if weights != "float32":
        _halve_constants(graph, tf.as_dtype(weights))
    imported = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), [])
    network = imported.prune([tensor.name for tensor in frozen.inputs], [tensor.name for tensor in frozen.outputs])

    def run(images: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = zip(shapes.items(), network(images), strict=True)
        return {name: tf.ensure_shape(output, shape) for (name, shape), output in outputs}

    return run


def _halve_constants(graph: tf.compat.v1.GraphDef, dtype: tf.DType) -> None:
    """Stores large float32 constants as `dtype`, each followed by a cast that takes over the constant's name."""
    large = [
        node
        for node in graph.node
        if node.op == "Const"
        and node.attr["dtype"].type == tf.float32.as_datatype_enum
        and np.prod([side.size for side in node.attr["value"].tensor.tensor_shape.dim]) >= SMALLEST_HALVED
    ]
    for node in large:
        values = tf.make_ndarray(node.attr["value"].tensor).astype(dtype.as_numpy_dtype)
        half = graph.node.add(name=f"{node.name}/half", op="Const")
        half.attr["dtype"].type = dtype.as_datatype_enum
        half.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(values))
        node.op = "Cast"
        node.attr.clear()
        node.attr["SrcT"].type = dtype.as_datatype_enum
        node.attr["DstT"].type = tf.float32.as_datatype_enum
        node.input.append(half.name)
