"""Any backbone of KerasCV that has pyramid levels, with one more level on top."""

import dataclasses
from types import ModuleType
from typing import Any

import tensorflow as tf
from tensorflow import keras

from refinedet_tf.backbones.definition import Backbone
from refinedet_tf.backbones.extra_level import extra_level
from refinedet_tf.backbones.library_models import KEY, name_for_good
from refinedet_tf.config import BackboneConfig
from refinedet_tf.errors import ConfigError, did_you_mean
from refinedet_tf.stacks import plain

LEVELS = ("P3", "P4", "P5")


def build(x: tf.Tensor, config: BackboneConfig) -> list[tf.Tensor]:
    """Adds the network to a functional graph; layers carry KerasCV's names.

    A preset brings its weights; networks built from a class start from random weights.

    Args:
        x: `[b, h, w, 3]`; RGB in 0..255 unless the recipe sets `preprocessing`, which takes the place of the network's
            own rescaling.
        config: `preset_or_class` and `arguments`.

    Returns:
        KerasCV's levels P3, P4, P5 and a fourth of 512 channels.

    Raises:
        ConfigError: KerasCV has no such backbone, it cannot be built or downloaded, or it lacks one of the levels.
    """
    arguments = {} if config.preprocessing is None else {"include_rescaling": False}
    network = _network(config, {**arguments, "input_tensor": x})
    try:
        levels = network.pyramid_level_inputs
    except NotImplementedError:  # from vision transformers
        levels = {}
    missing = [level for level in LEVELS if level not in levels]
    if missing:
        raise ConfigError(
            f"{KEY} = {config.preset_or_class!r}: has the levels {', '.join(levels) or '(none)'}, "
            f"not {', '.join(missing)}."
        )
    maps = [network.get_layer(levels[level]).output for level in LEVELS]
    name_for_good(network)
    return [*maps, extra_level(maps[-1])]


def without_download(config: BackboneConfig) -> BackboneConfig:
    """Returns the same architecture as a class and its arguments, instead of a preset's name.

    Many classes of KerasCV, such as ResNet50V2Backbone, stand for presets too.

    Raises:
        ConfigError: as `build`.
    """
    if config.arguments:
        return config
    network = _network(config, {}, load_weights=False)
    arguments = {
        key: plain(value)
        for key, value in network.get_config().items()
        if key not in ("name", "trainable", "input_shape", "input_tensor")
    }
    return dataclasses.replace(config, preset_or_class=type(network).__name__, arguments=arguments)


def _is_offline(config: BackboneConfig) -> bool:
    """Returns whether the configuration names a class that stands for no preset."""
    import keras_cv

    backbone = _backbone_classes(keras_cv.models).get(config.preset_or_class)
    # ResNet50V2Backbone and the like override __new__ to return a preset.
    return bool(config.arguments) and backbone is not None and "__new__" not in vars(backbone)


def _network(config: BackboneConfig, arguments: dict[str, Any], load_weights: bool | None = None) -> keras.Model:
    import keras_cv  # takes a second or two to import, which other backbones need not pay

    name = config.preset_or_class
    if not name:
        raise ConfigError(f"{KEY} = {name!r}: name a backbone class of keras_cv.models, a preset or a preset's folder.")
    classes = _backbone_classes(keras_cv.models)
    try:
        if name in classes:
            return classes[name](**{"include_rescaling": True, **config.arguments, **arguments})
        for backbone in classes.values():
            if name in backbone.presets:
                return backbone.from_preset(name, load_weights=load_weights, **arguments)
        if tf.io.gfile.isdir(name):
            return keras_cv.models.Backbone.from_preset(name, load_weights=load_weights, **arguments)
    except Exception as error:  # KerasCV's constructors and downloads raise many kinds of errors
        # ResNet50V2Backbone and the like are presets too, which KerasCV downloads.
        advice = "" if config.arguments else " (a preset is downloaded; a class with arguments is not)"
        raise ConfigError(f"{KEY} = {name!r}: KerasCV cannot build it{advice}: {error}") from error
    presets = {preset for backbone in classes.values() for preset in backbone.presets}
    hint = did_you_mean(name, [*classes, *presets])
    raise ConfigError(
        f"{KEY} = {name!r}: KerasCV has no such class, preset or folder{hint}; its classes are {', '.join(classes)}."
    )


def _backbone_classes(models: ModuleType) -> dict[str, type]:
    """Returns the backbones of keras_cv.models by name."""
    return {name: value for name, value in vars(models).items() if name.endswith("Backbone") and name != "Backbone"}


# KerasCV's networks take RGB in 0..255 and rescale it in their first layer.
BACKBONE = Backbone(
    build,
    "none",
    input_form="KerasCV's own",
    fields=("preset_or_class", "arguments"),
    is_offline=_is_offline,
    without_download=without_download,
)
