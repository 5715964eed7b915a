"""The command as a user runs it."""

import subprocess
import sys

import numpy as np
import pytest

from refinedet_tf.weights import load_model
from refinedet_tf.weights.assignment import named_variables
from tests.commands import refinedet
from tests.conftest import PROJECT


def run(*arguments):
    command = [sys.executable, "-m", "refinedet_tf", "import-weights", *map(str, arguments)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def weights(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.npz"
    np.savez(path, **{name: variable.numpy() for name, variable in named_variables(tiny_model).items()})
    return path


def test_the_command_saves_a_model_with_mapped_classes(tiny_recipe, tiny_model, weights, tmp_path):
    (tmp_path / "map.yaml").write_text("{circle: 3, triangle: 1}")
    result = run(f"--config={tiny_recipe}", f"--weights={weights}", f"--output={tmp_path / 'model.keras'}",
                 f"--class_map={tmp_path / 'map.yaml'}", "--set=model.input_size=[128,64]",
                 "--set=model.separable=true", "--set=model.batch_norm=true")  # fmt: skip
    assert result.returncode == 0, result.stderr
    for line in ("circle <- 3", "triangle <- 1", "star: not in the file, unchanged", "rows mapped by class: 8"):
        assert line in result.stdout
    model = load_model(tmp_path / "model.keras")
    assert list(model.config.input_size) == [128, 64]
    loaded, source = named_variables(model), named_variables(tiny_model)
    np.testing.assert_array_equal(loaded["P4_pointwise/kernel"], source["P4_pointwise/kernel"])
    kernel, old = (named["odm5_classes_pointwise/kernel"].numpy() for named in (loaded, source))
    np.testing.assert_array_equal(kernel[..., 5 + 1], old[..., 4 + 3])  # circle at the second anchor


def test_mistakes_are_said_and_nothing_is_written(tiny_recipe, weights, tmp_path):
    output = tmp_path / "model.keras"
    for arguments, message in (
        ([f"--weights={weights}", f"--output={output}", "--set=model.width=24"], "does not fit the model"),
        ([f"--weights={weights}", f"--output={tmp_path / 'model.h5'}"], "must end in .keras"),
    ):
        code, _, errors = refinedet("import-weights", f"--config={tiny_recipe}", *arguments)
        assert code == 1
        assert "error: " in errors and message in errors and "Traceback" not in errors
    assert not list(tmp_path.iterdir())
