"""Damaged and crafted exports: each is refused with an `ExportError` before anything in it is run."""

import io
import shutil
import tracemalloc
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from refinedet_tf.errors import ExportError
from refinedet_tf.inference.detector import Detector
from refinedet_tf.inference.saved_model_runner import read_settings
from refinedet_tf.inference.tflite_runner import TFLiteModel
from refinedet_tf.serving.metadata import Metadata, append_metadata, read_metadata

FILES = ["saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001",
         "assets/labels.txt", "assets.extra/detector.json"]  # fmt: skip


def damage(content, rng, kind):
    """Changes a bit, cuts the end off, or overwrites some bytes."""
    place = int(rng.integers(len(content)))
    if kind == "flip":
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        return bytes(changed)
    if kind == "cut":
        return content[:place]
    noise = rng.integers(0, 256, 16, np.uint8).tobytes()
    return content[:place] + noise + content[place + 16 :]


def is_refused(path):
    try:
        Detector.load(path)
    except ExportError as error:
        assert path.name in str(error)
        return True
    return False


@pytest.mark.parametrize("name", FILES)
def test_a_saved_model_with_a_missing_or_changed_file_is_refused(exported, tmp_path, name):
    rng = np.random.default_rng(len(name))
    folder = tmp_path / "exported"
    shutil.copytree(exported, folder)
    content = (folder / name).read_bytes()
    for kind in ["flip"] * 8 + ["cut"] * 4 + ["noise"] * 4:
        changed = damage(content, rng, kind)
        assert changed != content
        (folder / name).write_bytes(changed)
        assert is_refused(folder)
    (folder / name).unlink()
    assert is_refused(folder)
    (folder / name).write_bytes(content)
    assert read_settings(str(folder))["classes"] == ["circle", "square", "star"]


def test_half_of_the_labels_are_refused(exported, tmp_path):
    folder = tmp_path / "exported"
    shutil.copytree(exported, folder)
    (folder / "assets" / "labels.txt").write_text("circle\nsqua")
    with pytest.raises(ExportError, match=r"labels\.txt is incomplete or has been changed"):
        Detector.load(folder)


def test_a_damaged_tflite_file_never_reaches_the_interpreter(tflite_files, tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "model.tflite"
    content = tflite_files("none", "op", "float32").read_bytes()
    network = zipfile.ZipFile(io.BytesIO(content)).infolist()[0].header_offset
    for kind in ["flip"] * 30 + ["cut"] * 15 + ["noise"] * 15:
        changed = damage(content, rng, kind)
        path.write_bytes(changed)
        # What remains is unused fields of the archive, such as dates.
        assert is_refused(path) or (changed[:network] == content[:network] and read_metadata(path).classes)
    for place in (0, 4, 8, network - 1):  # the root table's offset, the magic, the first table
        changed = bytearray(content)
        changed[place] ^= 0x80
        path.write_bytes(changed)
        assert is_refused(path)


def test_a_network_that_cannot_be_computed_or_lacks_an_output_is_refused(tflite_files):
    path = tflite_files("none", "op", "float32")
    model = TFLiteModel(path)

    def fail(**_):
        raise RuntimeError("Node number 0 (ZEROS_LIKE) failed to invoke.")

    model._run = fail
    with pytest.raises(ExportError, match=r"\.tflite cannot be run: Node number 0"):
        model.detect(np.zeros((8, 8, 3), np.uint8))

    class WithoutCount(tf.lite.Interpreter):
        def get_signature_runner(self, key):
            runner = super().get_signature_runner(key)
            details = runner.get_output_details()
            details.pop("num_detections")
            runner.get_output_details = lambda: details
            return runner

    with pytest.raises(ExportError, match=r"\.tflite lacks the outputs num_detections\."):
        TFLiteModel(path, interpreter=WithoutCount)


def archive_of(network=b"network", **members):
    file = io.BytesIO(network)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)
    return file.getvalue()


def test_an_archive_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.tflite"
    path.write_bytes(archive_of(detector_json=bytes(3 * 10**8), labels_txt=b""))
    assert path.stat().st_size < 10**6
    tracemalloc.start()
    with pytest.raises(ExportError, match=r"detector\.json is larger than"):
        Detector.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**8


@pytest.mark.parametrize("shape", ["(1000000000000, 4)", "(3, 5)", "(2, 4)"])
def test_anchors_that_claim_another_size_are_refused(tmp_path, shape):
    metadata = Metadata(["a"], {"postprocess": "none"}, np.zeros([3, 4], np.float32))
    content = append_metadata(b"network", metadata)
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    np.testing.assert_array_equal(read_metadata(path).anchors, metadata.anchors)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = b"(3, 4), }"
    members["anchors.npy"] = members["anchors.npy"].replace(header + b" " * (len(shape) - 6), shape.encode() + b", }")
    file = io.BytesIO(b"network")
    with zipfile.ZipFile(file, "a") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    path.write_bytes(file.getvalue())
    with pytest.raises(ExportError, match=r"anchors\.npy does not hold anchors"):
        read_metadata(path)
