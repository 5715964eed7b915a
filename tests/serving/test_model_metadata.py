"""TFLite Model Metadata, read back field by field with the numbers of its schema."""

import flatbuffers
import numpy as np
from flatbuffers import encode, number_types, packer, table

from refinedet_tf.serving.model_metadata import IDENTIFIER, _model_metadata, _write

OUTPUTS = ["detection_boxes", "detection_classes", "detection_scores", "num_detections"]


class Table:
    """The fields of a table by their numbers."""

    def __init__(self, data, position):
        self._table = table.Table(data, position)

    def _place(self, number):
        offset = self._table.Offset(4 + 2 * number)
        return self._table.Pos + offset if offset else None

    def text(self, number):
        return self._table.String(self._place(number)).decode()

    def byte(self, number):
        place = self._place(number)
        return 0 if place is None else int(self._table.Get(number_types.Uint8Flags, place))

    def child(self, number):
        return Table(self._table.Bytes, self._table.Indirect(self._place(number)))

    def _elements(self, number):
        offset = self._table.Offset(4 + 2 * number)
        start, count = self._table.Vector(offset), self._table.VectorLen(offset)
        return [start + 4 * index for index in range(count)]

    def children(self, number):
        return [Table(self._table.Bytes, self._table.Indirect(place)) for place in self._elements(number)]

    def texts(self, number):
        return [self._table.String(place).decode() for place in self._elements(number)]

    def numbers(self, number, dtype):
        return [np.frombuffer(self._table.Bytes, dtype, 1, place)[0] for place in self._elements(number)]

    def integer(self, number):
        return int(self._table.Get(number_types.Int32Flags, self._place(number)))


def test_the_metadata_say_what_mediapipe_needs():
    builder = flatbuffers.Builder()
    builder.Finish(_write(builder, _model_metadata(OUTPUTS)), file_identifier=IDENTIFIER)
    data = bytes(builder.Output())
    assert data[4:8] == b"M001"
    model = Table(data, encode.Get(packer.uoffset, data, 0))
    assert model.text(0) == "RefineDet" and model.text(7) == "1.0.0"
    (graph,) = model.children(3)

    (image,) = graph.children(2)
    assert image.text(0) == "image"
    content = image.child(3)
    assert content.byte(0) == 2 and content.child(1).byte(0) == 1  # ImageProperties, RGB
    (step,) = image.children(4)
    assert step.byte(0) == 1  # NormalizationOptions: pixels as they are
    assert (step.child(1).numbers(0, "<f4"), step.child(1).numbers(1, "<f4")) == ([0], [1])
    assert (image.child(5).numbers(0, "<f4"), image.child(5).numbers(1, "<f4")) == ([255], [0])

    boxes, classes, scores, count = graph.children(3)
    names = [each.text(0) for each in (boxes, classes, scores, count)]
    assert names == ["location", "category", "score", "number of detections"]
    corners = boxes.child(3)
    assert corners.byte(0) == 3  # BoundingBoxProperties
    assert corners.child(1).numbers(0, "<u4") == [1, 0, 3, 2]  # of (ymin, xmin, ymax, xmax)
    assert (corners.child(1).byte(1), corners.child(1).byte(2)) == (1, 0)  # BOUNDARIES, RATIO
    for each in (boxes, classes, scores):
        assert (each.child(3).child(2).integer(0), each.child(3).child(2).integer(1)) == (2, 2)
    assert [each.child(3).byte(0) for each in (classes, scores, count)] == [1, 1, 1]  # FeatureProperties
    (labels,) = classes.children(6)
    assert (labels.text(0), labels.byte(2)) == ("labels.txt", 3)  # TENSOR_VALUE_LABELS
    (group,) = graph.children(8)
    assert group.texts(1) == ["location", "category", "score"]
