"""Weights that Keras wrote: .keras models, HDF5 files of weights or models, .npz archives of variables."""

import os

from refinedet_tf.backbones import input_form
from refinedet_tf.config import BackboneConfig
from refinedet_tf.model import RefineDet
from refinedet_tf.stacks import plain_name
from refinedet_tf.weights.assignment import (
    Weights,
    by_name,
    is_detector_layer,
    layer_of,
    max_bytes,
    named_variables,
)
from refinedet_tf.weights.conversion.keras_applications import imagenet_weights
from refinedet_tf.weights.files.hdf5 import probe, read_layers
from refinedet_tf.weights.files.npz import read_npz
from refinedet_tf.weights.saved_models import load_model


def npz_weights(model: RefineDet, path: str | os.PathLike) -> Weights:
    """Reads an .npz archive of arrays named `layer/variable`, Keras's names.

    Raises:
        WeightFileError: the file cannot be read, holds pickled objects or far more than the model needs.
    """
    arrays = {plain_name(name): array for name, array in read_npz(path, max_bytes(model)).items()}
    if any(map(is_detector_layer, arrays)):
        return by_name("RefineDet, by variable name", arrays)
    # Arrays of a classification network say nothing about its input: the backbone's own form is assumed.
    expected = input_form(BackboneConfig(model.config.backbone.name))
    return by_name("classification network, by variable name", arrays, preprocessing=expected)


def keras_weights(path: str | os.PathLike) -> Weights:
    """Reads a saved RefineDet (.keras).

    Raises:
        WeightFileError: the file is not a RefineDet that this version can read.
    """
    probe(path, os.path.getsize(path))
    model = load_model(path)
    arrays = {name: variable.numpy() for name, variable in named_variables(model).items()}
    return by_name(
        "RefineDet saved by Keras",
        arrays,
        preprocessing=input_form(model.config.backbone),
        classes=list(model.config.classes),
    )


def h5_weights(model: RefineDet, path: str | os.PathLike) -> Weights:
    """Reads an HDF5 file: `save_weights` or `save` of a RefineDet, or weights of a network of keras.applications.

    Raises:
        WeightFileError: the file cannot be read, is of another network, or does not name its layers.
    """
    layers = read_layers(path, max_bytes(model))
    if not any(map(is_detector_layer, layers)):
        return imagenet_weights(model, path)
    variables = {}
    for name in named_variables(model):
        variables.setdefault(layer_of(name), []).append(name)
    arrays, origins = {}, {}
    for layer, values in layers.items():
        names = variables.get(layer, [])
        # The files do not say which part of a compound layer an array belongs to; such layers count as missing.
        fits = len(names) == len(values) and not any(":" in name for name in names)
        origins[layer] = names if fits else []
        arrays.update(zip(names, values, strict=True) if fits else ())
    return Weights("RefineDet's weights saved by Keras", arrays, origins)
