"""Any image backbone of KerasHub, with one more level on top. Needs Keras 3 and the extra `keras-hub`."""

import dataclasses
import inspect
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow import keras

from refinedet_tf.backbones.definition import Backbone
from refinedet_tf.backbones.extra_level import extra_level
from refinedet_tf.backbones.library_models import KEY, name_for_good
from refinedet_tf.config import BackboneConfig
from refinedet_tf.errors import ConfigError, did_you_mean
from refinedet_tf.layers import IMAGENET_DEVIATION, IMAGENET_MEAN, Preprocessing
from refinedet_tf.stacks import plain

STRIDES = (8, 16, 32)

# Input of a network that is built from its class and so has no weights that expect any.
_DEFAULT_MODE = "tf"

# The modes of `Preprocessing` that keep RGB, as scale and offset of pixels in 0..255.
_MODES = {
    "none": (np.ones(3), np.zeros(3)),
    "tf": (np.full(3, 1 / 127.5), np.full(3, -1.0)),
    "lite": (np.full(3, 1 / 128), np.full(3, -127 / 128)),
    "torch": (1 / (255 * np.array(IMAGENET_DEVIATION)), -np.array(IMAGENET_MEAN) / np.array(IMAGENET_DEVIATION)),
}
# Settings that belong to a graph and not to the architecture.
_OF_THE_GRAPH = ("name", "trainable", "dtype", "image_shape", "input_shape", "data_format")


def build(x: tf.Tensor, config: BackboneConfig) -> list[tf.Tensor]:
    """Adds the network to a functional graph; layers carry KerasHub's names.

    A preset brings its weights and its preprocessing. Networks built from a class start from random weights and take
    RGB in -1..1.

    Args:
        x: `[b, h, w, 3]`; RGB in 0..255 unless the recipe sets `preprocessing`, which takes the place of the preset's.
        config: `preset_or_class` and `arguments`.

    Returns:
        KerasHub's pyramid outputs at strides 8, 16 and 32, and a fourth map of 512 channels.

    Raises:
        ConfigError: KerasHub is not installed or has no such backbone, or the backbone cannot be built or downloaded or
            lacks a map at one of the strides.
    """
    network = _network(config, x.shape[1:])
    if config.preprocessing is None:
        x = Preprocessing(_own_mode(config), name="preprocessing")(x)
    # Calling the graph's function, not the model, adds its layers to our graph one by one.
    maps = keras.Model(network.inputs, _levels(network, config)).call([x])
    name_for_good(network)
    return [*maps, extra_level(maps[-1])]


def without_download(config: BackboneConfig) -> BackboneConfig:
    """Returns the same architecture as a class and its arguments, and the preprocessing by its name.

    Raises:
        ConfigError: as `build`.
    """
    mode = config.preprocessing or _own_mode(config)
    if config.arguments:
        return dataclasses.replace(config, preprocessing=mode)
    network = _network(config, (None, None, 3), load_weights=False)
    return dataclasses.replace(
        config, preset_or_class=type(network).__name__, arguments=_architecture(network), preprocessing=mode
    )


def _is_offline(config: BackboneConfig) -> bool:
    return bool(config.arguments) and config.preset_or_class in _backbone_classes(_keras_hub())


def _keras_hub() -> ModuleType:
    try:
        import keras_hub
    except ImportError as error:
        raise ConfigError(
            "model.backbone.name = 'keras_hub': KerasHub cannot be imported; install it with pip install "
            f"'refinedet-tf[keras-hub]' beside TensorFlow 2.16 or later: {error}"
        ) from error
    return keras_hub


