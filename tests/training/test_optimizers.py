import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from refinedet_tf.config import TrainConfig
from refinedet_tf.training.optimizers import CaffeSGD, WarmUp, build_optimizer, build_schedule


def one_layer_model():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")])
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=weight.shape) for weight in model.get_weights()])
    return model


def test_caffe_sgd_follows_its_formula_for_kernels_and_biases():
    model = one_layer_model()
    optimizer = CaffeSGD(0.1, momentum=0.9, l2_decay=0.05)
    kernel, bias = (weight.astype(np.float64) for weight in model.get_weights())
    velocity = [np.zeros_like(kernel), np.zeros_like(bias)]
    rng = np.random.default_rng(1)
    for _ in range(4):
        gradients = [rng.normal(size=kernel.shape), rng.normal(size=bias.shape)]
        optimizer.apply_gradients(
            [(tf.constant(g, tf.float32), v) for g, v in zip(gradients, model.trainable_variables, strict=True)]
        )
        velocity[0] = 0.9 * velocity[0] + 0.1 * (gradients[0] + 0.05 * kernel)
        velocity[1] = 0.9 * velocity[1] + 0.1 * 2 * gradients[1]
        kernel, bias = kernel - velocity[0], bias - velocity[1]
    np.testing.assert_allclose(model.get_weights()[0], kernel, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.get_weights()[1], bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_sgd_of_a_recipe_has_its_momentum_its_decay_and_its_clipping(clip_norm):
    model = one_layer_model()
    config = TrainConfig(learning_rate=0.1, momentum=0.6, weight_decay=0.2, clip_norm=clip_norm)
    optimizer = build_optimizer(config, steps_per_epoch=10)
    kernel, bias = (weight.astype(np.float64) for weight in model.get_weights())
    velocity = [0.0, 0.0]
    rng = np.random.default_rng(2)
    for _ in range(2):
        gradients = [rng.normal(size=kernel.shape), rng.normal(size=bias.shape)]
        optimizer.apply_gradients(
            [(tf.constant(g, tf.float32), v) for g, v in zip(gradients, model.trainable_variables, strict=True)]
        )
        norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients))
        assert norm > 0.5
        scale = clip_norm / norm if clip_norm else 1.0
        velocity[0] = 0.6 * velocity[0] + 0.1 * (scale * gradients[0] + 0.2 * kernel)
        velocity[1] = 0.6 * velocity[1] + 0.1 * 2 * scale * gradients[1]
        kernel, bias = kernel - velocity[0], bias - velocity[1]
    np.testing.assert_allclose(model.get_weights()[0], kernel, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.get_weights()[1], bias, rtol=1e-5, atol=1e-6)


def test_adam_of_a_recipe_clips():
    assert build_optimizer(TrainConfig(optimizer="adam", clip_norm=0.5), steps_per_epoch=10).global_clipnorm == 0.5
    assert build_optimizer(TrainConfig(optimizer="adam"), steps_per_epoch=10).global_clipnorm is None


def test_caffe_sgd_has_the_settings_of_the_released_solvers():
    config = CaffeSGD().get_config()
    assert [float(config[name]) for name in ("learning_rate", "momentum", "l2_decay")] == pytest.approx(
        [1e-3, 0.9, 5e-4]
    )


def test_caffe_sgd_survives_its_config():
    optimizer = CaffeSGD(0.02, momentum=0.8, l2_decay=0.3)
    again = CaffeSGD.from_config(optimizer.get_config())
    assert (again.l2_decay, again.momentum) == (0.3, 0.8)


def test_adam_of_a_recipe_decays_kernels_only():
    model = one_layer_model()
    kernel, bias = model.get_weights()
    optimizer = build_optimizer(TrainConfig(optimizer="adam", learning_rate=0.1, weight_decay=0.5), steps_per_epoch=10)
    zeros = [tf.zeros_like(variable) for variable in (kernel, bias)]
    optimizer.apply_gradients(list(zip(zeros, model.trainable_variables, strict=True)))
    np.testing.assert_allclose(model.get_weights()[0], kernel * (1 - 0.1 * 0.5), rtol=1e-6)
    np.testing.assert_array_equal(model.get_weights()[1], bias)


@pytest.mark.parametrize("step, rate", [(0, 1.0), (19, 1.0), (20, 0.1), (29, 0.1), (30, 0.01), (99, 0.01)])
def test_multistep_changes_with_the_first_step_of_an_epoch(step, rate):
    config = TrainConfig(learning_rate=1.0, decay_epochs=[2, 3], decay_rate=0.1)
    assert float(build_schedule(config, steps_per_epoch=10)(step)) == pytest.approx(rate)


def test_cosine_falls_from_the_full_rate_to_zero():
    schedule = build_schedule(TrainConfig(learning_rate=0.4, schedule="cosine", epochs=3), steps_per_epoch=10)
    assert [float(schedule(step)) for step in (0, 15, 30)] == pytest.approx([0.4, 0.2, 0.0], abs=1e-7)


def test_warm_up_rises_linearly_and_survives_serialisation():
    config = TrainConfig(learning_rate=1.0, decay_epochs=[1], decay_rate=0.5, warmup_steps=4)
    schedule = build_schedule(config, steps_per_epoch=10)
    again = keras.optimizers.schedules.deserialize(
        keras.optimizers.schedules.serialize(schedule), custom_objects={"WarmUp": WarmUp}
    )
    for rates in (schedule, again):
        assert [float(rates(step)) for step in (0, 1, 3, 4, 9, 10)] == pytest.approx([0.25, 0.5, 1, 1, 1, 0.5])
