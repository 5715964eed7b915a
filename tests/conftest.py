"""One small model for all tests that need any: building graphs is what costs time here."""

import dataclasses
import fcntl
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import hypothesis
import numpy as np
import pytest
from tensorflow import keras

from refinedet_tf.backbones import vgg16
from refinedet_tf.config import BackboneConfig, DetectionConfig, ModelConfig
from refinedet_tf.data.shapes import draw_shapes
from refinedet_tf.model import RefineDet
from refinedet_tf.serving.tflite import convert_tflite
from tests.narrow_vgg16 import narrow_conv

PROJECT = Path(__file__).resolve().parents[1]

# A slow machine is no failure, and every run tries the same cases: `make fuzz` looks for new ones.
hypothesis.settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")


# Files that take longest, longest first. They start first, so that the workers of `make test` end at about one time.
LONGEST = (
    "training/test_devices.py",
    "robustness/test_kills.py",
    "test_stacks.py",
    "test_model.py",
    "test_readme.py",
    "weights/test_import_vgg16.py",
    "weights/test_import_resnet101.py",
    "test_docs.py",
    "serving/test_signatures.py",
    "weights/test_saved_models.py",
    "data/test_pipeline.py",
    "test_verification.py",
    "weights/test_load_weights.py",
    "test_ablations.py",
    "backbones/test_kerascv.py",
    "cli/test_commands.py",
    "export/test_exports.py",
    "training/test_trainer.py",
    "weights/test_imagenet.py",
    "test_keras_contract.py",
)


def pytest_collection_modifyitems(items):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return  # a single process keeps the order that it was asked for

    def place(item):
        name = item.path.relative_to(PROJECT / "tests").as_posix()
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """Makes files and folders that are used by many tests once, also if pytest runs several processes.

    `shared(name, make)` returns a path below which `make(path)` has written. Nobody changes it afterwards.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # the folder above is that of all processes
        folder = folder.parent

    def path(name, make):
        with open(folder / f"{name}.lock", "a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not lock.seek(0, os.SEEK_END):  # empty: nobody has made it, also while this process was waiting
                make(folder / name)
                lock.write("made")
        return folder / name

    return path


@pytest.fixture(scope="session")
def tiny_config():
    """MobileNet 0.25 at 64 x 128: 510 anchors."""
    return ModelConfig(
        classes=["circle", "square", "star"],
        input_size=[64, 128],
        backbone=BackboneConfig("mobilenet_v1", 0.25),
        width=16,
        separable=True,
        batch_norm=True,
        score_thresholds={"star": 0.4},
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_config, shared):
    """Random weights, shared by all tests: call it, do not train it and do not compile it.

    Its batch normalisation has the statistics of some images: with those of a fresh model, the predictions of
    forty random layers in a row would all be zero, and equal for any two models. Channels that hardly vary are
    not scaled up to the others, which would scale up rounding errors, too.
    """
    keras.utils.set_random_seed(1)
    model = RefineDet(tiny_config)

    def gather_statistics(path):
        normalizations = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
        for layer in normalizations:
            layer.momentum = 0.0
        model(coarse_noise(np.random.default_rng(6), 16), training=True)
        for layer in normalizations:
            layer.momentum = 0.99
            variance = layer.moving_variance.numpy()
            layer.moving_variance.assign(variance + 0.5 * variance.mean())
        np.savez(path, *model.get_weights())

    with np.load(shared("tiny_model.npz", gather_statistics)) as weights:
        model.set_weights([weights[name] for name in weights.files])
    return model


@pytest.fixture(scope="session")
def exported(tiny_model, shared):
    """A SavedModel of it."""
    return shared("saved_model", tiny_model.export)


CUT = DetectionConfig(pre_suppression_top_k=200, iou_threshold=0.8)


@pytest.fixture
def cut_model(tiny_model, monkeypatch):
    """It with a cut before suppression that its 510 anchors exceed, and most of what passes it kept."""
    monkeypatch.setattr(tiny_model, "config", dataclasses.replace(tiny_model.config, detection=CUT))
    return tiny_model


@pytest.fixture(scope="session")
def tflite_files(tiny_model, shared):
    """Converts `cut_model` on demand, each kind once: from quantization, postprocessing and input type to a file."""

    def file(quantize, postprocess, input_type):
        def convert(path):
            images = coarse_noise(np.random.default_rng(8), 16) if quantize == "int8" else ()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tiny_model, "config", dataclasses.replace(tiny_model.config, detection=CUT))
                content = convert_tflite(
                    tiny_model,
                    quantize=quantize,
                    postprocess=postprocess,
                    input_type=input_type,
                    calibration_images=images,
                )
            path.write_bytes(content)

        return shared(f"{quantize}_{postprocess}_{input_type}.tflite", convert)

    return file


@pytest.fixture(scope="module")
def narrow_vgg16():
    """Makes every VGG-16 of a module a narrow one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgg16, "_conv", narrow_conv)
        yield


@pytest.fixture(scope="session")
def tiny_images():
    """A batch of three images for it."""
    return coarse_noise(np.random.default_rng(7), 3)


@pytest.fixture
def targets():
    """For `tiny_images`: two objects, one, none."""
    boxes = np.full([3, 4, 4], -1, np.float32)
    classes = np.full([3, 4], -1, np.int32)
    boxes[0, :2] = [[0.1, 0.1, 0.4, 0.6], [0.5, 0.3, 0.95, 0.9]]
    boxes[1, 0] = [0.2, 0.2, 0.8, 0.8]
    classes[0, :2], classes[1, 0] = [0, 2], 1
    return {"boxes": boxes, "classes": classes}


def coarse_noise(rng, count):
    """Images of random squares of eight pixels."""
    squares = rng.uniform(0, 255, (count, 8, 16, 3)).astype(np.float32)
    return squares.repeat(8, axis=1).repeat(8, axis=2)


RECIPE = """
model:
  classes: [circle, square, triangle, star]
  input_size: [64, 64]
  backbone: {name: mobilenet_v1, alpha: 0.25}
  width: 16
data: {max_boxes: 8}
train: {epochs: 2, batch_size: 4, schedule: cosine, evaluate_every: 1}
"""


@pytest.fixture(scope="session")
def shapes_dir(shared):
    """A data set that trains in seconds."""
    return shared("shapes", lambda folder: draw_shapes(folder, {"train": 8, "val": 4}, image_size=(128, 128)))


@pytest.fixture(scope="session")
def tiny_recipe(shared):
    """The recipe file that goes with it."""
    return shared("tiny.yaml", lambda path: path.write_text(RECIPE))


@pytest.fixture(scope="session")
def finished_run(shapes_dir, tiny_recipe, shared):
    """The work folder of a training that `train.py` has finished in another process."""

    def train(work_dir):
        command = [sys.executable, "train.py", f"--config={tiny_recipe}", f"--data_dir={shapes_dir}"]
        command += [f"--work_dir={work_dir}", "--set=train.epochs=1"]
        result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr

    return shared("finished_run", train)
