import importlib.util
import platform
import re
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from refinedet_tf.config import TrainConfig, load_config
from refinedet_tf.errors import ConfigError
from refinedet_tf.stacks import CAN_ACCUMULATE, KERAS_MAJOR, create_optimizer_variables
from refinedet_tf.training.checkpoints import Checkpoints, Progress, RunVariables
from refinedet_tf.training.optimizers import averaged_weights, build_optimizer

ADDONS = importlib.util.find_spec("tensorflow_addons") is not None
ADAM = {"name": "Adam"}
KERAS = [
    "sgd",
    "adam",
    {"name": "SGD", "arguments": {"momentum": 0.9, "nesterov": True}},
    {"name": "AdamW"},
    {"name": "Lion"},
]
OF_ADDONS = [
    *({"name": f"tfa:{name}"} for name in ("SGDW", "AdamW", "LAMB", "LazyAdam", "NovoGrad", "RectifiedAdam", "Yogi")),
    {"name": "tfa:Lookahead", "arguments": {"optimizer": {"name": "tfa:AdamW"}, "sync_period": 2}},
    {"name": "tfa:MovingAverage", "arguments": {"optimizer": ADAM, "average_decay": 0.5}},
    {"name": "tfa:SWA", "arguments": {"optimizer": ADAM, "average_period": 1}},
    {"name": "tfa:MultiOptimizer", "arguments": {"backbone": {**ADAM, "rate_factor": 0.1}, "detector": ADAM}},
]
OPTIMIZERS = KERAS + [
    pytest.param(spec, marks=pytest.mark.skipif(not ADDONS, reason="tensorflow-addons is not here"))
    for spec in OF_ADDONS
]


def small_model(optimizer, normalize=True, **settings):
    """A convolution of a backbone and a head of the detector, compiled for training of two epochs of three steps."""
    keras.utils.set_random_seed(3)
    images = keras.Input((4, 4, 3))
    features = keras.layers.Conv2D(4, 3, name="conv1_1")(images)
    if normalize:
        features = keras.layers.BatchNormalization(name="norm")(features)
    model = keras.Model(images, keras.layers.Conv2D(2, 1, name="odm3_classes")(features))
    shared = {"epochs": 2, "learning_rate": 0.01, "warmup_steps": 2, "weight_decay": 0.1}
    config = TrainConfig(optimizer=optimizer, **{**shared, **settings})
    model.compile(build_optimizer(config, 3, model), loss="mse")
    create_optimizer_variables(model.optimizer, model.trainable_variables)
    return model


def train(model, steps):
    rng = np.random.default_rng(5)
    batches = [(rng.normal(size=(2, 4, 4, 3)), rng.normal(size=(2, 2, 2, 2))) for _ in range(6)]
    for step in steps:
        model.train_on_batch(*batches[step])


def name(spec):
    return spec if isinstance(spec, str) else spec["name"]


@pytest.mark.parametrize("spec", OPTIMIZERS, ids=name)
def test_a_run_that_goes_on_ends_like_one_without_interruption(spec, tmp_path):
    settings = {"clip_norm": 1.0}
    whole, first, second = (small_model(spec, **settings) for _ in range(3))
    before = [weight.copy() for weight in whole.get_weights()]
    train(whole, range(6))
    train(first, range(3))
    train(second, range(2))  # a state to be replaced
    Checkpoints(tmp_path, keep=1).save(RunVariables(first).read(), Progress(step=3))
    saved, progress = Checkpoints(tmp_path, keep=1).load_latest()
    RunVariables(second).assign(saved)
    train(second, range(progress.step, 6))
    values, expected = RunVariables(second).read(), RunVariables(whole).read()
    assert len(values) > len(before)
    for value, other in zip(values, expected, strict=True):
        np.testing.assert_array_equal(value, other)
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(before, whole.get_weights(), strict=True))
    with averaged_weights(second):
        averaged = second.get_weights()
    with averaged_weights(whole):
        for value, other in zip(averaged, whole.get_weights(), strict=True):
            np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize("settings", [{"ema_momentum": 0.9}, {"accumulation_steps": 2}])
