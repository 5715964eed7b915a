"""Writes saved models with their weights in half precision."""

import io
import os
import tempfile
import zipfile
from pathlib import Path

import h5py
import numpy as np

from refinedet_tf.errors import WeightFileError
from refinedet_tf.model import RefineDet
from refinedet_tf.weights.assignment import named_variables
from refinedet_tf.weights.files.hdf5_probe import KERAS_WEIGHTS
from refinedet_tf.weights.saved_models import load_model


def pack_model(source: str | os.PathLike, output: str | os.PathLike) -> None:
    """Writes a copy of a saved model with its weights in half precision: half the size, and no optimizer.

    `load_model` opens it as any other; the weights are float32 again in memory, rounded to eleven bits.

    Args:
        source: the .keras file of a RefineDet.
        output: the .keras file to write.

    Raises:
        WeightFileError: the source cannot be opened, `output` does not end in .keras, or a weight is not finite or too
            large for half precision. Nothing is written then.
    """
    output = Path(output)
    if output.suffix != ".keras":
        raise WeightFileError(f"{output}: the file's name must end in .keras.")
    model = load_model(source)
    _check_range(model, os.fspath(source))
    with tempfile.TemporaryDirectory(dir=output.absolute().parent) as folder:
        single, half = Path(folder) / "single.keras", Path(folder) / "half.keras"
        model.save(single)
        with zipfile.ZipFile(single) as old, zipfile.ZipFile(half, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                new.writestr(name, _half_precision(content) if name == KERAS_WEIGHTS else content)
        os.replace(half, output)


def _check_range(model: RefineDet, source: str) -> None:
    largest = float(np.finfo(np.float16).max)
    for name, variable in named_variables(model).items():
        if not np.all(np.abs(variable.numpy()) <= largest):  # also false for NaN
            raise WeightFileError(f"{source}: {name} has values that are not finite or above {largest:.0f}.")


def _half_precision(content: bytes) -> bytes:
    """Returns an HDF5 file with every float32 array as float16, and everything else as it is."""
    buffer = io.BytesIO()
    # The newer layout of HDF5 spends less on the file's many small groups.
    with h5py.File(io.BytesIO(content), "r") as old, h5py.File(buffer, "w", libver="latest") as new:
        new.attrs.update(old.attrs)

        def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset):
                array = item[()]
                copied = new.create_dataset(name, data=array.astype(np.float16) if array.dtype == np.float32 else array)
            else:
                copied = new.require_group(name)
            copied.attrs.update(item.attrs)

        old.visititems(copy)
    return buffer.getvalue()
