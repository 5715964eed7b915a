"""Models in half precision, and those that come with the package."""

import zipfile

import h5py
import numpy as np
import pytest

import refinedet_tf as rd
from refinedet_tf.errors import WeightFileError
from refinedet_tf.weights.assignment import named_variables
from refinedet_tf.weights.packing import pack_model
from tests.commands import refinedet


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    tiny_model.save(path)
    return path


def test_a_packed_model_holds_its_weights_rounded_to_half_precision_and_nothing_else(tiny_model, saved, tmp_path):
    pack_model(saved, tmp_path / "packed.keras")
    packed = rd.load_model(tmp_path / "packed.keras")
    assert packed.config == tiny_model.config
    weights = named_variables(packed)
    for name, variable in named_variables(tiny_model).items():
        value = weights[name].numpy()
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, variable.numpy().astype(np.float16).astype(np.float32), err_msg=name)
    with zipfile.ZipFile(tmp_path / "packed.keras") as archive:
        assert not archive.testzip()
        with h5py.File(archive.open("model.weights.h5")) as file:
            assert not [name for name in file if "optimizer" in name]
    count = sum(variable.numpy().size for variable in weights.values())
    assert (tmp_path / "packed.keras").stat().st_size < saved.stat().st_size - 1.9 * count
    assert [path.name for path in tmp_path.iterdir()] == ["packed.keras"]


def test_a_packed_model_predicts_nearly_as_the_original(tiny_model, saved, tiny_images, tmp_path):
    pack_model(saved, tmp_path / "packed.keras")
    predictions = rd.load_model(tmp_path / "packed.keras")(tiny_images)
    for name, expected in tiny_model(tiny_images).items():
        # Forty layers, each rounded by up to 2^-12.
        spread = float(np.std(expected))
        np.testing.assert_allclose(predictions[name], expected, atol=0.02 * spread, err_msg=name)
        assert np.any(predictions[name] != expected)


@pytest.mark.parametrize("value", [7e4, np.inf, np.nan])
def test_weights_that_half_precision_cannot_hold_are_refused(value, tiny_config, tmp_path):
    model = rd.RefineDet(tiny_config)
    bias = next(variable for name, variable in named_variables(model).items() if name.endswith("/bias"))
    bias.assign(np.full(bias.shape, value, np.float32))
    model.save(tmp_path / "model.keras")
    (tmp_path / "packed.keras").write_bytes(b"the one before")
    with pytest.raises(WeightFileError, match=r"model\.keras: .*/bias has values that are not finite or above 65504"):
        pack_model(tmp_path / "model.keras", tmp_path / "packed.keras")
    assert (tmp_path / "packed.keras").read_bytes() == b"the one before"


def test_the_command_packs_and_says_the_size(saved, tmp_path):
    code, output, _ = refinedet("pack-model", f"--model={saved}", f"--output={tmp_path / 'packed.keras'}")
    size = (tmp_path / "packed.keras").stat().st_size
    assert code == 0 and f"{size / 1e6:.1f} MB" in output
    code, _, errors = refinedet("pack-model", f"--model={saved}", f"--output={tmp_path / 'packed.h5'}")
    assert code == 1 and "must end in .keras" in errors
