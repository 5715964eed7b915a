"""Optimizers and learning-rate schedules of the recipes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow import keras

from refinedet_tf.config import TrainConfig
from refinedet_tf.stacks import assign_averages, has_averages, plain_name
from refinedet_tf.training.named_optimizers import NOT_DECAYED, build_named_optimizer, keras_settings

BIAS_RATE_MULTIPLIER = 2.0


@keras.utils.register_keras_serializable("refinedet_tf")
class CaffeSGD(keras.optimizers.SGD):
    """The original's SGD with momentum: biases learn at twice the rate and are not decayed.

    `g = gradient + weight_decay * w`, `v = momentum * v + rate * g`, `w = w - v`; for biases `g = 2 * gradient`. The
    decay is the gradient of an L2 penalty and so passes through the momentum, unlike Keras's own `weight_decay`.
    """

    def __init__(self, learning_rate: Any = 1e-3, momentum: float = 0.9, l2_decay: float = 5e-4, **kwargs: Any):
        """Takes the arguments of `keras.optimizers.SGD`, and `l2_decay`, the coefficient of the decay."""
        super().__init__(learning_rate=learning_rate, momentum=momentum, **kwargs)
        self.l2_decay = l2_decay

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, *rate: Any) -> None:
        """Updates one variable; Keras 3 passes the rate too."""
        if plain_name(variable.name).split("/")[-1] == "bias":
            gradient = gradient * tf.cast(BIAS_RATE_MULTIPLIER, gradient.dtype)
        else:
            gradient = gradient + tf.cast(self.l2_decay, gradient.dtype) * tf.convert_to_tensor(variable)
        super().update_step(gradient, variable, *rate)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "l2_decay": self.l2_decay}


@keras.utils.register_keras_serializable("refinedet_tf")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Scales the first steps of another schedule with a factor that rises linearly to 1."""

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule, steps: int):
        """Multiplies the schedule's rate at step `s < steps` by `(s + 1) / steps`."""
        self.schedule = schedule
        self.steps = steps

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the rate at a step."""
        rate = self.schedule(step)
        return rate * tf.cast(tf.minimum((tf.cast(step, tf.float32) + 1.0) / self.steps, 1.0), rate.dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {"schedule": self.schedule, "steps": self.steps}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "WarmUp":
        """Inverts `get_config`, also after a trip through JSON."""
        return cls(keras.utils.deserialize_keras_object(config["schedule"]), config["steps"])


def build_schedule(config: TrainConfig, steps_per_epoch: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Builds the learning-rate schedule of a recipe, a function of the step."""
    if config.schedule == "cosine":
        schedule = keras.optimizers.schedules.CosineDecay(config.learning_rate, config.epochs * steps_per_epoch)
    else:
        # Keras needs a boundary; one at the end of training changes nothing.
        epochs = config.decay_epochs or [config.epochs]
        # In Keras a boundary belongs to the steps before it, hence the -1.
        boundaries = [epoch * steps_per_epoch - 1 for epoch in epochs]
        rates = [config.learning_rate * config.decay_rate**power for power in range(len(boundaries) + 1)]
        schedule = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates)
    return WarmUp(schedule, config.warmup_steps) if config.warmup_steps else schedule


def build_optimizer(
    config: TrainConfig, steps_per_epoch: int, model: keras.Model | None = None
) -> keras.optimizers.Optimizer:
    """Builds the optimizer of a recipe with its schedule.

    Args:
        config: the `train` section.
        steps_per_epoch: batches of an epoch.
        model: the model to train; only `tfa:MultiOptimizer` needs it.

    Raises:
        ConfigError: a named optimizer cannot be built, or this version of Keras cannot do what is asked for.
    """
    rate = build_schedule(config, steps_per_epoch)
    if isinstance(config.optimizer, dict):
        return build_named_optimizer(config.optimizer, rate, config, model)
    settings = keras_settings(config)
    if config.optimizer == "sgd":
        return CaffeSGD(rate, momentum=config.momentum, l2_decay=config.weight_decay, **settings)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=config.weight_decay, **settings)
    optimizer.exclude_from_weight_decay(var_names=NOT_DECAYED)
    return optimizer


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Puts averages in place of the weights inside, if the model's optimizer keeps them."""
    if not has_averages(model.optimizer):
        yield
        return
    weights = [tf.convert_to_tensor(variable).numpy() for variable in model.trainable_variables]
    assign_averages(model.optimizer, model.trainable_variables)
    try:
        yield
    finally:
        for variable, value in zip(model.trainable_variables, weights, strict=True):
            variable.assign(value)
