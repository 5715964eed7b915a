"""Weights that Keras wrote: .keras models, HDF5 files of weights or models, .npz archives of variables."""

import json
import os
import subprocess
import sys
import zipfile

import h5py
import numpy as np
from tensorflow import keras

from refinedet_tf.backbones import input_form
from refinedet_tf.config import BackboneConfig
from refinedet_tf.errors import WeightFileError
from refinedet_tf.model import RefineDet
from refinedet_tf.weights.assignment import Weights, by_name, is_detector_layer, layer_of, named_variables, plain_name
from refinedet_tf.weights.files import hdf5_probe
from refinedet_tf.weights.files.hdf5_probe import MAX_BYTES
from refinedet_tf.weights.imagenet import imagenet_weights

MAX_CONFIG_BYTES = 2**20  # of a .keras file's config.json; a RefineDet's has some thousand
MAX_SECONDS = 300  # to read through a file; the largest RefineDet takes one


def npz_weights(model: RefineDet, path: str | os.PathLike) -> Weights:
    """Reads an .npz archive of arrays named `layer/variable`, Keras's names.

    Raises:
        WeightFileError: it is no such archive, or holds pickled objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_BYTES:
            raise WeightFileError(f"{os.fspath(path)} would unpack to {size} bytes.")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {plain_name(name): archive[name] for name in archive.files}
    except WeightFileError:
        raise
    except Exception as error:  # whatever NumPy, zipfile and zlib raise over bytes from a stranger
        raise WeightFileError(f"{os.fspath(path)} is no readable .npz archive of arrays: {error}") from error
    if any(map(is_detector_layer, arrays)):
        return by_name("RefineDet, by variable name", arrays)
    # Arrays of a classification network say nothing about its input: the backbone's own form is assumed.
    expected = input_form(BackboneConfig(model.config.backbone.name))
    return by_name("classification network, by variable name", arrays, preprocessing=expected)


def keras_weights(path: str | os.PathLike) -> Weights:
    """Reads a saved RefineDet (.keras).

    Raises:
        WeightFileError: the file is no RefineDet that this version can read.
    """
    _probe(path)
    model = load_model(path)
    arrays = {name: variable.numpy() for name, variable in named_variables(model).items()}
    classes = list(model.config.classes)
    return by_name("RefineDet saved by Keras", arrays, preprocessing=input_form(model.config.backbone), classes=classes)


def h5_weights(model: RefineDet, path: str | os.PathLike) -> Weights:
    """Reads an HDF5 file: `save_weights` or `save` of a RefineDet, or weights of a network of keras.applications.

    Raises:
        WeightFileError: the file is unreadable or of another network, or its layers have no names.
    """
    _probe(path)
    try:
        with h5py.File(path, "r") as file:
            layers = _read_layers(file)
    except Exception as error:  # whatever h5py raises over bytes from a stranger
        raise WeightFileError(f"{os.fspath(path)} is no readable HDF5 file of Keras: {error}") from error
    if not any(map(is_detector_layer, layers)):
        return imagenet_weights(model, path)
    variables = {}
    for name in named_variables(model):
        variables.setdefault(layer_of(name), []).append(name)
    arrays, origins = {}, {}
    for layer, values in layers.items():
        names = variables.get(layer, [])
        # The files do not say which of the parts of a layer made of layers is which: those are missing, then.
        fits = len(names) == len(values) and not any(":" in name for name in names)
        origins[layer] = names if fits else []
        arrays.update(zip(names, values, strict=True) if fits else ())
    return Weights("RefineDet's weights saved by Keras", arrays, origins)


def _probe(path: str | os.PathLike) -> None:
    """Lets another process read a file first; see `hdf5_probe`.

    Raises:
        WeightFileError: the file is damaged, or libhdf5 crashes on it.
    """
    command = [sys.executable, hdf5_probe.__file__, os.path.abspath(path)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=MAX_SECONDS, errors="replace")
        reason = result.stderr.strip() or f"libhdf5 fails on it with status {result.returncode}"
    except subprocess.TimeoutExpired:
        reason = f"it cannot be read in {MAX_SECONDS} s"
    else:
        if result.returncode == 0:
            return
    raise WeightFileError(f"{os.fspath(path)} is no readable HDF5 file of Keras: {reason}")


def _read_layers(file: h5py.File) -> dict[str, list[np.ndarray]]:
    """The arrays of each layer that has any, in Keras's order, by the layer's name.

    Raises:
        ValueError: the file has another structure, or refers to other files.
        Exception: whatever a damaged file leads to.
    """
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
    every = [dataset for values in datasets.values() for dataset in values]
    if any(one.external or one.is_virtual or one.file != file for one in every):
        raise ValueError("it refers to other files")
    if sum(one.nbytes for one in every) > MAX_BYTES:
        raise ValueError("it claims to hold more than 4 GB")
    return {name: [one[()] for one in values] for name, values in datasets.items() if values}


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def load_model(path: str | os.PathLike) -> RefineDet:
    """Opens a RefineDet that was saved as a .keras file.

    Raises:
        WeightFileError: the file is missing or no such model.
    """
    if not os.path.isfile(path):
        raise WeightFileError(f"There is no model file {os.fspath(path)!r}.")
    try:
        _expect_refinedet(path)
        return keras.models.load_model(path, compile=False)
    except WeightFileError:
        raise
    except Exception as error:  # whatever Keras, zipfile and h5py raise over bytes from a stranger
        raise WeightFileError(f"{os.fspath(path)} is no model that can be opened: {error}") from error


def _expect_refinedet(path: str | os.PathLike) -> None:
    """Makes sure that Keras will find a RefineDet in a file before Keras opens it.

    To find the class that a file names, Keras imports any module that it names. And what does not end in `.keras` it
    takes for HDF5, in which Keras 2 executes Python code.

    Raises:
        WeightFileError: the file holds another model.
        Exception: whatever a damaged file leads to.
    """
    if not os.fspath(path).endswith(".keras"):
        raise ValueError("its name does not end in .keras")
    with zipfile.ZipFile(path) as archive:
        if archive.getinfo("config.json").file_size > MAX_CONFIG_BYTES:
            raise ValueError("its config.json is too large")
        config = json.loads(archive.read("config.json"))
    if config["registered_name"] != keras.utils.get_registered_name(RefineDet):
        raise WeightFileError(f"{os.fspath(path)} holds a {config['class_name']}, not a RefineDet.")
