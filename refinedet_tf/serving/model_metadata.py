"""TFLite Model Metadata, by which MediaPipe's ObjectDetector understands an exported file.

A FlatBuffer of its own inside the file, after the schema
https://github.com/google-ai-edge/mediapipe/blob/master/mediapipe/tasks/metadata/metadata_schema.fbs.
"""

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

from refinedet_tf.serving.labels import LABELS

BUFFER_NAME = "TFLITE_METADATA"
IDENTIFIER = b"M001"
MIN_PARSER_VERSION = "1.0.0"
# MediaPipe's names of the Object Detection API's outputs.
OUTPUTS = {
    "detection_boxes": "location",
    "detection_classes": "category",
    "detection_scores": "score",
    "num_detections": "number of detections",
}
RGB, BOUNDARIES, RATIO, VALUE_LABELS = (np.int8(value) for value in (1, 1, 0, 3))  # enumerations of the schema
FEATURE, IMAGE, BOX, NORMALIZATION = (np.uint8(value) for value in (1, 2, 3, 1))  # members of its unions


def add_model_metadata(content: bytes) -> bytes:
    """Returns a TFLite file that ends with `TFLite_Detection_PostProcess` with metadata for MediaPipe."""
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    (signature,) = model.signatureDefs
    names = {output.tensorIndex: output.name.decode() for output in signature.outputs}
    builder = flatbuffers.Builder()
    tables = _model_metadata([names[index] for index in model.subgraphs[0].outputs])
    builder.Finish(_write(builder, tables), file_identifier=IDENTIFIER)
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(bytes(builder.Output()), np.uint8)
    model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name, entry.buffer = BUFFER_NAME, len(model.buffers) - 1
    model.metadata = [*(model.metadata or []), entry]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _model_metadata(outputs: Sequence[str]) -> dict[int, Any]:
    """The tables of the schema as dicts from the number of a field to its value."""
    # Pixels enter as they are, 0..255: the network normalizes them.
    normalization = {0: np.float32([0]), 1: np.float32([1])}
    pixels = {0: np.float32([255]), 1: np.float32([0])}
    image = {0: "image", 3: {0: IMAGE, 1: {0: RGB}}, 4: [{0: NORMALIZATION, 1: normalization}], 5: pixels}
    corners = {0: np.uint32([1, 0, 3, 2]), 1: BOUNDARIES, 2: RATIO}  # where (left, top, right, bottom) are in a box
    labels = {0: LABELS, 1: "Class names by index.", 2: VALUE_LABELS}
    two_dimensions, feature = {0: np.int32(2), 1: np.int32(2)}, {0: FEATURE, 1: {}}
    details = {
        "detection_boxes": {3: {0: BOX, 1: corners, 2: two_dimensions}},
        "detection_classes": {3: {**feature, 2: two_dimensions}, 6: [labels]},
        "detection_scores": {3: {**feature, 2: two_dimensions}},
        "num_detections": {3: feature},
    }
    tensors = [{0: OUTPUTS[name], **details[name]} for name in outputs]
    group = {0: "detection_result", 1: ["location", "category", "score"]}
    subgraph = {2: [image], 3: tensors, 8: [group]}
    return {0: "RefineDet", 1: "Detects objects in an image.", 3: [subgraph], 7: MIN_PARSER_VERSION}


def _write(builder: flatbuffers.Builder, value: Any) -> int:
    """Writes a string, an array of numbers, a list of these or of tables, or a table; returns where it is."""
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, np.ndarray):
        return builder.CreateNumpyVector(value)
    if isinstance(value, list):
        offsets = [_write(builder, element) for element in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()
    offsets = {slot: _write(builder, child) for slot, child in value.items() if not isinstance(child, np.integer)}
    builder.StartObject(max(value, default=-1) + 1)
    scalars = {np.int8: builder.PrependInt8Slot, np.uint8: builder.PrependUint8Slot, np.int32: builder.PrependInt32Slot}
    for slot, child in value.items():
        if slot in offsets:
            builder.PrependUOffsetTRelativeSlot(slot, offsets[slot], 0)
        else:
            scalars[type(child)](slot, int(child), 0)
    return builder.EndObject()
