"""The networks below the detector.

A backbone maps preprocessed images to four feature maps at strides 8, 16, 32 and 64, the sources of the ARM and of the
transfer connection blocks. To add one, write a module with a constant `BACKBONE` (see `definition.Backbone`) and list
its names in `config.BACKBONES`. Modules are imported when a model first needs them.
"""

import dataclasses
from importlib import import_module

import tensorflow as tf

from refinedet_tf.backbones.definition import Application, Backbone, PackagedWeights
from refinedet_tf.backbones.freezing import freeze
from refinedet_tf.config import BACKBONES, BackboneConfig
from refinedet_tf.errors import ConfigError
from refinedet_tf.layers import Normalization, Preprocessing

# Fields of `BackboneConfig` that every backbone supports.
_SHARED_FIELDS = ("name", "preprocessing", "frozen_stages", "freeze_batch_norm")

__all__ = [
    "Application",
    "Backbone",
    "PackagedWeights",
    "backbone_of",
    "build_backbone",
    "check_offline",
    "input_form",
    "normalization_of",
    "packaged_weights",
    "without_download",
]


def build_backbone(images: tf.Tensor, config: BackboneConfig) -> list[tf.Tensor]:
    """Adds preprocessing and backbone to a functional graph.

    Args:
        images: a `keras.Input` `[b, h, w, 3]`, RGB in 0..255, sides multiples of 64.
        config: which backbone.

    Returns:
        Feature maps `[b, h / s, w / s, c]` for strides `s` 8, 16, 32, 64.

    Raises:
        ConfigError: the backbone does not use a field that is set, cannot be built, or has fewer stages than
            `frozen_stages`.
    """
    backbone = backbone_of(config.name)
    _check_fields(config, backbone)
    mode = config.preprocessing or backbone.preprocessing
    # A network of KerasCV or KerasHub is built on the graph's own input if nothing is in between.
    x = images if mode == "none" else Preprocessing(mode, name="preprocessing")(images)
    maps = backbone.build(x, config)
    freeze(images, maps, config)
    return maps


def backbone_of(name: str) -> Backbone:
    """Returns the description of a backbone, one of `config.BACKBONES`."""
    return import_module(f"refinedet_tf.backbones.{BACKBONES[name]}").BACKBONE


def normalization_of(config: BackboneConfig) -> Normalization:
    """Returns the batch normalization of the layers on top of a backbone."""
    return backbone_of(config.name).normalization


def input_form(config: BackboneConfig) -> str:
    """Returns the form of input that a backbone sees: one of `config.PREPROCESSING_MODES`, or `KerasCV's own`."""
    backbone = backbone_of(config.name)
    return config.preprocessing or backbone.input_form or backbone.preprocessing


def packaged_weights() -> dict[str, PackagedWeights]:
    """Returns the ImageNet weights that pip can install, by backbone name."""
    modules = dict.fromkeys(BACKBONES.values())
    return {
        name: weights
        for module in modules
        for name, weights in import_module(f"refinedet_tf.backbones.{module}").BACKBONE.packaged_weights.items()
    }


def check_offline(config: BackboneConfig) -> None:
    """Checks that a backbone can be built from a saved model's configuration alone.

    Raises:
        ConfigError: the configuration names a preset, which would be downloaded or read from a folder.
    """
    if not backbone_of(config.name).is_offline(config):
        raise ConfigError(
            f"model.backbone.preset_or_class = {config.preset_or_class!r}: a saved model must name a class and its "
            "arguments, not a preset, which would be downloaded."
        )


def without_download(config: BackboneConfig) -> BackboneConfig:
    """Returns a section that builds the same backbone offline, as a saved model carries it."""
    return backbone_of(config.name).without_download(config)


def _check_fields(config: BackboneConfig, backbone: Backbone) -> None:
    """Refuses settings that a backbone would ignore."""
    defaults = BackboneConfig()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in (*_SHARED_FIELDS, *backbone.fields) and value != getattr(defaults, field.name):
            raise ConfigError(
                f"model.backbone.{field.name} = {value!r}: {config.name} has no such setting; leave it out."
            )
