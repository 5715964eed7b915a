"""Weights of Caffe and PyTorch files, which share Caffe's layer names and layouts."""

import os
from collections.abc import Callable

import numpy as np
from tensorflow import keras

from refinedet_tf.errors import WeightFileError
from refinedet_tf.layers import L2Normalization
from refinedet_tf.model import RefineDet
from refinedet_tf.weights.assignment import Weights, is_detector_layer
from refinedet_tf.weights.conversion.efficientnet_lite import TRANSPOSED, efficientnet_lite_weights, is_efficientnet
from refinedet_tf.weights.files.caffe import fold_statistics, read_caffemodel
from refinedet_tf.weights.files.pytorch import read_state_dict
from refinedet_tf.weights.names import LUUUYI, REDUCED_VGG16, caffe_layers

Blobs = dict[str, list[np.ndarray]]  # by Caffe layer

REVERSED = "transposed, input channels reversed"
SUBSAMPLED = "subsampled from ImageNet's fc6 and fc7"
DIVIDED = "divided by Caffe's moving average factor"

# A layer that identifies the network, and one that only deeper networks with the same names have.
_NETWORKS = {
    "vgg16": ("VGG-16", "conv1_1", "conv3_4"),
    "resnet101": ("ResNet-101", "res4b22_branch2a", "res4b23_branch2a"),
}


def caffe_weights(model: RefineDet, path: str | os.PathLike) -> Weights:
    """Reads a .caffemodel of RefineDet, or of a classification network, on VGG-16 or ResNet-101.

    Args:
        model: the model that the weights are for.
        path: the file.

    Returns:
        The weights of all layers of the model that the file has.

    Raises:
        WeightFileError: the file is unreadable, is of another network than the model's backbone, or a layer has an
            unexpected number of blobs.
    """
    layers = read_caffemodel(path)
    network = _recognize(model, layers, os.fspath(path))
    return _convert(model, layers, f"{network} (Caffe)", lambda name: name)


def pytorch_weights(model: RefineDet, path: str | os.PathLike) -> Weights:
    """Reads a .pth of luuuyi's RefineDet.PyTorch, the vgg16_reducedfc.pth of ssd.pytorch, or an EfficientNet-Lite.

    luuuyi's models take RGB, this library's BGR, minus the same mean of each color: the input channels of `conv1_1` are
    reversed, which is exact. vgg16_reducedfc.pth is assumed to take BGR, like the Caffe file that it was made from.

    Args:
        model: the model that the weights are for.
        path: the file.

    Returns:
        The weights of all layers of the model that the file has.

    Raises:
        WeightFileError: the file is unreadable or of another kind, or of another network than the model's backbone.
    """
    tensors = read_state_dict(path)
    if is_efficientnet(tensors):
        return efficientnet_lite_weights(model, tensors, os.fspath(path))
    modules = list(dict.fromkeys(key.rpartition(".")[0] or key for key in tensors))
    if "vgg.0" in modules:
        table, owner = LUUUYI, "(PyTorch, luuuyi)"
        note = "these weights expect RGB: the input channels of conv1_1 are reversed, so that the model takes BGR"
    elif "0" in modules and "33" in modules:
        table, owner = REDUCED_VGG16, "(PyTorch, vgg16_reducedfc.pth)"
        note = "the channel order of conv1_1 is not documented; BGR is assumed, as in the Caffe original"
    else:
        raise WeightFileError(
            f"{os.fspath(path)} is neither a RefineDet of luuuyi/RefineDet.PyTorch nor vgg16_reducedfc.pth nor an "
            f"EfficientNet-Lite: it holds {', '.join(list(tensors)[:5])} ... Models of torchvision do not fit."
        )
    # Modules that are not in the table keep their names and are reported as unused.
    layers = {
        table.get(module, module): [
            tensors[f"{module}.{kind}"] for kind in ("weight", "bias") if f"{module}.{kind}" in tensors
        ]
        for module in modules
    }
    network = _recognize(model, layers, os.fspath(path))
    module_names = {layer: module for module, layer in table.items()}
    weights = _convert(model, layers, f"{network} {owner}", lambda name: module_names.get(name, name))
    first = weights.arrays.get("conv1_1/kernel")
    if table is LUUUYI and first is not None and first.ndim == 4:
        weights.arrays["conv1_1/kernel"] = first[:, :, ::-1]
        weights.transforms["conv1_1/kernel"] = REVERSED
    weights.notes.append(note)
    return weights


def _recognize(model: RefineDet, layers: Blobs, source: str) -> str:
    """Returns a description of the network in a file.

    Raises:
        WeightFileError: it is not the model's.
    """
    backbone = model.config.backbone.name
    for name, (title, mark, foreign) in _NETWORKS.items():
        if mark not in layers or foreign in layers:
            continue
        if name != backbone:
            raise WeightFileError(
                f"{source} holds a {title}, but the model is built on {backbone}; "
                f"set model.backbone.name={name} in the recipe."
            )
        detector = any(
            name in layers
            for layer in model.layers
            if layer.weights and is_detector_layer(layer.name)
            for name in caffe_layers(layer.name, backbone)
        )
        return f"RefineDet on {title}" if detector else f"classification network {title}"
    raise WeightFileError(
        f"{source} holds neither a VGG-16 nor a ResNet-101; its layers are {', '.join(list(layers)[:8])} ..."
    )


