"""TFLite files beside the model they were made from."""

import dataclasses
import io
import json
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.lite.tools import flatbuffer_utils

from refinedet_tf.errors import ExportError
from refinedet_tf.inference.numpy_decoder import decode_detections
from refinedet_tf.inference.tflite_runner import TFLiteModel
from refinedet_tf.ops.boxes import pairwise_iou
from refinedet_tf.ops.detections import decode_predictions, suppress
from refinedet_tf.serving.metadata import read_metadata
from refinedet_tf.serving.tflite import convert_tflite
from refinedet_tf.stacks import KERAS_MAJOR
from tests.conftest import CUT, coarse_noise

SIZE = (64, 128)
# Quantisation, postprocessing, input.
FLOAT = ("none", "op", "float32")
INT8 = ("int8", "op", "uint8")
FLOAT16 = ("float16", "none", "uint8")
DYNAMIC = ("dynamic", "none", "float32")


@pytest.fixture(scope="module")
def photos():
    """Of two sizes, uint8."""
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (8, 8, 3)).repeat(9, 0).repeat(11, 1).astype(np.uint8),
            coarse_noise(rng, 1)[0].astype(np.uint8)]  # fmt: skip


def live_detections(model, image):
    found = {name: value[0].numpy() for name, value in model.detect(image[np.newaxis].astype(np.float32)).items()}
    count = found.pop("num_detections")
    return {name: value[:count] for name, value in found.items()}


def assert_same(found, live, tolerance=1e-5):
    """The same detections; those whose scores are equal but for rounding may be in any order."""
    assert len(found["scores"]) == len(live["scores"]) > 20
    np.testing.assert_allclose(found["scores"], live["scores"], atol=tolerance)
    near = np.abs(found["scores"][:, np.newaxis] - live["scores"]) < tolerance
    near &= found["classes"][:, np.newaxis] == live["classes"]
    near &= np.abs(found["boxes"][:, np.newaxis] - live["boxes"]).max(axis=-1) < 10 * tolerance
    assert near.any(axis=0).all() and near.any(axis=1).all()


def agreement(found, live):
    """Mean overlap of the best hundred live detections with the nearest of their class among those found."""
    overlap = pairwise_iou(live["boxes"][:100], found["boxes"]).numpy()
    overlap *= live["classes"][:100, np.newaxis] == found["classes"]
    return overlap.max(axis=1).mean()


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_float_file_detects_what_the_model_detects(cut_model, tflite_files, photos, num_threads):
    # On two threads TFLite's operation loses a class, were it not for the unused ones.
    served = TFLiteModel(tflite_files(*FLOAT), num_threads=num_threads)
    for photo in photos:
        resized = cut_model.resizing.resize(photo).numpy()
        assert_same(served.detect(photo), live_detections(cut_model, resized))
    assert served.metadata.classes == ["circle", "square", "star"]


def test_more_than_a_hundred_detections_of_a_class_are_found(tflite_files, photos):
    # 100 is TFLite's default, which the converter cannot change.
    assert np.bincount(TFLiteModel(tflite_files(*FLOAT)).detect(photos[1])["classes"]).max() > 100


@pytest.mark.parametrize("kind", [FLOAT, INT8])
def test_both_runtimes_give_the_same(tflite_files, photos, kind):
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    runtimes = (tf.lite.Interpreter, litert.Interpreter)
    here, there = (TFLiteModel(tflite_files(*kind), interpreter=runtime).detect(photos[0]) for runtime in runtimes)
    if kind == INT8 and KERAS_MAJOR == 2:
        # Releases of TFLite that are years apart round int8 differently, which changes what is suppressed.
        assert agreement(here, there) > 0.9 and agreement(there, here) > 0.9
    else:
        assert_same(here, there)


@pytest.mark.parametrize("kind", [FLOAT, INT8])
def test_there_is_no_operation_that_a_runtime_lacks(tflite_files, kind):
    model = flatbuffer_utils.read_model(str(tflite_files(*kind)))
    assert {code.customCode for code in model.operatorCodes if code.customCode} == {b"TFLite_Detection_PostProcess"}


def test_int8_files_have_an_int8_network_between_float_pixels_and_a_float_decode(tflite_files):
    model = flatbuffer_utils.read_model(str(tflite_files(*INT8)))
    graph = model.subgraphs[0]
    kinds = [flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex) for operator in graph.operators]
    types = [
        {flatbuffer_utils.type_to_name(graph.tensors[index].type) for index in operator.outputs}
        for operator in graph.operators
    ]
    network = {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "ADD"}
    assert network <= set(kinds)
    for kind, type_ in zip(kinds, types, strict=True):
        if kind in network - {"ADD"}:
            assert type_ == {"INT8"}
        elif kind in ("STRIDED_SLICE", "EXP", "SOFTMAX", "LOGISTIC", "SELECT_V2", "GATHER", "CONCATENATION"):
            assert type_ <= {"FLOAT32", "BOOL"}, kind
    # One into the network, of normalised pixels, and none behind the heads.
    assert kinds.count("QUANTIZE") == 1
    assert all(type_ == {"FLOAT32"} for type_ in types[: kinds.index("QUANTIZE")])


