"""What differs between the two stacks: TensorFlow 2.15 with Keras 2, and TensorFlow 2.16 to 2.21 with Keras 3.

All other modules are written against the API that both share. Each function here gives its reason.
"""

import importlib
import importlib.metadata
import inspect
import platform
from types import ModuleType
from typing import Any

import tensorflow as tf
from tensorflow import keras

# TensorFlow 2.15 hands on the API of Keras 2 without its version.
KERAS_VERSION = getattr(keras, "__version__", None) or importlib.metadata.version("keras")
KERAS_MAJOR = int(KERAS_VERSION.split(".")[0])
# From Keras 3.1 on.
CAN_ACCUMULATE = "gradient_accumulation_steps" in inspect.signature(keras.optimizers.SGD.__init__).parameters


class Untracked:
    """Holds a value that Keras does not look into.

    Keras 2 counts the variables of metrics that a model holds among the model's weights.
    """

    def __init__(self, value: Any):
        """Holds `value`."""
        self.value = value


class RunningMean(keras.metrics.Mean):
    """A mean that is no part of a saved model.

    Keras 2 saves the metrics of a model and expects them in its files, where Keras 3 does not put them.
    """

    if KERAS_MAJOR == 2:

        def save_own_variables(self, store: Any) -> None:
            """Saves nothing."""

        def load_own_variables(self, store: Any) -> None:
            """Keeps the value."""


def same_stack(keras_version: str) -> bool:
    """Returns whether a version of Keras belongs to this stack. The variables of optimizers differ between the two."""
    return int(keras_version.split(".")[0]) == KERAS_MAJOR


def plain_name(name: str) -> str:
    """Returns the name of a variable as Keras 3 writes it.

    Keras 2 appends the number of an output, and names the kernel of a depthwise convolution differently:
    `conv_dw_1/depthwise_kernel:0` is `conv_dw_1/kernel` in Keras 3.
    """
    return name.removesuffix(":0").replace("/depthwise_kernel", "/kernel")


def layer_name(layer: keras.layers.Layer) -> str:
    """Returns the name of a layer as Keras 3 writes it.

    `keras.applications` of Keras 2 has slashes in some names: `expanded_conv_3/depthwise/pad`.
    """
    return layer.name.replace("/", "_")


def rename(layer: keras.layers.Layer, name: str) -> None:
    """Gives a layer another name, which Keras 3 keeps in `name` and Keras 2 in `_name`."""
    setattr(layer, "name" if "name" in vars(layer) else "_name", name)


def plain(value: Any) -> Any:
    """Returns a value without the wrappers that Keras 2 puts around the lists of a model."""
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def minimize(
    optimizer: keras.optimizers.Optimizer, loss: tf.Tensor, variables: list[tf.Variable], tape: tf.GradientTape
) -> None:
    """Performs one step of an optimizer, with the loss scaled if the optimizer does that (mixed_float16).

    Keras 2 scales the loss in `minimize`, which Keras 3 does not have. With several replicas the loss is that of one,
    divided by their number.
    """
    if KERAS_MAJOR == 2:
        optimizer.minimize(loss, variables, tape=tape)
        return
    with tape:
        loss = optimizer.scale_loss(loss)
    gradients = _shared_gradients(optimizer, tape.gradient(loss, variables))
    optimizer.apply_gradients(zip(gradients, variables, strict=True))


def _shared_gradients(optimizer: keras.optimizers.Optimizer, gradients: list) -> list:
    """Gives all replicas the same gradients where the optimizer needs that.

    Keras 3 adds up the gradients of the replicas last: it clips each replica's own, and a loss scale goes by those of
    the first. So both are done here with the sum, and each replica then gets its part of it.
    """
    replica = tf.distribute.get_replica_context()
    inner = _inner(optimizer)
    if replica is None or replica.num_replicas_in_sync == 1 or (inner is optimizer and inner.global_clipnorm is None):
        return gradients
    known = [index for index, gradient in enumerate(gradients) if gradient is not None]
    shares = replica.all_reduce(tf.distribute.ReduceOp.MEAN, [gradients[index] for index in known])
    if inner.global_clipnorm is not None:
        scale = 1.0 if inner is optimizer else tf.convert_to_tensor(optimizer.dynamic_scale)
        shares, _ = tf.clip_by_global_norm(shares, scale * inner.global_clipnorm / replica.num_replicas_in_sync)
    return [dict(zip(known, shares, strict=True)).get(index) for index in range(len(gradients))]


def step_results(values: dict[str, tf.Tensor], num_workers: int) -> dict[str, tf.Tensor]:
    """Returns scalars, which all workers have alike, as Keras takes them from a training or test step.

    Keras 3 averages them over the workers and over their first axis, so they get one of length 1. Keras 2 adds them up.
    """
    if num_workers == 1:
        return values
    if KERAS_MAJOR == 2:
        return {name: value / num_workers for name, value in values.items()}
    return {name: value[tf.newaxis] for name, value in values.items()}


