"""Reads the weights out of a Caffe model file (.caffemodel) without Caffe.

A .caffemodel is one serialized protobuf message, `NetParameter` of Caffe's caffe.proto. The few fields that hold
weights are declared here; google.protobuf parses them. Everything nested or long is declared as `bytes`, which has the
same wire format: a packed list of floats becomes a NumPy array without a Python object per number, and a level is only
parsed after the level above has been checked, so that a hostile file cannot unfold into message objects of a hundred
times its size.
"""

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from refinedet_tf.errors import WeightFileError
from refinedet_tf.weights.files.opening import open_weight_file

# Protobuf messages are limited to 2 GiB. The other limits are far above any network: ResNet-101 has about 800 layers.
MAX_BYTES = 2**31 - 1
MAX_LAYERS = 100_000
MAX_BLOBS = 100
MAX_AXES = 32  # Caffe's own limit
MAX_SHAPE_BYTES = 16 * MAX_AXES  # a size takes 11 bytes at most

_Field = descriptor_pb2.FieldDescriptorProto
# message: {field: (number, type, label)}; the numbers are those of caffe.proto.
_MESSAGES = {
    "NetParameter": {
        "layers": (2, _Field.TYPE_BYTES, _Field.LABEL_REPEATED),  # V1LayerParameter, until 2014
        "layer": (100, _Field.TYPE_BYTES, _Field.LABEL_REPEATED),  # LayerParameter
    },
    "V1LayerParameter": {
        "layer": (1, _Field.TYPE_BYTES, _Field.LABEL_OPTIONAL),  # V0LayerParameter, until 2013
        "name": (4, _Field.TYPE_BYTES, _Field.LABEL_OPTIONAL),
        "blobs": (6, _Field.TYPE_BYTES, _Field.LABEL_REPEATED),  # BlobProto
    },
    "LayerParameter": {
        "name": (1, _Field.TYPE_BYTES, _Field.LABEL_OPTIONAL),
        "blobs": (7, _Field.TYPE_BYTES, _Field.LABEL_REPEATED),  # BlobProto
    },
    "BlobProto": {
        "num": (1, _Field.TYPE_INT32, _Field.LABEL_OPTIONAL),
        "channels": (2, _Field.TYPE_INT32, _Field.LABEL_OPTIONAL),
        "height": (3, _Field.TYPE_INT32, _Field.LABEL_OPTIONAL),
        "width": (4, _Field.TYPE_INT32, _Field.LABEL_OPTIONAL),
        "data": (5, _Field.TYPE_BYTES, _Field.LABEL_OPTIONAL),  # packed float32
        "shape": (7, _Field.TYPE_BYTES, _Field.LABEL_OPTIONAL),  # BlobShape
        "double_data": (8, _Field.TYPE_BYTES, _Field.LABEL_OPTIONAL),  # packed float64
    },
    "BlobShape": {
        "dim": (1, _Field.TYPE_INT64, _Field.LABEL_REPEATED),
    },
}
_LEGACY_DIMENSIONS = ("num", "channels", "height", "width")


def _message_classes() -> dict[str, type]:
    file = descriptor_pb2.FileDescriptorProto(name="refinedet_tf_caffe.proto", package="refinedet_tf_caffe")
    for message_name, fields in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for name, (number, type_, label) in fields.items():
            message.field.add(name=name, number=number, type=type_, label=label)
    pool = descriptor_pool.DescriptorPool()  # a pool of its own: a real caffe.proto may be loaded beside it
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{name}"))
        for name in _MESSAGES
    }


_CLASSES = _message_classes()


def read_caffemodel(path: str | os.PathLike) -> dict[str, list[np.ndarray]]:
    """Reads the blobs of every layer of a .caffemodel.

    Supported are the current format (`layer`) and the older V1 format (`layers`), single and double precision, and the
    legacy four-dimensional shapes (num, channels, height, width). Of the latter, (1, 1, 1, C) stands for a vector and
    becomes (C,); all others keep their four axes.

    A file that was cut exactly between two layers is a valid, shorter file: the caller must check that all layers of
    the network are there.

    Args:
        path: the file.

    Returns:
        The blobs of each layer by its name, in the order of the file: float32, in Caffe's order and layout (weights
        (out, in, kh, kw) first, then the bias). Layers without blobs are left out.

    Raises:
        WeightFileError: the file is missing, not a regular file, not a Caffe model, truncated or inconsistent, has two
            layers of one name, or is older than V1.
    """
    with open_weight_file(path) as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise WeightFileError(f"{path} is larger than 2 GiB, which no Caffe model can be")
    net = _parse("NetParameter", raw, f"{path} is not a Caffe model, or is truncated")
    if len(net.layers) + len(net.layer) > MAX_LAYERS:
        raise WeightFileError(f"{path} declares more than {MAX_LAYERS} layers")

    layers = {}
    for name, raw_blobs in _layers(net, path):
        if name in layers:
            raise WeightFileError(f"{path}: two layers are named {name!r}")
        layers[name] = [
            _blob_to_array(raw_blob, f"{path}: layer {name!r}, blob {i}") for i, raw_blob in enumerate(raw_blobs)
        ]
    if not layers:
        raise WeightFileError(f"{path} holds no layer with weights; is it a Caffe model (.caffemodel)?")
    return layers