def test_int8_detections_are_near_the_models(cut_model, tflite_files, photos):
    served = TFLiteModel(tflite_files(*INT8))
    for photo in photos:
        found = served.detect(photo)
        live = live_detections(cut_model, served.prepare(photo)[0])
        assert agreement(found, live) > 0.8  # forty random layers; trained ones agree better


@pytest.mark.parametrize("kind, share, error", [(FLOAT16, 0.51, 0.01), (DYNAMIC, 0.4, 0.3)])
def test_smaller_weights_make_smaller_files(cut_model, tflite_files, photos, kind, share, error):
    weights = sum(np.prod(variable.shape) for variable in cut_model.weights) * 4
    assert tflite_files(*kind).stat().st_size < share * weights + 130_000  # the graph's structure does not shrink
    served = TFLiteModel(tflite_files(*kind))
    inputs = served.prepare(photos[0])
    outputs = served.run(inputs)
    for name, value in cut_model(inputs.astype(np.float32)).items():
        # Root mean square of the error, beside the spread of the values.
        assert np.sqrt(np.mean((outputs[name] - value) ** 2)) < error * np.std(value), name
    raw = {name: np.asarray(value) for name, value in outputs.items()}
    assert_same(served.detect(photos[0]), decode_detections(raw, cut_model.anchors.numpy(), served.metadata.settings))


def test_metadata_are_readable_with_standard_tools(tiny_model, tflite_files):
    with zipfile.ZipFile(tflite_files(*FLOAT16)) as archive:
        assert archive.read("labels.txt").decode().split() == ["circle", "square", "star"]
        settings = json.loads(archive.read("detector.json"))
        anchors = np.load(io.BytesIO(archive.read("anchors.npy")))
    assert settings["input"] == {"name": "images", "type": "uint8", "height": 64, "width": 128, "channels": "RGB",
                                 "range": [0, 255], "normalization": {"mean": 0, "std": 1},
                                 "resize": "warp",
                                 "interpolation": settings["input"]["interpolation"]}  # fmt: skip
    assert (settings["quantize"], settings["postprocess"]) == ("float16", "none")
    assert (settings["score_threshold"], settings["objectness_threshold"]) == (0.01, 0.01)
    assert settings["score_thresholds"] == {"star": 0.4}
    np.testing.assert_array_equal(anchors, tiny_model.anchors)
    assert read_metadata(tflite_files(*FLOAT)).anchors is None


def test_the_signature_names_inputs_and_outputs(tflite_files):
    for kind, names in (
        (FLOAT, ["detection_boxes", "detection_classes", "detection_scores", "num_detections"]),
        (FLOAT16, ["arm_objectness", "arm_offsets", "odm_classes", "odm_offsets"]),
    ):
        signatures = tf.lite.Interpreter(str(tflite_files(*kind))).get_signature_list()
        assert signatures == {"serving_default": {"inputs": ["images"], "outputs": names}}


def test_suppression_across_classes_is_that_of_the_model(tiny_model, photos, tmp_path, monkeypatch):
    across = dataclasses.replace(CUT, suppression="across_classes")
    monkeypatch.setattr(tiny_model, "config", dataclasses.replace(tiny_model.config, detection=across))
    (tmp_path / "across.tflite").write_bytes(convert_tflite(tiny_model, input_type="float32"))
    served = TFLiteModel(tmp_path / "across.tflite")
    for photo in photos:
        found, live = served.detect(photo), live_detections(tiny_model, tiny_model.resizing.resize(photo).numpy())
        assert_same(found, live)
        overlap = pairwise_iou(found["boxes"], found["boxes"]).numpy()
        assert (overlap - np.eye(len(overlap))).max() <= across.iou_threshold + 1e-5


