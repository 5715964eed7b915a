"""Checks small models on two logical CPU devices against one device; needs a process of its own.

python -m tests.training.two_devices
"""

import numpy as np
import tensorflow as tf
from tensorflow import keras

from refinedet_tf.stacks import minimize, synchronize_batch_norm

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(3.0, 2.0, (8, 5)).astype(np.float32)
TARGETS = RNG.normal(size=(8, 3)).astype(np.float32)


def train(strategy, build_optimizer, *, inputs=INPUTS, batch_norm=False, steps=3):
    """Takes steps on one batch; returns all weights and the optimizer."""
    keras.utils.set_random_seed(0)
    with strategy.scope():
        layers = [keras.layers.Dense(4), keras.layers.BatchNormalization()] if batch_norm else []
        model = keras.Sequential([keras.Input((5,)), *layers, keras.layers.Dense(3)])
        if batch_norm:
            synchronize_batch_norm(model)
        optimizer = build_optimizer()
        optimizer.build(model.trainable_variables)

    def step(inputs, targets):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(inputs, training=True) - targets)) / strategy.num_replicas_in_sync
        minimize(optimizer, loss, model.trainable_variables, tape)

    batches = tf.data.Dataset.from_tensors((inputs, TARGETS)).unbatch().batch(8, drop_remainder=True).repeat(steps)
    for batch in strategy.experimental_distribute_dataset(batches):
        tf.function(strategy.run)(step, args=batch)
    return model.get_weights(), optimizer


def check_equal(build_optimizer, **settings):
    """Both end with the same weights, which have moved."""
    (expected, _), (found, _) = (train(strategy, build_optimizer, **settings) for strategy in STRATEGIES)
    start, _ = train(STRATEGIES[0], build_optimizer, **settings, steps=0)
    assert max(np.abs(a - b).max() for a, b in zip(expected, start, strict=True)) > 1e-3
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)


def check_overflow(**settings):
    """If the gradients of the second device alone are not finite, the step is left out on both."""
    inputs = INPUTS.copy()
    inputs[-1, 0] = np.inf
    build = lambda: keras.mixed_precision.LossScaleOptimizer(keras.optimizers.SGD(0.1))  # noqa: E731
    for strategy in STRATEGIES:
        found, _ = train(strategy, build, inputs=inputs, steps=1)
        start, _ = train(strategy, build, steps=0)
        for a, b in zip(start, found, strict=True):
            np.testing.assert_array_equal(a, b)


tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
STRATEGIES = tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
check_equal(lambda: keras.optimizers.SGD(0.1, momentum=0.9))
check_equal(lambda: keras.optimizers.SGD(0.1, global_clipnorm=0.5))
check_equal(lambda: keras.optimizers.SGD(0.1), batch_norm=True)
scaled = keras.mixed_precision.LossScaleOptimizer
check_equal(lambda: scaled(keras.optimizers.SGD(0.1, global_clipnorm=0.5)))
check_overflow()
print("equal")