def _network(config: BackboneConfig, image_shape: Sequence[int | None], load_weights: bool = True) -> keras.Model:
    keras_hub = _keras_hub()
    name, classes = config.preset_or_class, _backbone_classes(keras_hub)
    if not name:
        raise ConfigError(
            f"{KEY} = {name!r}: name a backbone class of keras_hub.models, a preset or a preset's folder."
        )
    try:
        if name in classes:
            return classes[name](**config.arguments, **_shape_argument(classes[name], image_shape))
        presets = {preset: backbone for backbone in classes.values() for preset in backbone.presets}
        if name in presets or tf.io.gfile.isdir(name) or "://" in name:
            backbone = presets.get(name, keras_hub.models.Backbone)
            network = backbone.from_preset(name, load_weights=load_weights)
            shaped = type(network)(**_architecture(network), **_shape_argument(type(network), image_shape))
            shaped.set_weights(network.get_weights())
            return shaped
    except ConfigError:
        raise
    except Exception as error:  # KerasHub's constructors and downloads raise many kinds of errors
        advice = "" if config.arguments else " (a preset is downloaded; a class with arguments is not)"
        raise ConfigError(f"{KEY} = {name!r}: KerasHub cannot build it{advice}: {error}") from error
    hint = did_you_mean(name, [*classes, *presets])
    raise ConfigError(
        f"{KEY} = {name!r}: KerasHub has no such class, preset or folder{hint}; its classes are {', '.join(classes)}."
    )


def _architecture(network: keras.Model) -> dict[str, Any]:
    return {key: plain(value) for key, value in network.get_config().items() if key not in _OF_THE_GRAPH}


def _shape_argument(backbone: type, image_shape: Sequence[int | None]) -> dict[str, tuple]:
    parameters = inspect.signature(backbone.__init__).parameters
    return {"image_shape" if "image_shape" in parameters else "input_shape": tuple(image_shape)}


def _backbone_classes(keras_hub: ModuleType) -> dict[str, type]:
    """Returns the image backbones of keras_hub.models by name."""
    classes = {name: value for name, value in vars(keras_hub.models).items() if name.endswith("Backbone")}
    return {
        name: value
        for name, value in classes.items()
        if not {"image_shape", "input_shape"}.isdisjoint(inspect.signature(value.__init__).parameters)
    }


def _levels(network: keras.Model, config: BackboneConfig) -> list[tf.Tensor]:
    """Returns the maps at strides 8, 16 and 32.

    Strides decide, not KerasHub's names: the P3 of its CSP-Darknet has stride 4. MobileNetBackbone names no levels, so
    that the last map at each stride is taken.
    """
    outputs = list(getattr(network, "pyramid_outputs", {}).values()) or [layer.output for layer in network.layers]
    side = network.inputs[0].shape[1]
    by_stride = {side / x.shape[1]: x for x in outputs if len(getattr(x, "shape", ())) == 4}
    missing = [str(stride) for stride in STRIDES if stride not in by_stride]
    if missing:
        raise ConfigError(f"{KEY} = {config.preset_or_class!r}: has no maps at stride {', '.join(missing)}.")
    return [by_stride[stride] for stride in STRIDES]


def _own_mode(config: BackboneConfig) -> str:
    """Returns the `Preprocessing` mode that a preset's weights expect."""
    keras_hub = _keras_hub()
    name = config.preset_or_class
    if name in _backbone_classes(keras_hub):
        return _DEFAULT_MODE
    try:
        converter = keras_hub.layers.ImageConverter.from_preset(name)
    except Exception as error:  # as in `_network`
        raise ConfigError(
            f"{KEY} = {name!r}: the preset's preprocessing cannot be read; set model.backbone.preprocessing: {error}"
        ) from error
    scale = np.broadcast_to(1.0 if converter.scale is None else converter.scale, 3)
    offset = np.broadcast_to(0.0 if converter.offset is None else converter.offset, 3)
    for mode, (known_scale, known_offset) in _MODES.items():
        if np.allclose(scale, known_scale, rtol=1e-3, atol=0) and np.allclose(offset, known_offset, rtol=1e-3, atol=0):
            return mode
    raise ConfigError(
        f"{KEY} = {name!r}: its preset scales pixels by {scale.tolist()} and adds {offset.tolist()}, which is none of "
        f"the modes {', '.join(_MODES)}; set model.backbone.preprocessing."
    )


# The preprocessing is part of `build`, since it depends on the preset.
BACKBONE = Backbone(
    build,
    "none",
    fields=("preset_or_class", "arguments"),
    is_offline=_is_offline,
    without_download=without_download,
)
