"""Optimizers by name: those of `keras.optimizers`, and those of TensorFlow Addons with the prefix `tfa:`."""

import inspect
from types import ModuleType
from typing import Any

import tensorflow as tf
from tensorflow import keras

from refinedet_tf.config import TrainConfig
from refinedet_tf.errors import ConfigError, did_you_mean
from refinedet_tf.stacks import CAN_ACCUMULATE, KERAS_VERSION, import_addons, is_legacy, legacy_optimizers
from refinedet_tf.weights.assignment import is_detector_layer

ADDONS = "tfa:"
NOT_DECAYED = ["bias", "beta", "gamma", "scale"]
# What serves instead of each optimizer of Addons.
NEAREST = {
    "SGDW": "SGD with the argument weight_decay",
    "AdamW": "AdamW",
    "LAMB": "Lamb (Keras 3)",
    "LazyAdam": "Adam",
    "NovoGrad": "AdamW",
    "RectifiedAdam": "Adam with train.warmup_steps",
    "Yogi": "Adam with the argument amsgrad",
    "Lookahead": "any with the argument use_ema",
    "MovingAverage": "any with the argument use_ema",
    "SWA": "any with the argument use_ema",
    "MultiOptimizer": "any, with model.backbone.frozen_stages",
}


@keras.utils.register_keras_serializable("refinedet_tf")
class ScaledRate(keras.optimizers.schedules.LearningRateSchedule):
    """A multiple of another schedule's rate."""

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule, factor: float):
        """Multiplies by `factor`."""
        self.schedule = schedule
        self.factor = factor

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the rate at a step."""
        return self.schedule(step) * self.factor

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {"schedule": self.schedule, "factor": self.factor}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ScaledRate":
        """Inverts `get_config`, also after a trip through JSON."""
        return cls(keras.utils.deserialize_keras_object(config["schedule"]), config["factor"])


def keras_settings(config: TrainConfig) -> dict[str, Any]:
    """Returns the settings that all optimizers of Keras share: clipping, moving averages, accumulation.

    Raises:
        ConfigError: this version of Keras has no accumulation.
    """
    settings = {"global_clipnorm": config.clip_norm or None}
    if config.ema_momentum:
        settings |= {"use_ema": True, "ema_momentum": config.ema_momentum}
    if config.accumulation_steps > 1:
        if not CAN_ACCUMULATE:
            raise ConfigError(
                f"train.accumulation_steps = {config.accumulation_steps}: Keras {KERAS_VERSION} cannot accumulate "
                "gradients; Keras 3 can. Use 1 and a smaller train.batch_size and train.learning_rate, or more GPUs."
            )
        settings["gradient_accumulation_steps"] = config.accumulation_steps
    return settings


def build_named_optimizer(spec: dict[str, Any], rate: Any, config: TrainConfig, model: keras.Model) -> Any:
    """Builds an optimizer that a recipe names.

    It gets the recipe's schedule, `clip_norm` and, if it has a setting for it, `weight_decay`; biases and normalization
    are not decayed where the optimizer can leave variables out. Arguments in the recipe come first.

    Args:
        spec: `name`, and `arguments` of the constructor. An argument that is such a mapping itself is an optimizer
            around which this one is built. `tfa:MultiOptimizer` takes two of them, `backbone` and `detector`. With
            `rate_factor` an optimizer gets a multiple of the schedule's rate.
        rate: the learning rate or its schedule.
        config: the `train` section.
        model: whose variables will be optimized.

    Raises:
        ConfigError: there is no such optimizer, its arguments do not fit, or its package is missing.
    """
    name = spec["name"]
    if name == f"{ADDONS}MultiOptimizer":
        return _multi_optimizer(spec, rate, config, model)
    kind = _find(name, legacy=False)
    return _build(kind, spec, rate, config)


def _build(kind: type, spec: dict[str, Any], rate: Any, config: TrainConfig, *, wrapped: bool = False) -> Any:
    """Builds an optimizer, and those that it is built around."""
    legacy = is_legacy(kind)
    given = spec.get("arguments", {})
    inner = {
        key: _build(_find(value["name"], legacy=legacy), value, rate, config, wrapped=True)
        for key, value in given.items()
        if _is_spec(value)
    }
    settings = {}
    if not wrapped:  # gradients are clipped by the outermost optimizer
        settings = {"global_clipnorm": config.clip_norm or None} if legacy else keras_settings(config)
    if not inner:  # the rate and the decay belong to the innermost
        parameters = _parameters(kind)
        factor = spec.get("rate_factor", 1.0)
        settings["learning_rate"] = rate if factor == 1.0 else ScaledRate(rate, factor)
        if "weight_decay" in parameters:
            settings["weight_decay"] = config.weight_decay
        if "exclude_from_weight_decay" in parameters:
            settings["exclude_from_weight_decay"] = NOT_DECAYED
    settings = {key: value for key, value in settings.items() if value is not None}
    try:
        optimizer = kind(**{**settings, **given, **inner})
        if not legacy:
            optimizer.exclude_from_weight_decay(var_names=NOT_DECAYED)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"train.optimizer: {spec['name']} cannot be built: {error}") from error
    return optimizer


def _parameters(kind: type) -> set[str]:
    """The names that a class's constructor takes, also those that it passes on to its bases."""
    inits = [base.__init__ for base in kind.__mro__ if "__init__" in vars(base)]
    return {name for init in inits for name in inspect.signature(init).parameters}


def _multi_optimizer(spec: dict[str, Any], rate: Any, config: TrainConfig, model: keras.Model) -> Any:
    """An optimizer for the backbone and one for the rest."""
    kind = _find(spec["name"], legacy=True)
    parts = spec.get("arguments", {})
    if parts.keys() != {"backbone", "detector"} or not all(map(_is_spec, parts.values())):
        raise ConfigError(
            "train.optimizer: tfa:MultiOptimizer takes two optimizers as arguments, backbone and detector."
        )
    layers = {"backbone": [], "detector": []}
    for layer in model.layers:
        if layer.trainable_variables:
            layers["detector" if is_detector_layer(layer.name) else "backbone"].append(layer)
    return kind(
        [
            (_build(_find(part["name"], legacy=True), part, rate, config), layers[key])
            for key, part in parts.items()
            if layers[key]
        ]
    )


def _is_spec(value: Any) -> bool:
    return isinstance(value, dict) and "name" in value


def _find(name: str, *, legacy: bool) -> type:
    """The class of a name; of Keras's own, those that Addons can wrap if `legacy`.

    Raises:
        ConfigError: there is none, or TensorFlow Addons cannot be imported.
    """
    if name.startswith(ADDONS):
        module, base = _addons(name), object
        name = name.removeprefix(ADDONS)
    else:
        module = legacy_optimizers() if legacy else keras.optimizers
        base = module.Optimizer
    known = [key for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, base)]
    if name not in known:
        raise ConfigError(f"train.optimizer: there is no optimizer {name!r}{did_you_mean(name, known)}.")
    return getattr(module, name)


def _addons(name: str) -> ModuleType:
    try:
        return import_addons()
    except ImportError as error:
        nearest = NEAREST.get(name.removeprefix(ADDONS), "AdamW")
        raise ConfigError(
            f"train.optimizer: {name} needs TensorFlow Addons. {error} The nearest optimizer of Keras: {nearest}."
        ) from error
