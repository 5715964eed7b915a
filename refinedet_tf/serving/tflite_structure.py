"""Checks a TFLite file before an interpreter reads it.

TFLite follows the offsets, lengths and indices of a FlatBuffer without looking at them, so that a crafted file makes it
read anywhere. Here they are followed first, and each must lead to a place inside the file. The tables are those of the
schema https://github.com/tensorflow/tensorflow/blob/master/tensorflow/compiler/mlir/lite/schema/schema.fbs, without
those parts that no export of this project has, which are refused.
"""

import math
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from flatbuffers import flexbuffers

from refinedet_tf.errors import ExportError

IDENTIFIER = b"TFL3"
# The fields of each table in order: the letter of a number's type in `struct`; `[x]` for a vector of these; the name of
# a table; None for a field that must be missing.
TABLES = {
    "Model": {
        "version": "I",
        "operator_codes": "[OperatorCode]",
        "subgraphs": "[SubGraph]",
        "description": "string",
        "buffers": "[Buffer]",
        "metadata_buffer": "[i]",
        "metadata": "[Metadata]",
        "signature_defs": "[SignatureDef]",
    },
    "OperatorCode": {"deprecated_builtin_code": "b", "custom_code": "string", "version": "i", "builtin_code": "i"},
    "SubGraph": {
        "tensors": "[Tensor]",
        "inputs": "[i]",
        "outputs": "[i]",
        "operators": "[Operator]",
        "name": "string",
        "debug_metadata_index": "i",
    },
    "Tensor": {
        "shape": "[i]",
        "type": "b",
        "buffer": "I",
        "name": "string",
        "quantization": "QuantizationParameters",
        "is_variable": "?",
        "sparsity": None,
        "shape_signature": "[i]",
        "has_rank": "?",
    },
    "QuantizationParameters": {
        "min": "[f]",
        "max": "[f]",
        "scale": "[f]",
        "zero_point": "[q]",
        "details_type": None,
        "details": None,
        "quantized_dimension": "i",
    },
    "Operator": {
        "opcode_index": "I",
        "inputs": "[i]",
        "outputs": "[i]",
        "builtin_options_type": "B",
        "builtin_options": "options",
        "custom_options": "[B]",
        "custom_options_format": "b",
        "mutating_variable_inputs": "[?]",
        "intermediates": "[i]",
        "large_custom_options_offset": None,
        "large_custom_options_size": None,
        "builtin_options_2_type": None,
        "builtin_options_2": None,
        "debug_metadata_index": "i",
    },
    "Buffer": {"data": "[B]"},
    "Metadata": {"name": "string", "buffer": "I"},
    "SignatureDef": {
        "inputs": "[TensorMap]",
        "outputs": "[TensorMap]",
        "signature_key": "string",
        "deprecated_tag": None,
        "subgraph_index": "I",
    },
    "TensorMap": {"name": "string", "tensor_index": "I"},
}
MAX_OPTIONS_TYPE = 126
# Options of operators have numbers only, except these: a vector of int32 as their only field, or texts and more.
OPTIONS_WITH_VECTOR = (17, 30)  # Reshape, Squeeze
OPTIONS_REFUSED = (3, 111, 115)  # ConcatEmbeddings, VarHandle, Bucketize
# Bytes of a number of each type that a tensor of this project's exports has.
BYTES = {0: 4, 1: 2, 2: 4, 3: 1, 4: 8, 6: 1, 7: 2, 9: 1}  # float32, float16, int32, uint8, int64, bool, int16, int8
MAX_TENSOR = 2**31  # bytes
MAX_CUSTOM_OPTIONS = 2**12  # bytes; TFLite_Detection_PostProcess has a few hundred


def check_structure(path: str | os.PathLike) -> None:
    """Checks that an interpreter will stay inside a file and its tensors.

    Raises:
        OSError: the file cannot be read.
        ExportError: it would not, or the file has parts that no export of this project has.
    """
    try:
        _check_indices(_Reader(Path(path).read_bytes()).model())
    except (ValueError, struct.error) as error:
        raise ExportError(f"{os.fspath(path)} is not a TFLite file that this project exported: {error}") from error


