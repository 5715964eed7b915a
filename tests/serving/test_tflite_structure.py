"""Crafted TFLite files: each is refused in words before an interpreter follows it anywhere.

That files of this project pass is shown by every test that opens one.
"""

import copy
import struct

import flatbuffers
import numpy as np
import pytest
from flatbuffers import flexbuffers

from refinedet_tf.errors import ExportError
from refinedet_tf.serving.tflite_structure import TABLES, check_structure

PREPEND = {"I": "Uint32", "i": "Int32", "b": "Int8", "B": "Uint8", "?": "Bool"}


def write(builder, name, table):
    """Writes a table from a dict of its fields, a field that must be missing as uint32; returns its place."""
    fields = list(TABLES[name].items())
    places = {field: write_field(builder, kind, table[field]) for field, kind in fields if field in table}
    builder.StartObject(len(fields))
    for number, (field, kind) in enumerate(fields):
        if field in places:
            prepend = PREPEND.get(kind or "I", "UOffsetTRelative")
            getattr(builder, f"Prepend{prepend}Slot")(number, places[field], None)
    return builder.EndObject()


def write_field(builder, kind, value):
    if kind is None or len(kind) == 1:
        return value
    if kind == "string":
        return builder.CreateString(value)
    if kind == "options":
        builder.StartObject(1)
        builder.PrependInt8Slot(0, value, None)
        return builder.EndObject()
    if kind[0] != "[":
        return write(builder, kind, value)
    entry = kind[1:-1]
    if len(entry) == 1:
        return builder.CreateNumpyVector(np.array(value, np.dtype(f"<{entry}")))
    places = [write(builder, entry, one) for one in value]
    builder.StartVector(4, len(places), 4)
    for place in reversed(places):
        builder.PrependUOffsetTRelative(place)
    return builder.EndVector()


# One convolution and the operation at the end, in as few fields as have them all.
MODEL = {
    "version": 3,
    "operator_codes": [{"builtin_code": 3}, {"builtin_code": 32, "custom_code": "TFLite_Detection_PostProcess"}],
    "subgraphs": [
        {
            "tensors": [
                {"shape": [1, 4, 4, 3], "type": 0, "buffer": 0, "name": "images", "shape_signature": [-1, 4, 4, 3]},
                {"shape": [2, 3], "type": 9, "buffer": 1, "quantization": {"scale": [0.5], "zero_point": [0]}},
            ],
            "inputs": [0],
            "outputs": [1],
            "operators": [
                {"inputs": [0, 1, -1], "outputs": [1], "builtin_options_type": 1, "builtin_options": 1},
                {"opcode_index": 1, "inputs": [0], "outputs": [1],
                 "custom_options": list(flexbuffers.Dumps({"max_detections": 5, "h_scale": 5.0}))},
            ],
        }
    ],
    "buffers": [{}, {"data": [1, 2, 3, 4, 5, 6]}],
    "metadata": [{"name": "min_runtime_version", "buffer": 1}],
    "signature_defs": [{"inputs": [{"name": "images", "tensor_index": 0}], "signature_key": "serving_default"}],
}  # fmt: skip


def content_of(model):
    builder = flatbuffers.Builder()
    builder.Finish(write(builder, "Model", model), b"TFL3")
    return bytes(builder.Output())


@pytest.fixture
def check(tmp_path):
    def check(content):
        (tmp_path / "model.tflite").write_bytes(content)
        check_structure(tmp_path / "model.tflite")

    return check


GRAPH, TENSOR, OPERATOR = ("subgraphs", 0), ("subgraphs", 0, "tensors", 1), ("subgraphs", 0, "operators", 1)