def _layers(net: Any, path: str | os.PathLike) -> Iterator[tuple[str, list[bytes]]]:
    """Yields the name and the serialized blobs of every layer that has blobs."""
    for class_name, raw_layers in (("V1LayerParameter", net.layers), ("LayerParameter", net.layer)):
        for i, raw_layer in enumerate(raw_layers):
            layer = _parse(class_name, raw_layer, f"{path}: layer number {i} is damaged")
            if class_name == "V1LayerParameter" and layer.HasField("layer"):
                raise WeightFileError(
                    f"{path} is in Caffe's V0 format of 2013; convert it with Caffe's upgrade_net_proto_binary"
                )
            name = layer.name.decode("utf-8", "backslashreplace")
            if len(layer.blobs) > MAX_BLOBS:
                raise WeightFileError(f"{path}: layer {name!r} declares more than {MAX_BLOBS} blobs")
            if layer.blobs:
                yield name, list(layer.blobs)


def _blob_to_array(raw_blob: bytes, where: str) -> np.ndarray:
    blob = _parse("BlobProto", raw_blob, f"{where} is damaged")
    if any(blob.HasField(name) for name in _LEGACY_DIMENSIONS):  # these win in Caffe, too
        shape = tuple(getattr(blob, name) for name in _LEGACY_DIMENSIONS)
        if shape[:3] == (1, 1, 1):
            shape = shape[3:]
    else:
        if len(blob.shape) > MAX_SHAPE_BYTES:
            raise WeightFileError(f"{where} has more than the {MAX_AXES} axes that Caffe allows")
        dim = _parse("BlobShape", blob.shape, f"{where} has a damaged shape").dim
        if len(dim) > MAX_AXES:
            raise WeightFileError(f"{where} has more than the {MAX_AXES} axes that Caffe allows")
        shape = tuple(dim)
    if any(size <= 0 for size in shape):
        raise WeightFileError(f"{where} has the impossible shape {shape}")

    values, dtype = (blob.double_data, "<f8") if blob.double_data else (blob.data, "<f4")
    if len(values) != math.prod(shape) * np.dtype(dtype).itemsize:
        raise WeightFileError(
            f"{where} has shape {shape}, which is {math.prod(shape)} values, but holds {len(values)} bytes of {dtype} "
            "(only floats and doubles in one packed list are read)"
        )
    return np.frombuffer(values, dtype).astype(np.float32).reshape(shape)


def _parse(class_name: str, raw: bytes, error_message: str) -> Any:
    try:
        return _CLASSES[class_name].FromString(raw)
    except DecodeError as error:
        raise WeightFileError(error_message) from error


def fold_statistics(blobs: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Converts the three blobs of a Caffe BatchNorm layer into running statistics.

    Caffe stores sums that decay with the moving average, and in the third blob the factor to divide them by:
    mean = blob 0 / factor, variance = blob 1 / factor, and both 0 if the factor is 0.

    Args:
        blobs: mean [C], variance [C] and the factor, a single number.

    Returns:
        (mean, variance), float32 [C] each.

    Raises:
        WeightFileError: the blobs are not those of a BatchNorm layer.
    """
    shapes = [blob.shape for blob in blobs]
    if len(blobs) != 3 or blobs[0].ndim != 1 or shapes[0] != shapes[1] or blobs[2].size != 1:
        raise WeightFileError(f"a BatchNorm layer has blobs of shape (C,), (C,) and (1,), not {shapes}")
    mean, variance, factor = blobs[0], blobs[1], blobs[2].item()
    scale = np.float32(0 if factor == 0 else 1 / factor)
    return mean * scale, variance * scale


# The fields that may precede the first layer of a NetParameter: field number -> wire type (0: a varint, 2: a length and
# as many bytes).
_LEADING_FIELDS = {1: 2, 3: 2, 4: 0, 5: 0, 6: 2, 7: 0, 8: 2}
# The fields of layers, and the fields that a layer starts with.
_LAYER_FIELDS = {2: {1: 2, 2: 2, 3: 2, 4: 2}, 100: {1: 2, 2: 2}}
_PREFIX_BYTES = 4096


def is_caffemodel(path: str | os.PathLike) -> bool:
    """Returns whether a file looks like a .caffemodel, judging by its first bytes.

    Args:
        path: the file.

    Returns:
        True if the file starts like a serialized `NetParameter`: its name and inputs, then a layer. Other protobuf
        files (SavedModel, GraphDef, ONNX) and zip, HDF5 or pickle files give False.

    Raises:
        WeightFileError: the file is missing or not a regular file.
    """
    with open_weight_file(path) as file:
        prefix = file.read(_PREFIX_BYTES)
    position = 0
    named = False
    while (tag := _varint(prefix, position)) is not None:
        field, wire_type = tag[0] >> 3, tag[0] & 7
        value = _varint(prefix, tag[1])  # the number itself, or the length of what follows
        if value is None:
            return False
        if field in _LAYER_FIELDS:
            inner = _varint(prefix, value[1])
            return wire_type == 2 and inner is not None and _LAYER_FIELDS[field].get(inner[0] >> 3) == inner[0] & 7
        if _LEADING_FIELDS.get(field) != wire_type or (field == 1 and named):
            return False
        named = named or field == 1
        position = value[1] + (value[0] if wire_type == 2 else 0)
    return False


def _varint(data: bytes, position: int) -> tuple[int, int] | None:
    """Reads a protobuf varint; returns it and the position after it, or None if the data ends first."""
    value = 0
    for i, byte in enumerate(data[position : position + 10]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, position + i + 1
    return None
