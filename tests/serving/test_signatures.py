"""An exported model in a process that cannot import `refinedet_tf`, beside the live one in this process."""

import dataclasses
import functools
import io
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2

from refinedet_tf.ops.detections import decode_predictions, suppress
from refinedet_tf.ops.resizing import Resizing
from refinedet_tf.serving.labels import label_table, write_labels
from refinedet_tf.serving.outputs import OUTPUT_NAMES, from_outputs, to_outputs
from refinedet_tf.serving.saved_model import export_saved_model
from refinedet_tf.serving.signatures import decode_batch, signatures
from refinedet_tf.serving.warmup import write_warmup_requests
from refinedet_tf.verification import _memory, _reset_peak_memory
from tests.photos import png_that_claims

# Runs elsewhere: loads the SavedModel given first, feeds it the arrays of the .npz given second, in which
# "signature/case/input" names an input, and writes outputs as "signature/case/output".
CLIENT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "refinedet_tf":
            raise ImportError("refinedet_tf is not for clients")

sys.meta_path.insert(0, Blocker())
import numpy as np
import tensorflow as tf

signatures = tf.saved_model.load(sys.argv[1]).signatures
inputs, results = {}, {}
for key, value in np.load(sys.argv[2], allow_pickle=True).items():
    signature, case, name = key.split("/")
    inputs.setdefault((signature, case), {})[name] = tf.constant(value.tolist() if value.dtype == object else value)
for (signature, case), arguments in inputs.items():
    for name, value in signatures[signature](**arguments).items():
        results[f"{signature}/{case}/{name}"] = value.numpy()
