"""ImageNet weights of keras.applications, downloaded or from a file in their layout."""

import os

import numpy as np
from tensorflow import keras

from refinedet_tf.backbones import Application, backbone_of
from refinedet_tf.errors import WeightFileError
from refinedet_tf.model import RefineDet
from refinedet_tf.weights.assignment import Weights, layer_of, named_variables
from refinedet_tf.weights.conversion.caffe import SUBSAMPLED, SUBSAMPLING
from refinedet_tf.weights.names import from_keras_applications

IMAGENET = "imagenet"

FOLDED = "bias of the convolution folded in"
_RESNET_EPSILON, _OUR_EPSILON = 1.001e-5, 1e-5

_CAFFE_MEANS_NOTE = "trained minus the mean (103.939, 116.779, 123.68), the model subtracts (104, 117, 123)"
_POOLING_NOTE = (
    "ResNet101 of keras.applications pads pool1 on all sides, this network only on the right and at the bottom"
)


def imagenet_weights(model: RefineDet, path: str | os.PathLike = IMAGENET) -> Weights:
    """Reads the backbone's ImageNet weights.

    Fully connected layers of VGG16 become the dilated convolutions of the reduced network. The biases of ResNet101's
    convolutions are folded into the batch normalization that follows.

    Args:
        model: the model, whose backbone is a network of keras.applications.
        path: `imagenet`, which downloads, or an HDF5 file that keras.applications distributes.

    Returns:
        The weights of the classification network's layers.

    Raises:
        WeightFileError: there are no such weights, the download fails, or the file does not fit.
    """
    config = model.config.backbone
    backbone = backbone_of(config.name)
    if backbone.application is None:
        remedies = ["name a file of another kind"]
        if config.name in backbone.packaged_weights:
            remedies.append(f"the weights {config.name}")
        if "preset_or_class" in backbone.fields:
            remedies.append("a preset with weights in model.backbone.preset_or_class")
        raise WeightFileError(
            f"keras.applications has no weights for the backbone {config.name}; {', or '.join(remedies)}."
        )
    application = backbone.application(config)
    network = _build(application, path)
    is_original = application.title in _ORIGINALS  # our layers carry the names of the Caffe files
    rename = from_keras_applications if is_original else str
    arrays = {
        f"{rename(layer_of(name))}/{name.rsplit('/', 1)[1]}": variable.numpy()
        for name, variable in named_variables(network).items()
    }
    weights = Weights(
        f"ImageNet weights of keras.applications.{application.title}",
        arrays,
        origins={
            layer.name: [name for name in arrays if layer_of(name) == rename(layer.name)]
            for layer in network.layers
            if layer.weights
        },
        preprocessing=backbone.preprocessing,
    )
    if is_original:
        _ORIGINALS[application.title](weights)
    return weights


def _build(application: Application, path: str | os.PathLike) -> keras.Model:
    """Builds the network with its weights. A file does not say whether it has a classifier, so both are tried."""
    constructor = getattr(keras.applications, application.title)
    error = None
    for include_top in (True,) if application.needs_top else (False, True):
        try:
            return constructor(weights=os.fspath(path), include_top=include_top, **application.arguments)
        except (
            Exception
        ) as reason:  # Keras raises a bare Exception for a failed download, and many kinds of errors over damaged files
            error = reason
        if path == IMAGENET:
            break
    alpha = application.arguments.get("alpha")
    what = f"the weights of {application.title}" + (f" (alpha {alpha})" if alpha else "")
    if path == IMAGENET:
        raise WeightFileError(f"{what} cannot be downloaded by keras.applications: {error}") from error
    classifier = ", with its classifier fc1, fc2, predictions" if application.needs_top else ""
    raise WeightFileError(f"{os.fspath(path)} does not hold {what}{classifier}: {error}") from error


def _reduce(weights: Weights) -> None:
    """Makes fc6 and fc7 of the reduced VGG-16. The inputs of `fc1`, `[25088, 4096]`, are rows, columns, channels."""
    for layer, shape in (("fc6", (7, 7, 512, 4096)), ("fc7", (1, 1, 4096, 4096))):
        weights.arrays[f"{layer}/kernel"] = SUBSAMPLING[layer](weights.arrays[f"{layer}/kernel"].reshape(shape))
        weights.arrays[f"{layer}/bias"] = weights.arrays[f"{layer}/bias"][::4]
        weights.transforms.update({f"{layer}/kernel": SUBSAMPLED, f"{layer}/bias": SUBSAMPLED})
    weights.notes.append(_CAFFE_MEANS_NOTE)


def _fold_biases(weights: Weights) -> None:
    """Removes the biases, which the original lacks: `x + b - mean = x - (mean - b)`. The epsilons differ, too."""
    for name in [name for name in weights.arrays if name.endswith("/moving_mean")]:
        layer = layer_of(name)
        convolution = "conv1" if layer == "bn_conv1" else f"res{layer.removeprefix('bn')}"
        bias = weights.arrays.pop(f"{convolution}/bias")
        variance = weights.arrays[f"{layer}/moving_variance"] + np.float32(_RESNET_EPSILON - _OUR_EPSILON)
        weights.arrays.update({name: weights.arrays[name] - bias, f"{layer}/moving_variance": variance})
        weights.transforms[name] = FOLDED
        weights.transforms[f"{layer}/moving_variance"] = "epsilon 1.001e-5 made 1e-5"
    weights.notes.extend([_CAFFE_MEANS_NOTE, _POOLING_NOTE])


# Networks whose Caffe originals our backbones follow, with the function that converts them.
_ORIGINALS = {"VGG16": _reduce, "ResNet101": _fold_biases}