def tf_variable(variable: Any) -> tf.Variable:
    """Returns TensorFlow's variable, which those of Keras 3 hold; in Keras 2 they are variables of TensorFlow."""
    return variable.value if KERAS_MAJOR > 2 and isinstance(variable, keras.Variable) else variable


def synchronize_batch_norm(model: keras.Model) -> None:
    """Makes batch normalization take its statistics over all replicas, in training steps that are not yet traced.

    Keras 2 has to leave its fused kernel, which knows one device only.
    """
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True
            if KERAS_MAJOR == 2:
                layer.fused = False


def import_addons() -> ModuleType:
    """Returns `tensorflow_addons.optimizers`.

    The package was written for Keras 2, and its last release has wheels up to Python 3.11. With Keras 3 it is not
    tried, since its imports then fail in ways that explain nothing.

    Raises:
        ImportError: the message says why the package cannot be used here and how to get it.
    """
    if KERAS_MAJOR > 2:
        raise ImportError(
            "The package ended with Keras 2: it runs with TensorFlow 2.15 on Python 3.10 and 3.11, and this is "
            f"TensorFlow {tf.__version__} on Python {platform.python_version()}. It takes an environment of its own "
            "with Python 3.10 or 3.11: pip install 'refinedet-tf[addons]'."
        )
    try:
        return importlib.import_module("tensorflow_addons.optimizers")
    except ImportError as error:
        raise ImportError("Install it with Python 3.10 or 3.11: pip install 'refinedet-tf[addons]'.") from error


def legacy_optimizers() -> ModuleType | None:
    """Returns the optimizers of the kind that TensorFlow Addons builds on. Keras 3 has none."""
    return keras.optimizers.legacy if KERAS_MAJOR == 2 else None


def is_legacy(optimizer: Any) -> bool:
    """Returns whether an optimizer, or a class of optimizers, is of the kind that TensorFlow Addons builds on."""
    kind = optimizer if inspect.isclass(optimizer) else type(optimizer)
    return KERAS_MAJOR == 2 and issubclass(kind, keras.optimizers.legacy.Optimizer)


def create_optimizer_variables(optimizer: keras.optimizers.Optimizer, variables: list[tf.Variable]) -> None:
    """Creates all variables of an optimizer, unless it has them; otherwise they come with its first step.

    Keras 3's optimizer that scales a mixed_float16 loss forgets its scale when it is built again. Legacy optimizers
    have no `build`. A `MultiOptimizer` of TensorFlow Addons has its variables in other optimizers, which know the
    variables that they train by name.
    """
    if not is_legacy(optimizer):
        if not getattr(optimizer, "built", False):
            optimizer.build(variables)
        return
    _ = optimizer.iterations  # created when it is read
    for part, names in _parts(optimizer):
        part._create_all_weights([one for one in variables if names is None or one.name in names])


def optimizer_variables(optimizer: keras.optimizers.Optimizer) -> list[tf.Variable]:
    """Returns all variables of an optimizer: momenta, moving averages, accumulated gradients, scale of the loss.

    Keras 2 does not count the scale of a mixed_float16 loss among the optimizer's variables, nor does a legacy
    optimizer always count its iterations.
    """
    if is_legacy(optimizer):
        variables = [optimizer.iterations]
        for part, _ in _parts(optimizer):
            variables += [part.iterations, *part.weights]
        return variables
    scale = getattr(getattr(optimizer, "_loss_scale", None), "_weights", {})
    return [*optimizer.variables, *scale.values()]


def has_averages(optimizer: keras.optimizers.Optimizer) -> bool:
    """Returns whether an optimizer keeps averages of the weights, as those of TensorFlow Addons do in their own way.

    In Keras 3 the optimizer that scales a mixed_float16 loss does not say so of the one inside it.
    """
    inner = _inner(optimizer)
    return hasattr(inner, "assign_average_vars") or bool(getattr(inner, "use_ema", False))


def _inner(optimizer: Any) -> Any:
    """Returns the optimizer inside Keras 3's that scales a mixed_float16 loss, or any other optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def assign_averages(optimizer: keras.optimizers.Optimizer, variables: list[tf.Variable]) -> None:
    """Sets weights to their averages, if the optimizer keeps them."""
    if hasattr(optimizer, "assign_average_vars"):
        optimizer.assign_average_vars(variables)
    elif has_averages(optimizer):
        optimizer.finalize_variable_values(variables)


def _parts(optimizer: Any) -> list[tuple[Any, list[str] | None]]:
    """Returns the optimizers of a MultiOptimizer with the names of their weights, or the optimizer itself."""
    specs = getattr(optimizer, "optimizer_specs", None)
    return [(optimizer, None)] if specs is None else [(spec["optimizer"], spec["weights"]) for spec in specs]
