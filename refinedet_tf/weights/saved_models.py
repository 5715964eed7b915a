"""Opens saved models."""

import contextlib
import inspect
import math
import os
import threading
from collections.abc import Iterator
from typing import Any

from tensorflow import keras

from refinedet_tf.errors import WeightFileError
from refinedet_tf.model import RefineDet
from refinedet_tf.weights.files.keras_archive import KerasArchive, read_archive
from refinedet_tf.weights.pretrained import find_file

# A network of KerasCV or KerasHub may build layers behind the last map, which a detector does not keep.
MAX_BUILT = 2  # times the weights of the file


def load_model(path: str | os.PathLike) -> RefineDet:
    """Opens a RefineDet that was saved as a .keras file, or one that comes with the package.

    The file is treated as data: nothing in it is executed, imported or downloaded. Keras's `safe_mode` is on. A network
    with far more weights than the file holds is refused before memory is taken for them.

    Args:
        path: the file, or a name of `pretrained_models`.

    Returns:
        The model, not compiled.

    Raises:
        WeightFileError: the file is missing, damaged or not a RefineDet.
    """
    path = find_file(path, "model")
    archive = read_archive(path)
    try:
        _check_classes(archive.config, os.fspath(path))
        with _limited_weights(archive):
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


@contextlib.contextmanager
def _limited_weights(archive: KerasArchive) -> Iterator[None]:
    """Lets this thread make at most `MAX_BUILT` times the weights that a file holds.

    Raises:
        ValueError: while the network is being built, before the first weight too many is made.
    """
    original, thread = keras.layers.Layer.add_weight, threading.get_ident()
    signature = inspect.signature(original)
    arrays = numbers = 0

    def add_weight(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        nonlocal arrays, numbers
        # Metrics are layers, too, in Keras 2, but no part of the file.
        if threading.get_ident() == thread and not isinstance(layer, keras.metrics.Metric):
            shape = signature.bind(layer, *args, **kwargs).arguments.get("shape") or ()
            arrays, numbers = arrays + 1, numbers + math.prod(map(int, shape))
            if arrays > MAX_BUILT * archive.arrays or numbers > MAX_BUILT * archive.numbers:
                raise ValueError(
                    f"its configuration asks for a network with far more weights than the {archive.numbers} numbers in "
                    f"{archive.arrays} arrays that it holds"
                )
        return original(layer, *args, **kwargs)

    keras.layers.Layer.add_weight = add_weight
    try:
        yield
    finally:
        keras.layers.Layer.add_weight = original


def _dictionaries(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _dictionaries(one)