class _Reader:
    """Reads the tables of a FlatBuffer as nested dicts, and takes no place in the file on trust."""

    def __init__(self, data: bytes):
        self._data = data
        # A table and the offset that leads to it take 8 bytes. More tables than that would be the same ones again.
        self._tables_left = len(data) // 8

    def model(self) -> dict[str, Any]:
        """Returns the root table.

        Raises:
            ValueError: something leads out of the file, or does not belong into it.
        """
        if self._data[4:8] != IDENTIFIER:
            raise ValueError("it does not begin like one")
        return self._table("Model", self._target(0))

    def _number(self, letter: str, position: int) -> Any:
        size = struct.calcsize(letter)
        if not 0 <= position <= len(self._data) - size or position % size:
            raise ValueError(f"a number at byte {position} is not in the file")
        return struct.unpack_from(f"<{letter}", self._data, position)[0]

    def _target(self, position: int) -> int:
        return position + self._number("I", position)

    def _vector(self, position: int, size: int) -> tuple[int, int]:
        """Returns the first byte and the length of a vector whose entries have `size` bytes."""
        start, length = position + 4, self._number("I", position)
        if start + length * size > len(self._data) or start % size:
            raise ValueError(f"a vector at byte {position} is not in the file")
        return start, length

    def _fields(self, position: int) -> tuple[dict[int, int], int]:
        """Returns the places of a table's fields by their numbers, and the end of the table."""
        self._tables_left -= 1
        if self._tables_left < 0:
            raise ValueError("its tables are shared")
        vtable = position - self._number("i", position)
        size, table_size = self._number("H", vtable), self._number("H", vtable + 2)
        end = position + table_size
        if size < 4 or size % 2 or vtable + size > len(self._data) or end > len(self._data):
            raise ValueError(f"a table at byte {position} is not in the file")
        offsets = struct.unpack_from(f"<{size // 2 - 2}H", self._data, vtable + 4)
        if any(offset and not 4 <= offset < table_size for offset in offsets):
            raise ValueError(f"a field of a table at byte {position} is not in it")
        return {number: position + offset for number, offset in enumerate(offsets) if offset}, end

    def _table(self, name: str, position: int) -> dict[str, Any]:
        schema = list(TABLES[name].items())
        places, end = self._fields(position)
        values = {}
        for number, place in places.items():
            field, kind = schema[number] if number < len(schema) else (f"field {number}", None)
            if kind is None:
                raise ValueError(f"a {name} has {field}, which no export of this project has")
            if place + (struct.calcsize(kind) if len(kind) == 1 else 4) > end:
                raise ValueError(f"the {field} of a {name} is not in it")
            if kind == "options":
                self._check_options(self._target(place), values.get("builtin_options_type", 0))
            else:
                values[field] = self._value(kind, place)
        return values

    def _value(self, kind: str, place: int) -> Any:
        if len(kind) == 1:
            return self._number(kind, place)
        target = self._target(place)
        if kind == "string":
            start, length = self._vector(target, 1)
            self._number("B", start + length)  # the zero at its end
            return self._data[start : start + length]
        if kind[0] != "[":
            return self._table(kind, target)
        entry = kind[1:-1]
        if len(entry) == 1:
            start, length = self._vector(target, struct.calcsize(entry))
            return np.frombuffer(self._data, f"<{entry}", length, start)
        start, length = self._vector(target, 4)
        return [self._table(entry, self._target(start + 4 * index)) for index in range(length)]

    def _check_options(self, position: int, kind: int) -> None:
        if not 0 < kind <= MAX_OPTIONS_TYPE or kind in OPTIONS_REFUSED:
            raise ValueError(f"an operator has options of type {kind}, which no export of this project has")
        for place in self._fields(position)[0].values():
            if kind in OPTIONS_WITH_VECTOR:
                self._vector(self._target(place), 4)
            else:
                self._number("B", place + 7)  # the longest number has 8 bytes


def _check_indices(model: dict[str, Any]) -> None:
    """Checks what refers to tables by their numbers, and the sizes of tensors.

    Raises:
        ValueError: a table is missing, or a size is impossible.
    """
    buffers, graphs = model.get("buffers", []), model.get("subgraphs", [])
    codes = len(model.get("operator_codes", []))
    _check(model.get("version") == 3 and graphs, "it has no graph")
    for graph in graphs:
        tensors = graph.get("tensors", [])
        for tensor in tensors:
            _check_tensor(tensor, buffers)
        for operator in graph.get("operators", []):
            _check(operator.get("opcode_index", 0) < codes, "an operator has no kind")
            _check_places(operator, ("inputs", "outputs", "intermediates"), len(tensors), optional=True)
            _check_custom_options(bytes(operator.get("custom_options", b"")))
        _check_places(graph, ("inputs", "outputs"), len(tensors))
    for entry in model.get("metadata", []):
        _check(entry.get("buffer", 0) < len(buffers), "metadata are missing")
    for signature in model.get("signature_defs", []):
        index = signature.get("subgraph_index", 0)
        _check(index < len(graphs), "a signature has no graph")
        count = len(graphs[index].get("tensors", []))
        for entry in [*signature.get("inputs", []), *signature.get("outputs", [])]:
            _check("name" in entry and entry.get("tensor_index", 0) < count, "a signature has no tensor")


def _check_tensor(tensor: dict[str, Any], buffers: list[dict[str, Any]]) -> None:
    shape = [int(side) for side in tensor.get("shape", [])]
    kind = tensor.get("type", 0)
    _check(kind in BYTES, f"a tensor has numbers of type {kind}, which no export of this project has")
    _check(all(side >= 0 for side in shape), "a tensor has a side below 0")
    size = math.prod(shape) * BYTES[kind]
    _check(size <= MAX_TENSOR, f"a tensor has {size} bytes")
    index = tensor.get("buffer", 0)
    _check(index < len(buffers), "a tensor has no buffer")
    content = buffers[index].get("data", ())
    _check(len(content) in (0, size), f"a tensor of {size} bytes has {len(content)}")


def _check_places(table: dict[str, Any], fields: tuple[str, ...], count: int, *, optional: bool = False) -> None:
    for field in fields:
        places = np.asarray(table.get(field, []), np.int64)
        _check(bool(((places >= (-1 if optional else 0)) & (places < count)).all()), "a tensor is missing")


def _check_custom_options(content: bytes) -> None:
    """Checks a map of names to numbers in FlexBuffers: written again, it must be the same."""
    if not content:
        return
    _check(len(content) <= MAX_CUSTOM_OPTIONS, "an operator has long options")
    try:
        options = flexbuffers.GetRoot(content).AsMap
        _check(all(entry.IsNumeric for entry in options.Values), "an operator has options that are no numbers")
        values = options.Value
        # Names are in the order in which they were written first.
        order = sorted(values, key=lambda name: content.find(name.encode() + b"\0"))
        same = bytes(flexbuffers.Dumps({name: values[name] for name in order})) == content
    except Exception as error:  # of many kinds, since the parser trusts what it reads
        raise ValueError(f"the options of an operator are damaged: {error}") from error
    _check(same, "the options of an operator are damaged")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