np.savez(sys.argv[3], **results)
assert not any(name.startswith("refinedet_tf") for name in sys.modules)
"""

SETTINGS = {"score_threshold": np.float32(0.3), "iou_threshold": np.float32(0.2), "max_detections": np.int32(17)}


def encode(image, kind):
    return getattr(tf.io, f"encode_{kind}")(image).numpy()


@pytest.fixture(scope="module")
def batches():
    """Two images of one size, three of another, one of the model's own."""
    rng = np.random.default_rng(0)
    shapes = {"small": (2, 50, 40, 3), "large": (3, 150, 333, 3), "own": (1, 64, 128, 3)}
    return {name: rng.integers(0, 256, shape, dtype=np.uint8) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def files(batches):
    """Image files of two sizes and two formats, and what is none: text, a JPEG and a PNG cut short, nothing."""
    good = [encode(batches["small"][0], "png"), encode(batches["large"][1], "jpeg"), encode(batches["large"][2], "png")]
    return [good[0], b"no image", good[1], good[1][: len(good[1]) // 2], good[2][:-1000], b"", good[2]]


def in_format(image, kind, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def of_size(height, width, kind):
    return in_format(np.zeros((height, width, 3), np.uint8), kind)


@pytest.fixture(scope="module")
def served(exported):
    """All signatures of the exported model."""
    loaded = tf.saved_model.load(str(exported))
    yield loaded.signatures


@pytest.fixture(scope="module")
def decode_limited():
    """`decode_batch` with a limit of 5,000 pixels."""
    resizing = Resizing(64, 128)
    return tf.function(lambda files: decode_batch(files, resizing, max_pixels=5000))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
def test_files_that_claim_more_pixels_than_allowed_are_not_decoded(decode_limited, kind):
    files = [of_size(50, 100, kind), of_size(51, 100, kind), of_size(100, 50, kind), of_size(1, 5001, kind)]
    images, sizes, is_valid = decode_limited(tf.constant(files))
    assert is_valid.numpy().tolist() == [True, False, True, False]
    assert sizes.numpy()[[0, 2]].tolist() == [[50, 100], [100, 50]] and images.shape == (4, 64, 128, 3)


def test_of_an_animated_gif_the_first_frame_counts(decode_limited):
    rng = np.random.default_rng(1)
    frames = [rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(3)]
    others = [Image.fromarray(frame) for frame in frames[1:]]
    animated = in_format(frames[0], "GIF", save_all=True, append_images=others)
    images, sizes, is_valid = decode_limited(tf.constant([animated, in_format(frames[0], "GIF")]))
    assert is_valid.numpy().all() and sizes.numpy().tolist() == [[32, 32]] * 2
    np.testing.assert_array_equal(images[0], images[1])
    assert np.std(images[0]) > 10


def test_a_decompression_bomb_is_never_decoded(served):
    bombs = [png_that_claims(20_000, 20_000), png_that_claims(2**31 - 1, 2**31 - 1)]
    serve = served["serving_bytes"]
    serve(image_bytes=tf.constant([of_size(8, 8, "PNG")] * 3))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outputs = serve(image_bytes=tf.constant([*bombs, of_size(8, 8, "PNG")]))
    assert outputs["image_is_valid"].numpy().tolist() == [False, False, True]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB; 400 megapixels take 1.2 GB


def test_one_full_size_image_is_in_memory_at_a_time(served):
    photo = in_format(np.zeros((3000, 4000, 3), np.uint8), "PNG", compress_level=1)
    before = _reset_peak_memory()
    if before is None:
        pytest.skip("the peak of a process's memory cannot be reset here")
    outputs = served["serving_bytes"](image_bytes=tf.constant([photo] * 8))
    assert outputs["image_is_valid"].numpy().all()
    assert _memory("VmHWM") - before < 4 * 34.4  # MiB of a photo


@pytest.mark.parametrize("name", ["serving_default", "serving_bytes", "serving_raw", "serving_tunable"])
def test_a_batch_of_no_images_gives_an_empty_result(served, name):
    settings = {key: tf.constant(value) for key, value in SETTINGS.items()} if name == "serving_tunable" else {}
    if name == "serving_bytes":
        empty = [{"image_bytes": tf.zeros([0], tf.string)}]
    else:
        empty = [{"images": tf.zeros([0, 50, 40, 3], tf.uint8)}]
    for images in empty:
        outputs = served[name](**images, **settings)
        assert {len(value) for value in outputs.values()} == {0}
        if name != "serving_raw":
            assert outputs["detection_boxes"].shape[1:] == (17 if settings else 500, 4)


def test_a_batch_of_no_images_is_empty_with_onednn_too(exported):
    # TensorFlow chooses oneDNN by the processor. Its convolution returns an empty batch in the shape of its input.
    code = "import sys, tensorflow as tf; serve = tf.saved_model.load(sys.argv[1]).signatures['serving_default']; "
    code += "print(serve(tf.zeros([0, 50, 40, 3], tf.uint8))['detection_boxes'].shape)"
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "1"}
    command = [sys.executable, "-I", "-c", code, str(exported)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "(0, 500, 4)" in result.stdout, result.stderr


@pytest.mark.parametrize("count", [0, -1])
def test_no_detections_at_all_cannot_be_asked_for(served, batches, count):
    settings = {key: tf.constant(value) for key, value in SETTINGS.items()}
    settings["max_detections"] = tf.constant(count)
    with pytest.raises(tf.errors.InvalidArgumentError, match="max_detections must be at least 1"):
        served["serving_tunable"](images=tf.constant(batches["small"]), **settings)


def test_the_tunable_signature_keeps_the_best_anchors_of_each_class_only(cut_model, batches, tmp_path):
    few = dataclasses.replace(cut_model.config.detection, pre_suppression_top_k=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cut_model, "config", dataclasses.replace(cut_model.config, detection=few))
        functions = signatures(functools.partial(cut_model, training=False), cut_model, lambda indices: indices)
    serve, _ = functions["serving_tunable"]
    found = serve(tf.constant(batches["small"]), *map(tf.constant, (np.float32(0), np.float32(1), np.int32(100))))
    # With nothing suppressed, what remains is the best five of each of the three classes.
    np.testing.assert_array_equal(found["num_detections"], [15, 15])


@pytest.fixture(scope="module")
def outputs(exported, batches, files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("client")
    inputs = {f"serving_default/{name}/images": batch for name, batch in batches.items()}
    inputs["serving_raw/small/images"] = batches["small"]
    inputs |= {f"serving_tunable/large/{name}": value for name, value in SETTINGS.items()}
    inputs["serving_tunable/large/images"] = batches["large"]
    inputs["serving_bytes/mixed/image_bytes"] = np.array(files, object)
    inputs["serving_bytes/all_bad/image_bytes"] = np.array([b"x", b"y"], object)
    np.savez(folder / "inputs.npz", **inputs)
    arguments = [str(exported), str(folder / "inputs.npz"), str(folder / "outputs.npz")]
    # -I: neither this folder nor the environment lead to the package.
    result = subprocess.run([sys.executable, "-I", "-c", CLIENT, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return dict(np.load(folder / "outputs.npz", allow_pickle=True))


def of(outputs, call):
    return {name.rsplit("/", 1)[1]: value for name, value in outputs.items() if name.startswith(f"{call}/")}


def assert_same_detections(served, live, rows=slice(None)):
    """The same detections; those whose scores are equal but for rounding may be in any order."""
    live = {name: np.asarray(value) for name, value in live.items()}
    np.testing.assert_array_equal(served["num_detections"][rows], live["num_detections"])
    np.testing.assert_allclose(served["detection_scores"][rows], live["scores"], atol=1e-6)
    xmin, ymin, xmax, ymax = np.moveaxis(np.clip(live["boxes"], 0, 1), -1, 0)
    expected = np.stack([ymin, xmin, ymax, xmax], axis=-1)
    for row, (classes, scores, boxes) in enumerate(zip(live["classes"], live["scores"], expected, strict=True)):
        near = served["detection_classes"][rows][row][:, np.newaxis] == classes
        near &= np.abs(served["detection_scores"][rows][row][:, np.newaxis] - scores) < 2e-6
        near &= np.abs(served["detection_boxes"][rows][row][:, np.newaxis] - boxes).max(axis=-1) < 1e-5
        # Suppression leaves no equal boxes of a class, so every detection has one counterpart.
        count = live["num_detections"][row]
        assert (near[:count, :count].sum(axis=0) == 1).all() and (near[:count, :count].sum(axis=1) == 1).all()
        assert near[count:, count:].all()  # padding


@pytest.mark.parametrize("name", ["small", "large", "own"])
def test_exported_model_gives_the_detections_of_the_live_one(tiny_model, batches, outputs, name):
    live = tiny_model.detect(tiny_model.resizing.resize(batches[name]))
    assert int(live["num_detections"][0]) > 10
    assert_same_detections(of(outputs, f"serving_default/{name}"), live)


def test_every_signature_suppresses_across_classes_where_the_model_does(tiny_model, batches, monkeypatch):
    across = dataclasses.replace(tiny_model.config.detection, suppression="across_classes")
    monkeypatch.setattr(tiny_model, "config", dataclasses.replace(tiny_model.config, detection=across))
    images = batches["own"]
    live = tiny_model.detect(images.astype(np.float32))
    assert len(set(live["classes"].numpy()[0])) > 2 and int(live["num_detections"][0]) > 10
    served = signatures(tiny_model, tiny_model, tf.strings.as_string)
    given = {"serving_default": [images], "serving_bytes": [[encode(images[0], "png")]],
             "serving_tunable": [images, *(getattr(across, name) for name in SETTINGS)]}  # fmt: skip
    for name, inputs in given.items():
        function, specs = served[name]
        outputs = function(*(tf.constant(value, spec.dtype) for value, spec in zip(inputs, specs, strict=True)))
        assert_same_detections({name: value.numpy() for name, value in outputs.items()}, live)


def test_image_files_of_any_size_give_the_detections_of_their_pixels(tiny_model, files, outputs):
    served = of(outputs, "serving_bytes/mixed")
    for row in (0, 2, 6):
        pixels = np.asarray(Image.open(io.BytesIO(files[row])).convert("RGB"))
        live = tiny_model.detect(tiny_model.resizing.resize(pixels[np.newaxis]))
        assert_same_detections(served, live, slice(row, row + 1))


def test_a_file_that_is_no_image_has_no_detections_and_leaves_the_others_alone(outputs):
    served = of(outputs, "serving_bytes/mixed")
    valid = np.array([True, False, True, False, False, False, True])
    np.testing.assert_array_equal(served["image_is_valid"], valid)
    np.testing.assert_array_equal(served["num_detections"] > 0, valid)
    for name, padding in (("boxes", 0), ("scores", 0), ("classes", -1), ("class_names", b"")):
        assert (served[f"detection_{name}"][~valid] == padding).all()
    alone = of(outputs, "serving_bytes/all_bad")
    assert not alone["image_is_valid"].any() and not alone["num_detections"].any()


def test_the_bytes_signature_names_classes(outputs):
    served = of(outputs, "serving_bytes/mixed")
    names = np.array([b"circle", b"square", b"star", b""], object)
    assert len(set(served["detection_classes"].ravel())) > 2
    np.testing.assert_array_equal(served["detection_class_names"], names[served["detection_classes"]])


def test_the_raw_signature_gives_predictions_and_anchors(tiny_model, batches, outputs):
    served = of(outputs, "serving_raw/small")
    live = tiny_model(tiny_model.resizing.resize(batches["small"]), training=False)
    assert set(served) == {*live, "anchors"}
    for name, value in live.items():
        np.testing.assert_allclose(served[name], value, atol=1e-5)
    np.testing.assert_array_equal(served["anchors"], np.stack([tiny_model.anchors] * 2))


def test_the_tunable_signature_obeys_its_settings(tiny_model, batches, outputs):
    predictions = tiny_model(tiny_model.resizing.resize(batches["large"]), training=False)
    boxes, scores = decode_predictions(predictions, tiny_model.anchors, tiny_model.config.objectness_threshold)
    live = suppress(boxes, scores, pre_suppression_top_k=0, suppression="per_class", **SETTINGS)
    served = of(outputs, "serving_tunable/large")
    assert served["detection_boxes"].shape == (3, 17, 4)
    assert_same_detections(served, live)


def test_outputs_have_the_names_types_and_shapes_that_clients_expect(outputs, batches):
    kinds = {
        name: (value.dtype.name, value.shape) for name, value in outputs.items() if name.startswith("serving_default/")
    }
    assert kinds == {
        f"serving_default/{name}/{output}": (dtype, (len(batch), *shape))
        for name, batch in batches.items()
        for output, dtype, shape in (
            ("detection_boxes", "float32", (500, 4)),
            ("detection_scores", "float32", (500,)),
            ("detection_classes", "int32", (500,)),
            ("num_detections", "int32", ()),
        )
    }


def test_saved_model_cli_shows_the_signatures_and_runs_them(exported, batches, outputs, tmp_path):
    cli = str(Path(sys.executable).with_name("saved_model_cli"))
    common = ["--dir", str(exported), "--tag_set", "serve"]
    shown = subprocess.run([cli, "show", *common], capture_output=True, text=True)
    for name in ("serving_default", "serving_bytes", "serving_raw", "serving_tunable"):
        assert f'"{name}"' in shown.stdout
    np.save(tmp_path / "images.npy", batches["small"])
    command = [cli, "run", *common, "--signature_def", "serving_default", "--outdir", str(tmp_path)]
    ran = subprocess.run([*command, "--inputs", f"images={tmp_path}/images.npy"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    for name, expected in of(outputs, "serving_default/small").items():
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), expected, atol=1e-6)


def test_no_part_of_a_signature_is_bound_to_a_device(exported):
    # Exported here, it has to use the GPU of a server, and the other way round.
    model = saved_model_pb2.SavedModel.FromString((exported / "saved_model.pb").read_bytes())
    (graph,) = (entry.graph_def for entry in model.meta_graphs)
    bound = {
        function.signature.name
        for function in graph.library.function
        for node in function.node_def
        if node.device
    }  # fmt: skip
    # TensorFlow reads and writes the variables' file on the CPU.
    assert {"_traced_restore" in name or "_traced_save" in name for name in bound} == {True}


def test_every_weight_is_saved_once(tiny_model, exported):
    weights = sum(np.prod(variable.shape) for variable in tiny_model.weights) * 4
    variables = sum(path.stat().st_size for path in (exported / "variables").iterdir())
    assert weights < variables < 1.1 * weights  # the rest is their index


def test_labels_are_an_asset_of_the_exported_model(exported):
    assert (exported / "assets" / "labels.txt").read_text() == "circle\nsquare\nstar\n"


def test_labels_keep_spaces_and_other_alphabets(tmp_path):
    names = ["traffic light", "Bär", "猫"]
    write_labels(str(tmp_path / "labels.txt"), names)
    found = label_table(str(tmp_path / "labels.txt")).lookup(tf.constant([2, -1, 0, 1, 3], tf.int64))
    assert [name.decode() for name in found.numpy()] == ["猫", "", "traffic light", "Bär", ""]


def test_served_boxes_are_clipped_and_have_the_vertical_axis_first():
    detections = {
        "boxes": tf.constant([[[-0.5, 0.25, 0.75, 1.5], [0.0, 0.0, 0.0, 0.0]]]),
        "scores": tf.constant([[0.5, 0.0]]),
        "classes": tf.constant([[2, -1]]),
        "num_detections": tf.constant([1]),
    }
    served = to_outputs(detections)
    assert tuple(served) == OUTPUT_NAMES
    np.testing.assert_array_equal(served["detection_boxes"], [[[0.25, 0, 1, 0.75], [0, 0, 0, 0]]])
    np.testing.assert_array_equal(served["detection_scores"], detections["scores"])
    np.testing.assert_array_equal(served["detection_classes"], detections["classes"])
    np.testing.assert_array_equal(served["num_detections"], detections["num_detections"])
    read = from_outputs(served)
    np.testing.assert_array_equal(read["boxes"], [[[0, 0.25, 0.75, 1], [0, 0, 0, 0]]])
    for name in ("scores", "classes", "num_detections"):
        np.testing.assert_array_equal(read[name], detections[name])


def test_outputs_of_tflite_become_detections_with_integer_classes_and_marked_padding():
    outputs = {
        "detection_boxes": np.float32([[[0.1, 0.2, 0.3, 0.4], [0, 0, 0, 0]]]),
        "detection_classes": np.float32([[1, 0]]),
        "detection_scores": np.float32([[0.5, 0]]),
        "num_detections": np.float32([1]),
    }
    read = from_outputs(outputs)
    np.testing.assert_array_equal(read["boxes"], np.float32([[[0.2, 0.1, 0.4, 0.3], [0, 0, 0, 0]]]))
    np.testing.assert_array_equal(read["classes"], [[1, -1]])
    assert {read[name].dtype for name in ("classes", "num_detections")} == {tf.int32}


@pytest.mark.parametrize("weights, error", [("float32", 1e-5), ("bfloat16", 0.05)])
def test_frozen_models_have_no_variables_and_keep_what_their_precision_can(
    tiny_model, exported, batches, tmp_path, weights, error
):
    export_saved_model(tiny_model, tmp_path / "frozen", weights=weights, max_pixels=5000)
    loaded = tf.saved_model.load(str(tmp_path / "frozen"))
    live = tiny_model(tiny_model.resizing.resize(batches["small"]), training=False)
    served = loaded.signatures["serving_raw"](images=tf.constant(batches["small"]))
    for name, value in live.items():
        # Root mean square of the error, beside the spread of the values.
        relative = np.sqrt(np.mean((served[name] - value) ** 2)) / np.std(value)
        assert relative < error, (name, relative)
    files = tf.constant([of_size(50, 100, "PNG"), of_size(51, 100, "PNG")])
    assert loaded.signatures["serving_bytes"](image_bytes=files)["image_is_valid"].numpy().tolist() == [True, False]
    graph = (tmp_path / "frozen" / "saved_model.pb").stat().st_size
    weight_bytes = sum(np.prod(variable.shape) for variable in tiny_model.weights) * (4 if weights == "float32" else 2)
    # The rest is the graph, of which some 13 kB read the headers of image files.
    assert weight_bytes * 0.9 < graph < weight_bytes + 1_000_000
    variables = sum(path.stat().st_size for path in (tmp_path / "frozen" / "variables").iterdir())
    assert variables < 10_000 < sum(path.stat().st_size for path in (exported / "variables").iterdir())


def test_warmup_requests_fit_the_signatures(exported, tmp_path):
    prediction_log_pb2 = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    write_warmup_requests(str(tmp_path), (64, 128), [1, 3])
    file = str(tmp_path / "assets.extra" / "tf_serving_warmup_requests")
    signatures = tf.saved_model.load(str(exported)).signatures
    seen = []
    for record in tf.data.TFRecordDataset(file).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
        outputs = signatures[request.model_spec.signature_name](**inputs)
        seen.append((request.model_spec.signature_name, outputs["num_detections"].shape[0]))
    assert seen == [(name, size) for size in (1, 3) for name in ("serving_default", "serving_bytes")]
