"""Training steps in half precision, beside the same steps in float32."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from refinedet_tf.losses import COUNT_NAMES, LOSS_NAMES
from refinedet_tf.model import RefineDet

# How far losses may be from those in float32: the unit roundoff, 2**-11 and 2**-8, times the depth of the tiny network,
# about 30 rounded layers whose errors add up at worst.
LOSSES = {"mixed_float16": 30 * 2.0**-11, "mixed_bfloat16": 30 * 2.0**-8}
# And a step: rounded on the way back too, and where a ReLU is on in one precision and off in the other, a gradient is
# missing. A step in another direction would be off by more than 1, one whose loss is still scaled by 2**15.
STEP = {"mixed_float16": 0.2, "mixed_bfloat16": 0.5}
STEPS = 2


def build(tiny_config, tiny_model, precision, optimizer):
    """A copy of the tiny model, with the statistics of its batch normalization kept: of tiny maps they are unstable."""
    model = RefineDet(tiny_config, dtype=precision)
    model.set_weights(tiny_model.get_weights())
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    model.compile(optimizer, run_eagerly=True)
    return model


def train(model, images, targets):
    """The losses of some steps on one batch, and what the first step changed in every weight."""
    losses, change = [], None
    before = [variable.numpy() for variable in model.trainable_variables]
    for _ in range(STEPS):
        model.reset_metrics()
        losses.append(model.train_on_batch(images, targets, return_dict=True))
        if change is None:
            after = model.trainable_variables
            change = [b.numpy() - a for a, b in zip(before, after, strict=True)]
    return losses, change


@pytest.fixture(scope="module")
def in_float32(tiny_config, tiny_model, tiny_images):
    """Trains in float32 once, however often it is called."""
    results = []

    def trained(targets):
        if not results:
            model = build(tiny_config, tiny_model, "float32", keras.optimizers.SGD(1e-3))
            results.append(train(model, tiny_images, targets))
        return results[0]

    return trained


@pytest.mark.parametrize("precision", LOSSES)
def test_steps_in_half_precision_follow_those_in_float32(
    precision, in_float32, tiny_config, tiny_model, tiny_images, targets
):
    expected, wanted = in_float32(targets)
    model = build(tiny_config, tiny_model, precision, keras.optimizers.SGD(1e-3))
    is_scaled = isinstance(model.optimizer, keras.mixed_precision.LossScaleOptimizer)
    assert is_scaled == (precision == "mixed_float16")
    assert model.get_layer("P3_relu").compute_dtype == precision.removeprefix("mixed_")
    losses, change = train(model, tiny_images, targets)
    for found, other in zip(losses, expected, strict=True):
        assert np.isfinite(list(found.values())).all()
        for name in ("loss", *LOSS_NAMES):
            np.testing.assert_allclose(found[name], other[name], rtol=LOSSES[precision], err_msg=name)
    assert losses[0]["arm_positives"] == expected[0]["arm_positives"] and set(COUNT_NAMES) <= losses[0].keys()
    assert losses[-1]["loss"] < losses[0]["loss"]
    # The same weights move as in float32, by nearly the same step, and are float32 themselves.
    assert all(variable.dtype == "float32" for variable in model.trainable_variables)
    assert [np.any(moved) for moved in change] == [np.any(moved) for moved in wanted]
    found, other = (np.concatenate([moved.ravel() for moved in moves]) for moves in (change, wanted))
    assert np.linalg.norm(found - other) < STEP[precision] * np.linalg.norm(other)


def test_a_loss_scale_too_large_is_halved_until_gradients_are_finite(tiny_config, tiny_model, tiny_images, targets):
    optimizer = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.SGD(1e-3), initial_scale=2.0**17)
    model = build(tiny_config, tiny_model, "mixed_float16", optimizer)
    before = [variable.numpy() for variable in model.trainable_variables]
    scales, moved = [], []
    for _ in range(4):
        model.train_on_batch(tiny_images, targets)
        scale = optimizer.dynamic_scale if hasattr(optimizer, "dynamic_scale") else optimizer.loss_scale  # Keras 3, 2
        scales.append(float(tf.convert_to_tensor(scale)))
        pairs = zip(before, model.trainable_variables, strict=True)
        moved.append(any(np.any(start != variable.numpy()) for start, variable in pairs))
    # Two steps overflow and change nothing but the scale, which then stays.
    assert scales == [2.0**16, 2.0**15, 2.0**15, 2.0**15] and moved == [False, False, True, True]
    assert all(np.isfinite(variable.numpy()).all() for variable in model.variables)