def test_averages_and_accumulated_gradients_are_part_of_the_state(settings):
    if "accumulation_steps" in settings and not CAN_ACCUMULATE:
        with pytest.raises(ConfigError, match="cannot accumulate"):
            small_model("sgd", **settings)
        return
    whole, first, second = (small_model("sgd", **settings) for _ in range(3))
    train(whole, range(6))
    train(first, range(3))
    train(second, range(1))  # a state to be replaced; Keras 2 makes the metrics of `mse` in the first step
    RunVariables(second).assign(RunVariables(first).read())
    train(second, range(3, 6))
    for value, other in zip(RunVariables(second).read(), RunVariables(whole).read(), strict=True):
        np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_the_moving_average_follows_its_formula_and_the_weights_come_back(precision):
    keras.mixed_precision.set_global_policy(precision)
    try:
        model = small_model("sgd", ema_momentum=0.9)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    is_scaled = isinstance(model.optimizer, keras.mixed_precision.LossScaleOptimizer)
    assert is_scaled == (precision == "mixed_float16")
    average = model.trainable_variables[0].numpy()
    for step in range(3):
        train(model, [step])
        weights = model.trainable_variables[0].numpy()
        # Keras 2 starts with the initial weights, Keras 3 with those after the first step.
        average = weights if step == 0 and KERAS_MAJOR > 2 else 0.9 * average + 0.1 * weights
    with averaged_weights(model):
        np.testing.assert_allclose(model.trainable_variables[0].numpy(), average, rtol=1e-5)
    np.testing.assert_array_equal(model.trainable_variables[0].numpy(), weights)


@pytest.mark.skipif(not CAN_ACCUMULATE, reason="Keras 2 cannot accumulate gradients")
def test_accumulated_steps_equal_one_step_on_the_larger_batch():
    plain = {"normalize": False, "warmup_steps": 0}
    once, twice = small_model("sgd", **plain), small_model("sgd", accumulation_steps=2, **plain)
    rng = np.random.default_rng(5)
    images, targets = rng.normal(size=(4, 4, 4, 3)), rng.normal(size=(4, 2, 2, 2))
    once.train_on_batch(images, targets)
    for half in (slice(2), slice(2, 4)):
        twice.train_on_batch(images[half], targets[half])
    for a, b in zip(once.get_weights(), twice.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "spec",
    ["adam", {"name": "AdamW"}, {"name": "Lion"}]
    + [
        pytest.param({"name": f"tfa:{kind}"}, marks=pytest.mark.skipif(not ADDONS, reason="no tensorflow-addons"))
        for kind in ("SGDW", "AdamW", "LAMB")
    ],
    ids=name,
)
def test_biases_and_normalization_are_not_decayed(spec):
    model = small_model(spec)
    before = [variable.numpy() for variable in model.trainable_variables]
    model.optimizer.apply_gradients([(tf.zeros(variable.shape), variable) for variable in model.trainable_variables])
    changed = [(variable.numpy() != old).any() for variable, old in zip(model.trainable_variables, before, strict=True)]
    assert changed == [len(old.shape) == 4 for old in before]


def test_without_the_package_the_error_names_the_extra_and_what_serves_instead(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_addons.optimizers", None)  # it cannot be imported
    with pytest.raises(ConfigError, match=r"refinedet-tf\[addons\].*nearest optimizer of Keras: SGD with") as caught:
        small_model({"name": "tfa:SGDW"})
    reason = f"ended with Keras 2.*TensorFlow {tf.__version__} on Python {platform.python_version()}"
    assert bool(re.search(reason, str(caught.value))) == (KERAS_MAJOR > 2)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "Adma"}, "no optimizer 'Adma' \\(did you mean 'Adamax'"),
        ({"name": "Adam", "arguments": {"beta": 1}}, "Adam cannot be built"),
    ],
)
def test_what_cannot_be_built_is_said(spec, message):
    with pytest.raises(ConfigError, match=message):
        small_model(spec)


def test_recipes_name_optimizers(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {classes: [a]}\ntrain: {optimizer: {name: Lion, arguments: {beta_1: 0.8}}}\n")
    assert load_config(path).train.optimizer == {"name": "Lion", "arguments": {"beta_1": 0.8}}
    for value in ("{nme: Lion}", "[sgd]", "sdg", "{name: Adam, arguments: 3}"):
        path.write_text(f"model: {{classes: [a]}}\ntrain: {{optimizer: {value}}}\n")
        with pytest.raises(ConfigError, match=r"train\.optimizer"):
            load_config(path)