@pytest.mark.parametrize(
    "place, value, message",
    [
        (("version",), 2, "it has no graph"),
        (("subgraphs",), [], "it has no graph"),
        ((*GRAPH, "inputs"), [2], "a tensor is missing"),
        ((*GRAPH, "outputs"), [-1], "a tensor is missing"),
        ((*TENSOR, "buffer"), 2, "a tensor has no buffer"),
        ((*TENSOR, "shape"), [2, -3], "a tensor has a side below 0"),
        ((*TENSOR, "shape"), [2**16, 2**16], "a tensor has 4294967296 bytes"),
        ((*TENSOR, "shape"), [2, 4], "a tensor of 8 bytes has 6"),
        ((*TENSOR, "type"), 5, "a tensor has numbers of type 5"),
        ((*TENSOR, "sparsity"), 1, "a Tensor has sparsity, which no export"),
        ((*TENSOR, "quantization", "details"), 1, "a QuantizationParameters has details, which no export"),
        ((*OPERATOR, "opcode_index"), 2, "an operator has no kind"),
        ((*OPERATOR, "inputs"), [2], "a tensor is missing"),
        ((*OPERATOR, "outputs"), [-2], "a tensor is missing"),
        ((*OPERATOR, "large_custom_options_offset"), 8, "large_custom_options_offset, which no export"),
        ((*OPERATOR, "custom_options"), [1, 2, 3], "the options of an operator are damaged"),
        ((*OPERATOR, "custom_options"), list(flexbuffers.Dumps({"a": [1]})), "options that are no numbers"),
        ((*OPERATOR, "custom_options"), [0] * 5000, "an operator has long options"),
        (("subgraphs", 0, "operators", 0, "builtin_options_type"), 111, "options of type 111, which no export"),
        (("subgraphs", 0, "operators", 0, "builtin_options_type"), 127, "options of type 127, which no export"),
        (("metadata", 0, "buffer"), 2, "metadata are missing"),
        (("signature_defs", 0, "subgraph_index"), 1, "a signature has no graph"),
        (("signature_defs", 0, "inputs", 0, "tensor_index"), 2, "a signature has no tensor"),
    ],
)
def test_what_refers_to_nothing_is_refused(check, place, value, message):
    check(content_of(MODEL))
    model = copy.deepcopy(MODEL)
    part = model
    for step in place[:-1]:
        part = part[step]
    part[place[-1]] = value
    with pytest.raises(ExportError, match=rf"model\.tflite is not a TFLite file .*: .*{message}"):
        check(content_of(model))


def test_every_changed_byte_is_refused_or_harmless(check):
    """No other error, however the offsets, lengths and tables are changed."""
    content, refused = content_of(MODEL), 0
    for place in range(len(content)):
        for value in {content[place] ^ 0x80, content[place] ^ 1, 0xFF, 0} - {content[place]}:
            changed = bytearray(content)
            changed[place] = value
            try:
                check(bytes(changed))
            except ExportError:
                refused += 1
    assert refused > 2 * len(content)
    for length in range(len(content)):
        with pytest.raises(ExportError):
            check(content[:length])


def test_places_before_the_file_are_refused(check):
    """Python counts negative places from the end; an interpreter would read before the file."""
    content = content_of(MODEL)
    (root,) = struct.unpack_from("<I", content)
    for offset in (root + 4, root + 400, 2**31 - 1):
        with pytest.raises(ExportError, match="is not in the file"):
            check(content[:root] + struct.pack("<i", offset) + content[root + 4 :])


def test_tables_that_are_read_again_and_again_are_refused(check):
    builder = flatbuffers.Builder()
    builder.StartObject(1)
    graph = builder.EndObject()
    builder.StartVector(4, 10_000, 4)
    for _ in range(10_000):
        builder.PrependUOffsetTRelative(graph)
    graphs = builder.EndVector()
    builder.StartObject(3)
    builder.PrependUint32Slot(0, 3, None)
    builder.PrependUOffsetTRelativeSlot(2, graphs, None)
    builder.Finish(builder.EndObject(), b"TFL3")
    with pytest.raises(ExportError, match="its tables are shared"):
        check(bytes(builder.Output()))
