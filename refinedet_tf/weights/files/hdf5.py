"""Reads the layers' arrays out of HDF5 files that Keras wrote."""

import os
import subprocess
import sys

import h5py
import numpy as np

from refinedet_tf.errors import WeightFileError
from refinedet_tf.weights.files import hdf5_probe
from refinedet_tf.weights.files.hdf5_probe import check_datasets

MAX_SECONDS = 300  # for reading a file once; the largest RefineDet takes one second


def probe(path: str | os.PathLike, max_bytes: int) -> None:
    """Lets another process read a file first, since libhdf5 crashes on some damaged files.

    Args:
        path: an HDF5 file, or a .keras file with one in it.
        max_bytes: how many bytes it may unpack to.

    Raises:
        WeightFileError: the file is damaged, claims to hold more, or crashes libhdf5.
    """
    command = [sys.executable, hdf5_probe.__file__, os.path.abspath(path), str(max_bytes)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=MAX_SECONDS, errors="replace")
        reason = result.stderr.strip() or f"libhdf5 fails on it with status {result.returncode}"
    except subprocess.TimeoutExpired:
        reason = f"it cannot be read in {MAX_SECONDS} s"
    else:
        if result.returncode == 0:
            return
    raise WeightFileError(f"{os.fspath(path)} is not a readable HDF5 file of Keras: {reason}")


def read_layers(path: str | os.PathLike, max_bytes: int) -> dict[str, list[np.ndarray]]:
    """Reads an .h5 or .weights.h5 file.

    Args:
        path: the file.
        max_bytes: how many bytes it may unpack to.

    Returns:
        The arrays of each layer that has any, in Keras's order, by the layer's name.

    Raises:
        WeightFileError: the file is damaged, was not written by Keras, names no layers, refers to other files or claims
            to hold more.
    """
    probe(path, max_bytes)
    try:
        with h5py.File(path, "r") as file:
            check_datasets(file, max_bytes)
            return _read(file, max_bytes)
    except Exception as error:  # h5py raises many kinds of errors over damaged files
        raise WeightFileError(f"{os.fspath(path)} is not a readable HDF5 file of Keras: {error}") from error


def _read(file: h5py.File, max_bytes: int) -> dict[str, list[np.ndarray]]:
    root = file.get("model_weights", file)
    datasets = {}
    if "layer_names" in root.attrs:  # .h5
        for name in root.attrs["layer_names"]:
            datasets[_text(name)] = [root[name][weight] for weight in root[name].attrs["weight_names"]]
    elif "layers" in root:  # .weights.h5
        for group in root["layers"].values():
            if "vars" in group and "name" in group["vars"].attrs:
                values = group["vars"]
                datasets[_text(values.attrs["name"])] = [values[str(index)] for index in range(len(values))]
    if not datasets:
        raise ValueError("it names no layers; Keras 2 does not write names into .weights.h5 files, save a .keras file")
    every = [one for values in datasets.values() for one in values]
    if any(one.file != file for one in every):
        raise ValueError("it refers to other files")
    if sum(one.nbytes for one in every) > max_bytes:
        raise ValueError("it names the same arrays again and again")
    return {name: [one[()] for one in values] for name, values in datasets.items() if values}


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
