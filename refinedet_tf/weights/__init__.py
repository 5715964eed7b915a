"""Other people's weights, and our own, into these layers."""

import os
import zipfile

import numpy as np

from refinedet_tf.model import RefineDet
from refinedet_tf.weights.assign import WeightReport, assign
from refinedet_tf.weights.errors import WeightFileError
from refinedet_tf.weights.keras_files import imagenet_weights, load_model, read_keras_model, read_npz

__all__ = ["WeightFileError", "WeightReport", "load_model", "load_weights"]

IMAGENET = "imagenet"


def load_weights(model: RefineDet, path: str | os.PathLike) -> WeightReport:
    """Loads weights by layer name; what kind of file it is, its content tells.

    Args:
        model: the model, changed in place.
        path: a .keras file of a RefineDet, an .npz archive of Keras variables, or `imagenet` for the
            backbone's weights of keras.applications.

    Returns:
        What was loaded and what not.

    Raises:
        WeightFileError: the file is missing, unreadable, or does not fit. The model is unchanged then.
    """
    if path == IMAGENET:
        return assign(model, imagenet_weights(model), "ImageNet weights of keras.applications")
    return assign(model, _read(path), os.fspath(path))


def _read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    if not os.path.isfile(path):
        raise WeightFileError(f"There is no weight file {os.fspath(path)!r}.")
    if not zipfile.is_zipfile(path):
        raise WeightFileError(f"{os.fspath(path)} is neither a .keras nor an .npz file.")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return read_keras_model(path) if "config.json" in names else read_npz(path)