def test_a_score_at_the_threshold_is_no_detection(cut_model, tflite_files, photos, tmp_path, monkeypatch):
    """TensorFlow's suppression keeps scores above the threshold, TFLite's operation those at it, too."""
    scores = TFLiteModel(tflite_files(*FLOAT)).detect(photos[0])["scores"]
    row = int(np.flatnonzero((scores[:-2] > scores[1:-1]) & (scores[1:-1] > scores[2:]))[10]) + 1
    at = dataclasses.replace(CUT, score_threshold=float(scores[row]))
    monkeypatch.setattr(cut_model, "config", dataclasses.replace(cut_model.config, detection=at))
    (tmp_path / "at.tflite").write_bytes(convert_tflite(cut_model, input_type="float32"))
    found = TFLiteModel(tmp_path / "at.tflite").detect(photos[0])["scores"]
    np.testing.assert_array_equal(found, scores[:row])


def test_a_score_at_the_threshold_is_no_detection_of_the_decoder():
    raw, anchors = random_predictions(np.random.default_rng(0), n=200, classes=4)
    settings = {"score_threshold": 0.01, "iou_threshold": 0.45, "pre_suppression_top_k": 0, "max_detections": 500,
                "suppression": "per_class", "objectness_threshold": 0.2}  # fmt: skip
    scores = decode_detections(raw, anchors, settings)["scores"]
    found = decode_detections(raw, anchors, {**settings, "score_threshold": float(scores[20])})["scores"]
    np.testing.assert_array_equal(found, scores[:20])


def test_calibration_images_are_letterboxed(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_model, "resizing", dataclasses.replace(tiny_model.resizing, mode="letterbox"))
    white = [np.full((90, 10, 3), 255, np.uint8)]
    content = convert_tflite(tiny_model, quantize="int8", calibration_images=white)
    # Warped, the input would be all white. Letterboxed, it has the mean color beside the image, so that normalized
    # pixels reach from (104 - 127.5) / 127.5 to 1.
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    graph = model.subgraphs[0]
    kinds = [flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex) for operator in graph.operators]
    quantized = graph.tensors[graph.operators[kinds.index("QUANTIZE")].outputs[0]].quantization
    low = (-128 - int(quantized.zeroPoint[0])) * float(quantized.scale[0])
    assert low == pytest.approx((104 - 127.5) / 127.5, abs=0.01)


def test_int8_asks_for_images(tiny_model):
    with pytest.raises(ExportError, match="calibrate"):
        convert_tflite(tiny_model, quantize="int8")


def test_layers_that_shall_stay_in_float_are_named_if_there_are_none(tiny_model):
    with pytest.raises(ExportError, match="no layer conv99;"):
        images = [np.zeros((64, 128, 3), np.uint8)]
        convert_tflite(tiny_model, quantize="int8", calibration_images=images, float_layers=["conv1", "conv99"])


def test_files_without_metadata_are_named(tmp_path):
    (tmp_path / "other.tflite").write_bytes(b"TFL3 and more")
    with pytest.raises(ExportError, match=r"other\.tflite"):
        TFLiteModel(tmp_path / "other.tflite")


def random_predictions(rng, n, classes):
    """Offsets small, scores with every anchor's own value; anchors anywhere."""
    centers, sides = rng.uniform(0, 1, (n, 2)), rng.uniform(0.05, 0.5, (n, 2))
    anchors = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1).astype(np.float32)
    shapes = {"arm_objectness": 2, "arm_offsets": 4, "odm_classes": 1 + classes, "odm_offsets": 4}
    scale = {"arm_objectness": 4, "arm_offsets": 1, "odm_classes": 2, "odm_offsets": 1}
    raw = {name: rng.normal(0, scale[name], (n, width)).astype(np.float32) for name, width in shapes.items()}
    return raw, anchors


@pytest.mark.parametrize("suppression", ["per_class", "across_classes"])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("top_k, max_detections, score_threshold", [(0, 500, 0.01), (20, 15, 0.1), (30, 500, 0.999)])
def test_the_numpy_decoder_does_what_the_graph_does(seed, top_k, max_detections, score_threshold, suppression):
    raw, anchors = random_predictions(np.random.default_rng(seed), n=200, classes=4)
    settings = {"score_threshold": score_threshold, "iou_threshold": 0.45, "pre_suppression_top_k": top_k,
                "max_detections": max_detections, "suppression": suppression}  # fmt: skip
    found = decode_detections(raw, anchors, {**settings, "objectness_threshold": 0.2})
    batch = {name: value[np.newaxis] for name, value in raw.items()}
    expected = suppress(*decode_predictions(batch, anchors, 0.2), **settings)
    count = int(expected["num_detections"][0])
    assert len(found["scores"]) == count
    np.testing.assert_array_equal(found["classes"], expected["classes"][0, :count])
    np.testing.assert_allclose(found["scores"], expected["scores"][0, :count], atol=1e-6)
    np.testing.assert_allclose(found["boxes"], expected["boxes"][0, :count], atol=1e-5)
