"""Weights of keras.applications' networks, downloaded or from a file in their layout."""

import os

import numpy as np
from tensorflow import keras

from refinedet_tf.errors import WeightFileError
from refinedet_tf.model import RefineDet
from refinedet_tf.weights.assignment import Weights, layer_of, named_variables
from refinedet_tf.weights.conversion import SUBSAMPLED, SUBSAMPLING
from refinedet_tf.weights.names import from_keras_applications

IMAGENET = "imagenet"

# Our backbone -> the constructor, and whether its classifier is among the weights that are needed.
_NETWORKS = {
    "vgg16": ("VGG16", True),
    "resnet101": ("ResNet101", False),
    "mobilenet_v1": ("MobileNet", False),
    "mobilenet_v2": ("MobileNetV2", False),
    "mobilenet_v3_small": ("MobileNetV3Small", False),
    "mobilenet_v3_large": ("MobileNetV3Large", False),
}
_INPUT_SIZES = {"mobilenet_v1": (224, 224, 3), "mobilenet_v2": (224, 224, 3)}  # others have one for all sizes

FOLDED = "bias of the convolution folded in"
_RESNET_EPSILON, _OUR_EPSILON = 1.001e-5, 1e-5

_CAFFE_MEANS_NOTE = "trained minus the mean (103.939, 116.779, 123.68), the model subtracts (104, 117, 123)"
_POOLING_NOTE = "ResNet101 of keras.applications pads pool1 on all sides, this network right and below only"


def imagenet_weights(model: RefineDet, path: str | os.PathLike = IMAGENET) -> Weights:
    """Reads the backbone's weights for ImageNet.

    Fully connected layers of VGG16 become the dilated convolutions of the reduced network; the biases of ResNet101's
    convolutions go into the batch normalisation behind them.

    Args:
        model: the model, whose backbone is a network of keras.applications.
        path: `imagenet`, which downloads, or an HDF5 file that keras.applications distributes.

    Returns:
        The weights of the classification network's layers.

    Raises:
        WeightFileError: there are no such weights, the download fails or the file does not fit.
    """
    backbone = model.config.backbone
    if backbone.name not in _NETWORKS:
        raise WeightFileError(
            f"keras.applications has no weights for the backbone {backbone.name}; name a file of another kind"
            f"{', or a preset with weights in model.backbone.preset_or_class' if backbone.name == 'keras_cv' else ''}."
        )
    title, needs_top = _NETWORKS[backbone.name]
    network = _build(model, path, title, needs_top)
    family = f"ImageNet weights of keras.applications.{title}"
    is_original = backbone.name in ("vgg16", "resnet101")  # our layers carry the names of the Caffe files
    rename = from_keras_applications if is_original else str
    arrays = {
        f"{rename(layer_of(name))}/{name.rsplit('/', 1)[1]}": variable.numpy()
        for name, variable in named_variables(network).items()
    }
    weights = Weights(
        family,
        arrays,
        origins={
            layer.name: [name for name in arrays if layer_of(name) == rename(layer.name)]
            for layer in network.layers
            if layer.weights
        },
        preprocessing="caffe" if is_original else "tf",
    )
    if backbone.name == "vgg16":
        _reduce(weights)
        weights.notes.append(_CAFFE_MEANS_NOTE)
    if backbone.name == "resnet101":
        _fold_biases(weights)
        weights.notes.extend([_CAFFE_MEANS_NOTE, _POOLING_NOTE])
    return weights


def _build(model: RefineDet, path: str | os.PathLike, title: str, needs_top: bool) -> keras.Model:
    """The network with its weights. A file does not say whether it has a classifier: what fits is tried."""
    backbone = model.config.backbone
    options = {"alpha": backbone.alpha} if backbone.name.startswith("mobilenet") else {}
    error = None
    for include_top in (True,) if needs_top else (False, True):
        try:
            return getattr(keras.applications, title)(
                weights=os.fspath(path),
                include_top=include_top,
                input_shape=_INPUT_SIZES.get(backbone.name),
                **options,
            )
        except Exception as reason:  # a bare Exception for a failed download, anything over bytes from a stranger
            error = reason
        if path == IMAGENET:
            break
    what = f"the weights of {title} (alpha {backbone.alpha})" if options else f"the weights of {title}"
    if path == IMAGENET:
        raise WeightFileError(f"{what} are not to be had from keras.applications: {error}") from error
    classifier = ", with its classifier fc1, fc2, predictions" if needs_top else ""
    raise WeightFileError(f"{os.fspath(path)} does not hold {what}{classifier}: {error}") from error


def _reduce(weights: Weights) -> None:
    """fc6 and fc7 of the reduced VGG-16. `fc1` is `[25088, 4096]`, its inputs run over rows, columns and channels."""
    for layer, shape in (("fc6", (7, 7, 512, 4096)), ("fc7", (1, 1, 4096, 4096))):
        weights.arrays[f"{layer}/kernel"] = SUBSAMPLING[layer](weights.arrays[f"{layer}/kernel"].reshape(shape))
        weights.arrays[f"{layer}/bias"] = weights.arrays[f"{layer}/bias"][::4]
        weights.transforms.update({f"{layer}/kernel": SUBSAMPLED, f"{layer}/bias": SUBSAMPLED})


def _fold_biases(weights: Weights) -> None:
    """The original's convolutions have no bias: `x + b - mean = x - (mean - b)`. The epsilons differ a little, too."""
    for name in [name for name in weights.arrays if name.endswith("/moving_mean")]:
        layer = layer_of(name)
        convolution = "conv1" if layer == "bn_conv1" else f"res{layer.removeprefix('bn')}"
        bias = weights.arrays.pop(f"{convolution}/bias")
        variance = weights.arrays[f"{layer}/moving_variance"] + np.float32(_RESNET_EPSILON - _OUR_EPSILON)
        weights.arrays.update({name: weights.arrays[name] - bias, f"{layer}/moving_variance": variance})
        weights.transforms[name] = FOLDED
        weights.transforms[f"{layer}/moving_variance"] = "epsilon 1.001e-5 made 1e-5"
