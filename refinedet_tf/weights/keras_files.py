"""Weights that Keras wrote: .keras models, HDF5 files of weights or models, .npz archives of variables."""

import dataclasses
import os
import zipfile

import h5py
import numpy as np
from tensorflow import keras

from refinedet_tf.layers import ANCHORS_PER_CELL
from refinedet_tf.model import RefineDet
from refinedet_tf.weights.assign import Weights, by_name, is_detector_layer, named_variables, plain_name
from refinedet_tf.weights.errors import WeightFileError
from refinedet_tf.weights.imagenet import imagenet_weights

MAX_ARCHIVE_BYTES = 2**32  # what an archive may unpack to; the largest RefineDet takes 330 MB

_CLASS_HEADS = ("odm3_classes", "odm3_classes_pointwise")
_NATIVE_INPUTS = {"vgg16": "caffe", "resnet101": "caffe", "keras_cv": "KerasCV's own"}


def npz_weights(model: RefineDet, path: str | os.PathLike) -> Weights:
    """Reads an .npz archive of arrays named `layer/variable`, Keras's names.

    Raises:
        WeightFileError: it is no such archive, or holds pickled objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_ARCHIVE_BYTES:
            raise WeightFileError(f"{os.fspath(path)} would unpack to {size} bytes.")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {plain_name(name): archive[name] for name in archive.files}
    except (ValueError, EOFError, OSError, MemoryError, zipfile.BadZipFile) as error:
        raise WeightFileError(f"{os.fspath(path)} is no readable .npz archive of arrays: {error}") from error
    if any(map(is_detector_layer, arrays)):
        return by_name("RefineDet, by variable name", arrays)
    backbone = model.config.backbone.name
    return by_name("classification network, by variable name", arrays, preprocessing=_NATIVE_INPUTS.get(backbone, "tf"))


def keras_weights(path: str | os.PathLike) -> Weights:
    """Reads a saved RefineDet (.keras).

    Raises:
        WeightFileError: the file is no RefineDet that this version can read.
    """
    return _of_model(load_model(path), "RefineDet saved by Keras")


def h5_weights(model: RefineDet, path: str | os.PathLike) -> Weights:
    """Reads an HDF5 file: `save_weights` or `save` of a RefineDet, or weights of a network of keras.applications.

    HDF5 files know their layers by order or by class, so Keras reads them into a second model of the same recipe.

    Raises:
        WeightFileError: the file is unreadable or of another recipe or network.
    """
    try:
        class_count = _class_count(path)
    except Exception as error:  # whatever h5py raises over bytes from a stranger
        raise WeightFileError(f"{os.fspath(path)} is no readable HDF5 file: {error}") from error
    if class_count is None:
        return imagenet_weights(model, path)
    known = class_count == len(model.config.classes)
    classes = model.config.classes if known else [str(index) for index in range(1, class_count + 1)]
    try:
        twin = RefineDet(dataclasses.replace(model.config, classes=list(classes)))
        twin.load_weights(path)
    except Exception as error:  # whatever h5py and Keras raise over bytes from a stranger
        raise WeightFileError(
            f"{os.fspath(path)} holds no weights of this recipe (a .keras file would tell what differs): {error}"
        ) from error
    return dataclasses.replace(_of_model(twin, "RefineDet's weights saved by Keras"), classes=None)


def load_model(path: str | os.PathLike) -> RefineDet:
    """Opens a RefineDet that was saved as a .keras file.

    Raises:
        WeightFileError: the file is missing or no such model.
    """
    if not os.path.isfile(path):
        raise WeightFileError(f"There is no model file {os.fspath(path)!r}.")
    try:
        model = keras.models.load_model(path, compile=False)
    except (ValueError, TypeError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise WeightFileError(f"{os.fspath(path)} is no model that can be opened: {error}") from error
    if not isinstance(model, RefineDet):
        raise WeightFileError(f"{os.fspath(path)} holds a {type(model).__name__}, not a RefineDet.")
    return model


def input_mode(model: RefineDet) -> str:
    """The form of input that a model's backbone sees: one of `config.PREPROCESSING_MODES`, or `KerasCV's own`."""
    backbone = model.config.backbone
    if backbone.name == "keras_cv" and backbone.preprocessing is None:
        return _NATIVE_INPUTS["keras_cv"]
    modes = [layer.mode for layer in model.layers if layer.name == "preprocessing"]
    return modes[0] if modes else "none"


def _of_model(model: RefineDet, family: str) -> Weights:
    arrays = {name: variable.numpy() for name, variable in named_variables(model).items()}
    return by_name(family, arrays, preprocessing=input_mode(model), classes=list(model.config.classes))


def _class_count(path: str | os.PathLike) -> int | None:
    """The number of classes of a RefineDet in an HDF5 file; None for other networks.

    Keras 3 writes a layer's name beside its variables; the older format has a group of that name.
    """
    counts = []

    def visit(_: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim == 1:
            layer = item.parent.attrs.get("name", item.parent.name.rsplit("/", 1)[-1])
            if layer in _CLASS_HEADS:
                counts.append(item.size // ANCHORS_PER_CELL - 1)

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return counts[0] if counts else None
