"""A .keras file is data: nothing in it is executed, imported, resolved, downloaded or unpacked without bound."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
import zipfile

import h5py
import numpy as np
import pytest
from tensorflow import keras

from refinedet_tf.errors import WeightFileError
from refinedet_tf.model import RefineDet
from refinedet_tf.training.optimizers import CaffeSGD
from refinedet_tf.weights import load_model, load_weights
from refinedet_tf.weights.assignment import max_bytes
from tests.conftest import PROJECT


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    tiny_model.save(path)
    return path


@pytest.fixture(scope="module")
def other_model(tiny_config):
    return RefineDet(tiny_config)


def rewrite(source, target, change=None, weights=None, compression=zipfile.ZIP_STORED):
    """Copies a .keras file with another configuration or other weights."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json" and change:
                config = json.loads(content)
                change(config)
                content = json.dumps(config)
            if name == "model.weights.h5" and weights:
                content = weights
            new.writestr(name, content)
    return target


def test_a_copy_opens_and_predicts_as_the_original(tiny_model, saved, tiny_images, tmp_path):
    model = load_model(rewrite(saved, tmp_path / "copy.keras", lambda config: None))
    for name, value in model(tiny_images).items():
        np.testing.assert_array_equal(value, tiny_model(tiny_images)[name], err_msg=name)


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A module that leaves a folder when it is imported."""
    made = tmp_path / "made"
    (tmp_path / "hostile_module.py").write_text(f"import os; os.mkdir({os.fspath(made)!r})")
    monkeypatch.syspath_prepend(tmp_path)
    yield made
    assert not made.exists()


def lambda_layer():
    return keras.utils.serialize_keras_object(keras.layers.Lambda(lambda x: x, name="identity"))


@pytest.mark.parametrize("place", ["dtype", "argument", "class name"])
@pytest.mark.parametrize("kind", ["Lambda", "foreign"])
def test_lambda_layers_and_foreign_classes_inside_a_refinedet_are_refused(place, kind, saved, hostile, tmp_path):
    foreign = {"module": "hostile_module", "class_name": "Layer", "registered_name": None, "config": {}}
    part = lambda_layer() if kind == "Lambda" else foreign

    def change(config):
        if place == "dtype":
            config["config"]["dtype"] = part
        elif place == "argument":
            config["config"]["config"]["backbone"]["arguments"] = {"activation": [part]}
        else:
            config["config"]["config"]["classes"][1] = part

    path = rewrite(saved, tmp_path / "model.keras", change)
    with pytest.raises(WeightFileError, match=rf"model\.keras holds a {part['class_name']}, which no RefineDet has"):
        load_model(path)


@pytest.mark.parametrize("kind", ["Lambda", "foreign"])
def test_models_of_lambda_layers_or_foreign_classes_are_refused(kind, saved, hostile, tmp_path):
    def change(config):
        if kind == "foreign":
            config.update(module="hostile_module", class_name="Model", registered_name=None)
        else:
            config.update(module="keras", class_name="Sequential", registered_name="Sequential")
            config["config"] = {"name": "model", "layers": [lambda_layer()]}

    path = rewrite(saved, tmp_path / "model.keras", change)
    with pytest.raises(WeightFileError, match=r"model\.keras holds a (Model|Sequential), not a RefineDet"):
        load_model(path)


def test_keras_runs_in_safe_mode(saved, monkeypatch):
    calls = []
    monkeypatch.setattr(keras.models, "load_model", lambda path, **options: calls.append(options))
    load_model(saved)
    assert calls == [{"compile": False, "safe_mode": True}]


@pytest.mark.parametrize(
    "backbone",
    [
        {"preset_or_class": "mobilenet_v3_small_imagenet", "arguments": {}},
        {"preset_or_class": "MobileNetV3SmallBackbone", "arguments": {"include_rescaling": True}},
        {"preset_or_class": "/tmp", "arguments": {"a": 1}},
    ],
)
def test_a_preset_in_a_file_is_not_downloaded(backbone, saved, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    change = {"name": "keras_cv", "alpha": 1.0, **backbone}
    path = rewrite(saved, tmp_path / "m.keras", lambda config: config["config"]["config"]["backbone"].update(change))
    for load in (load_model, keras.models.load_model):
        with pytest.raises(ValueError, match="a saved model must name a class and its arguments, not a preset"):
            load(path)


def test_the_environment_does_not_get_into_a_model(saved, tmp_path):
    text = "${oc.env:PATH}"
    path = rewrite(saved, tmp_path / "m.keras", lambda config: config["config"]["config"]["classes"].append(text))
    try:
        classes = load_model(path).config.classes
    except WeightFileError as error:
        assert os.environ["PATH"] not in str(error)
    else:
        assert classes[-1] == text


def bomb(path, claimed):
    """An HDF5 file of Keras's form that unpacks to `claimed` bytes of zeros."""
    with h5py.File(path, "w") as file:
        values = file.create_group("layers/conv2d/vars")
        values.attrs["name"] = "odm3_offsets"
        rows = claimed // 2**20
        data = values.create_dataset("0", (rows, 2**18), "f4", chunks=(1, 2**18), compression="gzip")
        for row in range(rows):
            data[row] = 0
    return path.read_bytes()


