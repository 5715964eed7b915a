"""Opens saved models."""

import os
from collections.abc import Iterator
from typing import Any

from tensorflow import keras

from refinedet_tf.errors import WeightFileError
from refinedet_tf.model import RefineDet
from refinedet_tf.weights.files.keras_archive import read_config


def load_model(path: str | os.PathLike) -> RefineDet:
    """Opens a RefineDet that was saved as a .keras file.

    The file is treated as data: nothing in it is executed, imported or downloaded. Keras's `safe_mode` is on.

    Args:
        path: the file.

    Returns:
        The model, not compiled.

    Raises:
        WeightFileError: the file is missing, damaged or not a RefineDet.
    """
    if not os.path.isfile(path):
        raise WeightFileError(f"There is no model file {os.fspath(path)!r}.")
    config = read_config(path)
    try:
        _check_classes(config, os.fspath(path))
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except WeightFileError:
        raise
    except Exception as error:  # Keras raises many kinds of errors over files that do not fit
        raise WeightFileError(f"{os.fspath(path)} is not a model that can be opened: {error}") from error


def _check_classes(config: dict[str, Any], path: str) -> None:
    """Checks which classes a configuration names: Keras imports any module to find one.

    Raises:
        WeightFileError: the file holds another model, or names a class in the settings of a RefineDet.
    """
    if config.get("registered_name") != keras.utils.get_registered_name(RefineDet):
        raise WeightFileError(f"{path} holds a {config.get('class_name')}, not a RefineDet.")
    for part in _dictionaries(config.get("config")):
        if "class_name" in part:
            raise WeightFileError(f"{path} holds a {part['class_name']}, which no RefineDet has in its configuration.")


def _dictionaries(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _dictionaries(one)
