"""Excludes layers of a backbone from training."""

import math

import tensorflow as tf
from tensorflow import keras

from refinedet_tf.config import BackboneConfig
from refinedet_tf.errors import ConfigError


def freeze(images: tf.Tensor, maps: list[tf.Tensor], config: BackboneConfig) -> None:
    """Marks the layers of a backbone that the recipe freezes as not trainable.

    A stage is all layers with weights at one resolution, from fine to coarse: `conv1_1` and `conv1_2` are the first
    stage of VGG-16, `conv1` that of ResNet-101. Frozen batch normalization uses its stored statistics in training. The
    level at stride 64 has no pretrained weights and is never frozen.

    Args:
        images: the graph's input, `[b, h, w, 3]`.
        maps: the backbone's four maps, at strides 8, 16, 32, 64.
        config: `frozen_stages` and `freeze_batch_norm`.

    Raises:
        ConfigError: the backbone has fewer stages than `frozen_stages`.
    """
    if not (config.frozen_stages or config.freeze_batch_norm):
        return
    pretrained = maps[:3]
    halvings = _halvings(images, pretrained)
    stages = sorted(set(halvings.values()))
    if config.frozen_stages > len(stages):
        raise ConfigError(
            f"model.backbone.frozen_stages = {config.frozen_stages}: {config.name} has {len(stages)} stages."
        )
    frozen = stages[: config.frozen_stages]
    for layer in keras.Model(images, pretrained).layers:
        if halvings.get(layer.name) in frozen:
            layer.trainable = False
        if config.freeze_batch_norm:
            # Some networks of KerasCV and KerasHub have layers inside layers.
            for part in layer._flatten_layers():
                if isinstance(part, keras.layers.BatchNormalization):
                    part.trainable = False


def _halvings(images: tf.Tensor, maps: list[tf.Tensor]) -> dict[str, int]:
    """Returns how often the input has been halved at each layer with weights, by the layer's name."""
    result = {}
    for level in maps:
        fewest = math.inf
        # From a map down to the input. Squeeze-and-excitation pools to a single cell in between, but later layers are
        # never finer than earlier ones.
        for layer in reversed(keras.Model(images, level).layers):
            if layer.weights:
                fewest = min(fewest, round(math.log2(images.shape[1] / layer.output.shape[1])))
                result[layer.name] = fewest
    return result
