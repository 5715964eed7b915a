"""The variables of an optimizer, and the averaged weights that some keep: where Keras 2, Keras 3 and Addons differ."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf
from tensorflow import keras


def create_state(optimizer: keras.optimizers.Optimizer, variables: list[tf.Variable]) -> None:
    """Makes all variables of an optimizer, which otherwise come with its first step."""
    if _is_legacy(optimizer):
        for part in _parts(optimizer, variables):
            part[0]._create_all_weights(part[1])
    else:
        optimizer.build(variables)


def state_variables(optimizer: keras.optimizers.Optimizer) -> list[tf.Variable]:
    """Returns all variables of an optimizer: momenta, moving averages, accumulated gradients, scale of the loss."""
    if _is_legacy(optimizer):  # those of Addons
        return [variable for part, _ in _parts(optimizer, []) for variable in [part.iterations, *part.weights]]
    # Keras 2 does not count the scale of a mixed_float16 loss among the optimizer's variables.
    scale = getattr(getattr(optimizer, "_loss_scale", None), "_weights", {})
    return [*optimizer.variables, *scale.values()]


def has_averages(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether an optimizer keeps averages of the weights."""
    return bool(getattr(optimizer, "use_ema", False)) or hasattr(optimizer, "assign_average_vars")


def assign_averages(optimizer: keras.optimizers.Optimizer, variables: list[tf.Variable]) -> None:
    """Sets weights to their averages, if the optimizer keeps them."""
    if hasattr(optimizer, "assign_average_vars"):
        optimizer.assign_average_vars(variables)
    elif has_averages(optimizer):
        optimizer.finalize_variable_values(variables)


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


def _is_legacy(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether it is of the kind that Addons builds on, which only Keras 2 has."""
    return hasattr(optimizer, "_create_all_weights")


def _parts(optimizer: keras.optimizers.Optimizer, variables: list) -> list[tuple]:
    """The optimizers with their variables that an optimizer consists of: itself, or those of a MultiOptimizer."""
    specs = getattr(optimizer, "optimizer_specs", None)
    return [(optimizer, variables)] if specs is None else [(spec["optimizer"], spec["weights"]) for spec in specs]
