"""Writes arrays into a model's variables, after all of them have been checked."""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf
from tensorflow import keras

from refinedet_tf.errors import WeightFileError
from refinedet_tf.stacks import plain_name

# Layers on top of a classification network, which only a detector has.
_DETECTOR_LAYER = re.compile(r"(conv6_\d|conv[45]_3_norm|res6_|bn6_|extra_\d|TL\d|P\d|arm\d|odm\d)")


@dataclass(frozen=True)
class Weights:
    """The content of a file, in the names and layouts of the model's variables.

    Attributes:
        family: the kind of network in the file, and its author or library.
        arrays: values by `layer/variable`, such as `conv4_3/kernel`.
        origins: every layer of the file, with the arrays made from it.
        transforms: how an array was changed, by its name; all others are as in the file.
        preprocessing: the form of input that the weights expect, as `backbones.input_form` says; None if unknown.
        classes: names of the classes, without background, if the file has them.
        file_names: a layer's name in the file, where it differs.
        notes: assumptions, for the report.
    """

    family: str
    arrays: dict[str, np.ndarray]
    origins: dict[str, list[str]]
    transforms: dict[str, str] = field(default_factory=dict)
    preprocessing: str | None = None
    classes: list[str] | None = None
    file_names: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class WeightReport:
    """The result of loading a weight file.

    Attributes:
        source: path or name of the weights.
        family: the kind of network in the file, and its author or library.
        loaded: names of the variables that were written.
        kept: names of the model's other variables, which keep their values.
        used: names of the file's layers from which variables were made.
        unused: names of the file's other layers.
        transforms: how loaded variables were changed, by name; all others were copied.
        classes: one line per class if the class heads were mapped or left out.
        notes: assumptions.
    """

    source: str
    family: str
    loaded: list[str]
    kept: list[str]
    used: list[str]
    unused: list[str]
    transforms: dict[str, str]
    classes: list[str]
    notes: list[str]

    def summary(self) -> str:
        """Returns several lines: counts of variables, how they were changed, and the layers not used."""
        lines = [
            f"{self.source}: {self.family}.",
            f"  loaded: {len(self.loaded)} of {len(self.loaded) + len(self.kept)} variables, "
            f"from {len(self.used)} of {len(self.used) + len(self.unused)} layers of the file",
        ]
        lines += [f"    {transform}: {count}" for transform, count in self.transform_counts().items()]
        if self.kept:
            lines.append(f"  not loaded, unchanged: {_shorten(_layers(self.kept))}")
        if self.unused:
            lines.append(f"  in the file, unused: {_shorten(self.unused)}")
        if self.classes:
            lines += ["  classes:", *(f"    {line}" for line in self.classes)]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def transform_counts(self) -> dict[str, int]:
        """Returns the number of loaded variables per transform; the numbers add up to all of them."""
        return dict(Counter(self.transforms.get(name, "copied") for name in self.loaded))


def assign(
    model: keras.Model,
    weights: Weights,
    source: str,
    left_out: Collection[str] = (),
    class_lines: Iterable[str] = (),
) -> WeightReport:
    """Writes arrays to the variables of the same names.

    A file with detector layers must have all of the model's layers; any other file must have the whole backbone.

    Args:
        model: the model, changed in place.
        weights: the content of the file.
        source: path or name of the weights, for messages.
        left_out: variables that the file may lack and that are not written.
        class_lines: how classes were mapped, for the report.

    Returns:
        The report.

    Raises:
        WeightFileError: layers are missing, or shapes of arrays and variables differ. The model is unchanged.
    """
    variables = named_variables(model)
    loaded = [name for name in variables if name in weights.arrays and name not in left_out]
    if not loaded:
        raise WeightFileError(
            f"{source} has no variable of this model. It holds {_shorten(list(weights.origins))}; the model has "
            f"{_shorten(_layers(variables))}."
        )
    is_detector = any(is_detector_layer(name) for name in loaded)
    missing = [
        name
        for name in variables
        if name not in loaded and name not in left_out and (is_detector or not is_detector_layer(name))
    ]
    misfits = [
        f"{name}: {_form(weights.arrays[name])} in the file, {tuple(variables[name].shape)} in the model"
        for name in loaded
        if weights.arrays[name].shape != tuple(variables[name].shape) or weights.arrays[name].dtype.kind not in "fiu"
    ]
    made = set(loaded)
    used = [layer for layer, names in weights.origins.items() if made.intersection(names)]
    unused = [layer for layer in weights.origins if layer not in used]
    if missing or misfits:
        lines = [f"{source} ({weights.family}) does not fit the model; nothing was loaded."]
        if missing:
            lines.append(f"  missing in the file: {', '.join(_name(one, weights) for one in _layers(missing))}")
        if misfits:
            lines += ["  of another shape:", *(f"    {misfit}" for misfit in misfits)]
        if unused:
            lines.append(f"  in the file, but not in the model: {', '.join(unused)}")
        raise WeightFileError("\n".join(lines))
    for name in loaded:
        variables[name].assign(weights.arrays[name].astype(np.float32))
    return WeightReport(
        source,
        weights.family,
        loaded,
        kept=[name for name in variables if name not in made],
        used=used,
        unused=unused,
        transforms={name: weights.transforms[name] for name in loaded if name in weights.transforms},
        classes=list(class_lines),
        notes=weights.notes,
    )


def named_variables(model: keras.Model) -> dict[str, tf.Variable]:
    """Returns a model's variables by `layer/variable`, such as `conv4_3/kernel`, in the order of its layers.

    Some layers of KerasCV contain others; the second kernel of such a layer is `layer/kernel:1`.
    """
    variables = {}
    for layer in model.layers:
        counts = Counter()
        for variable in layer.weights:
            name = plain_name(f"{layer.name}/{variable.name.split('/')[-1]}")
            variables[f"{name}:{counts[name]}" if counts[name] else name] = variable
            counts[name] += 1
    return variables


def max_bytes(model: keras.Model) -> int:
    """Returns how many bytes a weight file may unpack to for a model.

    Four times the model leaves room for the states of an optimizer, and 128 MiB for the classifier of ImageNet or the
    heads of other classes.
    """
    return 4 * sum(4 * math.prod(variable.shape) for variable in named_variables(model).values()) + 2**27


def by_name(family: str, arrays: dict[str, np.ndarray], **kwargs: object) -> Weights:
    """Returns `Weights` from arrays that already have the names and layouts of the variables."""
    origins = {}
    for name in arrays:
        origins.setdefault(layer_of(name), []).append(name)
    return Weights(family, arrays, origins, **kwargs)


def is_detector_layer(name: str) -> bool:
    """Returns whether a layer, or a variable of it, belongs to the detector and not to its classification network."""
    return _DETECTOR_LAYER.match(name) is not None


def layer_of(name: str) -> str:
    """Returns the layer of a variable `layer/variable`."""
    return name.rsplit("/", 1)[0]


def _layers(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(map(layer_of, names)))


def _name(layer: str, weights: Weights) -> str:
    return f"{layer} ({weights.file_names[layer]})" if layer in weights.file_names else layer


def _form(array: np.ndarray) -> str:
    return f"{array.shape}" if array.dtype.kind in "fiu" else f"{array.shape} of type {array.dtype}"


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
