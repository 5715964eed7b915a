"""The two stacks, TensorFlow 2.15 and the current one: files of one on the other, and where their differences stand."""

import ast
import importlib.metadata
import os
import runpy
import subprocess

import numpy as np
import pytest
import tensorflow as tf

import refinedet_tf as rd
from refinedet_tf import stacks
from refinedet_tf.stacks import KERAS_MAJOR
from refinedet_tf.verification import require_passed, verify
from tests.conftest import PROJECT
from tests.other_stack import EXPORTS, save, write_predictions

OTHER = PROJECT / (".venv" if KERAS_MAJOR == 2 else ".venv-tf215") / "bin" / "python"
needs_other = pytest.mark.skipif(not OTHER.exists(), reason=f"needs {OTHER}, the environment of the other stack")


@pytest.fixture(scope="module")
def exchanged(tiny_model, tiny_images, tmp_path_factory):
    """A folder with a model of this stack in `this`, and what the other stack made of it; see tests/other_stack.py."""
    folder = tmp_path_factory.mktemp("stacks")
    np.save(folder / "images.npy", tiny_images)
    save(tiny_model, tiny_images, folder / "this")
    result = subprocess.run(
        [OTHER, "-m", "tests.other_stack", folder],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def assert_equal_predictions(path, expected_path):
    found, expected = np.load(path), np.load(expected_path)
    assert set(found) == set(expected) and len(found.files) == 4
    for name in expected:
        # Both stacks compute in float32, with kernels of different releases: through forty layers of random weights,
        # logits of up to 1 have differed by 2.6e-5.
        assert np.abs(expected[name]).max() > 0.1, name
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-4, err_msg=name)


@needs_other
def test_the_other_stack_opens_a_model_of_this_one(exchanged):
    """There its exports have passed `verify`, too, or the fixture would have failed."""
    assert_equal_predictions(exchanged / "predictions_of_other.npz", exchanged / "this" / "predictions.npz")


@needs_other
def test_this_stack_opens_a_model_of_the_other_one_and_its_exports_pass(exchanged, tiny_images):
    folder = exchanged / "other"
    model = rd.load_model(folder / "model.keras")
    write_predictions(model, tiny_images, exchanged / "predictions_of_this.npz")
    assert_equal_predictions(exchanged / "predictions_of_this.npz", folder / "predictions.npz")
    require_passed(verify(model, [folder / name for name in EXPORTS]))


def test_the_version_is_that_of_tensorflows_keras_and_else_that_of_the_package(monkeypatch):
    # `tf.keras` is looked up now, as in the module: TensorFlow replaces it when it is first used.
    version = importlib.metadata.version("keras")
    monkeypatch.setattr(tf.keras, "__version__", "2.99", raising=False)
    assert runpy.run_path(stacks.__file__)["KERAS_VERSION"] == "2.99"
    monkeypatch.setattr(tf.keras, "__version__", None)
    assert runpy.run_path(stacks.__file__)["KERAS_VERSION"] == version


ASKED = {"archive", "keras", "layer", "model", "optimizer", "tf"}


def stack_checks(path):
    """Lines of a module that compare versions of Keras, or ask an object of Keras what it has."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = {getattr(part, "attr", getattr(part, "id", None)) for part in ast.walk(node)}
        if isinstance(node, ast.Compare) and names & {"__version__", "KERAS_MAJOR", "KERAS_VERSION"}:
            yield node.lineno
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "hasattr" and names & ASKED:
            yield node.lineno


def test_only_one_module_asks_which_stack_it_runs_on():
    package = PROJECT / "refinedet_tf"
    found = {str(path.relative_to(package)): list(stack_checks(path)) for path in package.rglob("*.py")}
    assert len(found.pop("stacks.py")) > 3
    assert {name: lines for name, lines in found.items() if lines} == {}