def _convert(model: RefineDet, layers: Blobs, family: str, file_name: Callable[[str], str]) -> Weights:
    """Converts all layers of the model that the file has; `file_name` returns the name of a layer in the file."""
    weights = Weights(family, {}, {file_name(name): [] for name in layers}, preprocessing="caffe")
    for layer in model.layers:
        if not layer.weights:
            continue
        names = caffe_layers(layer.name, model.config.backbone.name)
        in_file = ", ".join(map(file_name, names))
        if in_file != layer.name:
            weights.file_names[layer.name] = in_file
        if not all(name in layers for name in names):
            continue
        for variable, (array, transform) in _variables(layer, [layers[name] for name in names]).items():
            name = f"{layer.name}/{variable}"
            weights.arrays[name] = array
            if transform:
                weights.transforms[name] = transform
            for origin in map(file_name, names):
                weights.origins[origin].append(name)
    return weights


def _variables(layer: keras.layers.Layer, blobs: list[list[np.ndarray]]) -> dict[str, tuple[np.ndarray, str]]:
    """Returns the values of a layer's variables and how they were changed, by name.

    Args:
        layer: the model's layer.
        blobs: the blobs of each corresponding Caffe layer.

    Raises:
        WeightFileError: there are too few or too many blobs.
    """
    if isinstance(layer, keras.layers.BatchNormalization):
        statistics, affine = blobs
        _expect(layer, affine, ("scale", "shift"))
        try:
            mean, variance = fold_statistics(statistics)
        except WeightFileError as error:
            raise WeightFileError(f"Layer {layer.name!r}: {error}.") from error
        return {
            "gamma": (affine[0], ""),
            "beta": (affine[1], ""),
            "moving_mean": (mean, DIVIDED),
            "moving_variance": (variance, DIVIDED),
        }
    if isinstance(layer, L2Normalization):
        _expect(layer, blobs[0], ("scale",))
        return {"scale": (blobs[0][0], "")}
    _expect(layer, blobs[0], ("weights", "bias") if layer.use_bias else ("weights",))
    kernel, *bias = blobs[0]
    if layer.name in SUBSAMPLING and (whole := as_convolution(kernel)) is not None:
        return {
            "kernel": (SUBSAMPLING[layer.name](whole), SUBSAMPLED),
            "bias": (bias[0].ravel()[::4], SUBSAMPLED),
        }
    # (out, in, h, w) to (h, w, in, out), and of a deconvolution (in, out, h, w) to (h, w, out, in).
    return {
        "kernel": (kernel.transpose(2, 3, 1, 0), TRANSPOSED) if kernel.ndim == 4 else (kernel, ""),
        **({"bias": (bias[0], "")} if bias else {}),
    }


def _expect(layer: keras.layers.Layer, blobs: list[np.ndarray], kinds: tuple[str, ...]) -> None:
    if len(blobs) != len(kinds):
        raise WeightFileError(
            f"Layer {layer.name!r} has {len(blobs)} arrays in the file, not {len(kinds)}: {' and '.join(kinds)}."
        )


def as_convolution(kernel: np.ndarray) -> np.ndarray | None:
    """Returns fc6 or fc7 of an unreduced VGG-16 as the kernel of a convolution.

    Args:
        kernel: the weights of any layer.

    Returns:
        `(7, 7, 512, 4096)` for fc6, `(1, 1, 4096, 4096)` for fc7, None for other weights.
    """
    for shape in ((4096, 512, 7, 7), (4096, 4096, 1, 1)):
        whole = tuple(side for side in kernel.shape if side > 1)
        if kernel.size == np.prod(shape) and whole in (shape, (4096, 25088), (4096, 4096)):
            return kernel.reshape(shape).transpose(2, 3, 1, 0)
    return None


def subsample_fc6(kernel: np.ndarray) -> np.ndarray:
    """Keeps every fourth output and every third row and column, as ports of SSD do.

    With dilation 3, the 3x3 kernel covers the same 7x7 cells.

    Args:
        kernel: `[7, 7, in, out]`.

    Returns:
        `[3, 3, in, out / 4]`.
    """
    return kernel[::3, ::3, :, ::4]


def subsample_fc7(kernel: np.ndarray) -> np.ndarray:
    """Keeps every fourth output, and the inputs that remain of fc6.

    Args:
        kernel: `[1, 1, in, out]`.

    Returns:
        `[1, 1, in / 4, out / 4]`.
    """
    return kernel[:, :, ::4, ::4]


SUBSAMPLING = {"fc6": subsample_fc6, "fc7": subsample_fc7}
