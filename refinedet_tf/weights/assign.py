"""Arrays into a model's variables: everything is checked first, then everything is written."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from tensorflow import keras

from refinedet_tf.weights.errors import WeightFileError


@dataclass(frozen=True)
class WeightReport:
    """What became of a weight file.

    Attributes:
        source: where the arrays came from.
        loaded: names of the variables that were written.
        kept: names of the model's variables that the file does not have; they keep their values.
        unused: names of the file's arrays that the model does not have.
    """

    source: str
    loaded: list[str]
    kept: list[str]
    unused: list[str]

    def summary(self) -> str:
        """One line for each group, layers instead of single variables."""
        lines = [f"{self.source}: {len(self.loaded)} of {len(self.loaded) + len(self.kept)} variables loaded."]
        if self.kept:
            lines.append(f"  not in the file, unchanged: {_layers(self.kept)}")
        if self.unused:
            lines.append(f"  not in the model, unused: {_layers(self.unused)}")
        return "\n".join(lines)


def assign(model: keras.Model, arrays: Mapping[str, np.ndarray], source: str) -> WeightReport:
    """Writes arrays to the variables of the same names.

    Args:
        model: the model, changed in place.
        arrays: values by `layer/variable`, in Keras's layouts.
        source: for messages.

    Returns:
        What was loaded and what not.

    Raises:
        WeightFileError: an array has another shape than its variable, or no name is known. The model is unchanged then.
    """
    variables = named_variables(model)
    arrays = {_plain(name): value for name, value in arrays.items()}
    loaded = [name for name in variables if name in arrays]
    if not loaded:
        raise WeightFileError(
            f"{source} has no variable of this model; it holds {', '.join(sorted(arrays)[:5])} ..., "
            f"the model {', '.join(list(variables)[:5])} ..."
        )
    misfits = [
        f"{name}: {tuple(arrays[name].shape)} in the file, {tuple(variables[name].shape)} in the model"
        for name in loaded
        if tuple(arrays[name].shape) != tuple(variables[name].shape)
    ]
    if misfits:
        raise WeightFileError(f"{source} does not fit the model; nothing was loaded.\n  " + "\n  ".join(misfits))
    for name in loaded:
        variables[name].assign(arrays[name])
    return WeightReport(
        source,
        loaded,
        kept=[name for name in variables if name not in arrays],
        unused=sorted(name for name in arrays if name not in variables),
    )


def named_variables(model: keras.Model) -> dict[str, tf.Variable]:
    """The variables of a flat model's layers by `layer/variable`, as `conv4_3/kernel`, in graph order."""
    return {
        _plain(f"{layer.name}/{variable.name.split('/')[-1]}"): variable
        for layer in model.layers
        for variable in layer.weights
    }


def _plain(name: str) -> str:
    """One spelling for Keras 2's `conv_dw_1/depthwise_kernel:0` and Keras 3's `conv_dw_1/kernel`."""
    return name.removesuffix(":0").replace("/depthwise_kernel", "/kernel")


def _layers(names: list[str]) -> str:
    layers = list(dict.fromkeys(name.rsplit("/", 1)[0] for name in names))
    shown = ", ".join(layers[:8])
    return shown + (f" and {len(layers) - 8} more layers" if len(layers) > 8 else "")