def test_what_unpacks_to_more_than_the_model_can_need_is_refused_before(saved, other_model, tmp_path):
    limit = max_bytes(other_model)
    assert 2**27 < limit < 2**28
    rewrite(saved, tmp_path / "zipped.keras", compression=zipfile.ZIP_DEFLATED)
    small = bomb(tmp_path / "small.weights.h5", 2**24)
    rewrite(saved, tmp_path / "hdf5.keras", weights=small)
    bomb(tmp_path / "large.weights.h5", limit + 2**20)
    np.savez_compressed(tmp_path / "zeros.npz", zeros=np.zeros(limit // 4 + 2**18, np.float32))
    for name, message in (
        ("zipped.keras", "it is compressed; Keras never compresses"),
        ("hdf5.keras", "it claims to hold 16777216 bytes"),
        ("large.weights.h5", f"of which at most {limit} can be needed"),
        ("zeros.npz", f"of which at most {limit} can be needed"),
    ):
        path = tmp_path / name
        assert path.stat().st_size < limit / 50
        for load in (load_model, lambda path: load_weights(other_model, path)):
            if load is load_model and not name.endswith(".keras"):
                continue
            with pytest.raises(WeightFileError, match=message):
                load(path)


MANY_BLOCKS = {
    "name": "keras_cv",
    "alpha": 1.0,
    "preset_or_class": "ResNetBackbone",
    "arguments": {
        "stackwise_filters": [64, 128, 256, 512],
        "stackwise_blocks": [10**9, 2, 2, 2],
        "stackwise_strides": [1, 2, 2, 2],
        "include_rescaling": False,
    },
}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"width": 200_000}, "more weights than the"),
        ({"backbone": {"name": "mobilenet_v1", "alpha": 1000.0}}, "more weights than the"),
        ({"backbone": {"name": "resnet101", "alpha": 1.0}}, "more weights than the"),
        ({"backbone": MANY_BLOCKS}, "more weights than the"),
        ({"classes": ["star", *(f"class {index}" for index in range(30_000))]}, "more weights than the"),
        ({"input_size": [64_000, 64_000]}, "at most 8192 pixels a side"),
    ],
)
def test_a_network_larger_than_the_file_is_not_built(changes, message, saved, tmp_path):
    def change(config):
        settings = config["config"]["config"]
        settings.update({**changes, "backbone": {**settings["backbone"], **changes.get("backbone", {})}})

    path = rewrite(saved, tmp_path / "m.keras", change)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    add_weight = keras.layers.Layer.add_weight
    with pytest.raises(WeightFileError, match=rf"m\.keras is not a model that can be opened.*{message}"):
        load_model(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
    assert time.monotonic() - started < 20
    assert keras.layers.Layer.add_weight is add_weight


def test_a_flipped_bit_in_the_weights_is_found(saved, tmp_path):
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.keras").write_bytes(content)
    with pytest.raises(WeightFileError, match=r"flipped\.keras .* model\.weights\.h5 in it is damaged"):
        load_model(tmp_path / "flipped.keras")


OPEN = """
import sys
{imports}
model = keras.models.load_model(sys.argv[1])
print(type(model).__module__, type(model.optimizer).__name__)
print(*(name for name in sys.argv[2:] if name not in sys.modules))
"""


def registering_modules():
    """The modules of the package that register classes with Keras."""
    for path in (PROJECT / "refinedet_tf").rglob("*.py"):
        if "register_keras_serializable(" in path.read_text():
            yield ".".join(path.relative_to(PROJECT).with_suffix("").parts)


@pytest.mark.parametrize(
    "imports",
    ["import refinedet_tf\nfrom tensorflow import keras", "from tensorflow import keras\nimport refinedet_tf"],
    ids=["first", "last"],
)
def test_keras_opens_a_compiled_model_after_importing_the_package(imports, tiny_config, tmp_path):
    model = RefineDet(tiny_config)
    model.compile(CaffeSGD())
    model.save(tmp_path / "model.keras")
    command = [sys.executable, "-c", OPEN.format(imports=imports), os.fspath(tmp_path / "model.keras")]
    result = subprocess.run([*command, *registering_modules()], cwd=PROJECT, capture_output=True, text=True)
    # The second line names the modules that are not imported, whose classes Keras would not find.
    assert result.stdout == "refinedet_tf.model CaffeSGD\n\n", result.stderr


def test_importing_the_package_imports_no_tensorflow():
    code = "import sys, refinedet_tf; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
