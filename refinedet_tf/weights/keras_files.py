"""Weights that Keras wrote: .keras models, .weights.h5 files, .npz archives of variables, ImageNet downloads."""

import os
import zipfile

import numpy as np
from tensorflow import keras

from refinedet_tf.model import RefineDet
from refinedet_tf.weights.assign import named_variables
from refinedet_tf.weights.errors import WeightFileError


def read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Arrays of an .npz by `layer/variable`, Keras's variable names.

    Raises:
        WeightFileError: it is no such archive, or holds pickled objects.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise WeightFileError(f"{os.fspath(path)} is no readable .npz archive of arrays: {error}") from error


def read_keras_model(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Arrays of a saved RefineDet (.keras) by `layer/variable`.

    Raises:
        WeightFileError: the file is no RefineDet that this version can read.
    """
    return {name: variable.numpy() for name, variable in named_variables(load_model(path)).items()}


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


def imagenet_weights(model: RefineDet) -> dict[str, np.ndarray]:
    """Arrays of the backbone's ImageNet weights by `layer/variable`; keras.applications downloads them.

    Raises:
        WeightFileError: there are none for this backbone, or the download fails.
    """
    backbone = model.config.backbone
    if backbone.name != "mobilenet_v1":
        raise WeightFileError(f"There are no 'imagenet' weights for the backbone {backbone.name}; name a file.")
    try:
        network = keras.applications.MobileNet(
            input_shape=(224, 224, 3), alpha=backbone.alpha, include_top=False, weights="imagenet"
        )
    except Exception as error:  # a bare Exception is what Keras raises for a failed download
        raise WeightFileError(
            f"The ImageNet weights of MobileNet {backbone.alpha} are not to be had: {error}"
        ) from error
    return {name: variable.numpy() for name, variable in named_variables(network).items()}
