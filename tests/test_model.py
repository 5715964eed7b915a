"""The model as a Keras model: training, saving, precision, graph and compiled execution."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from refinedet_tf.config import Config, DetectionConfig, ModelConfig, as_dict
from refinedet_tf.errors import ConfigError
from refinedet_tf.losses import COUNT_NAMES, LOSS_NAMES, RefineDetLoss
from refinedet_tf.model import RefineDet, build_model
from refinedet_tf.ops.anchors import generate_anchors
from refinedet_tf.ops.detections import decode_predictions, suppress
from tests.changed_recipe import CHANGED

DETECTION_NAMES = {"boxes", "scores", "classes", "num_detections"}


def run(script, *arguments):
    """A script in another process, from which only what it prints last comes back."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_raw_predictions_have_one_row_for_each_anchor(tiny_model, tiny_images):
    predictions = tiny_model(tiny_images)
    count = 3 * (8 * 16 + 4 * 8 + 2 * 4 + 1 * 2)
    assert {name: tuple(value.shape) for name, value in predictions.items()} == {
        "arm_objectness": (3, count, 2),
        "arm_offsets": (3, count, 4),
        "odm_classes": (3, count, 4),
        "odm_offsets": (3, count, 4),
    }
    assert all(value.dtype == tf.float32 for value in predictions.values())
    np.testing.assert_array_equal(tiny_model.anchors, generate_anchors([64, 128], [32, 64, 128, 256]))


def test_each_level_of_the_predictions_comes_from_its_own_heads(tiny_model, tiny_images):
    """Levels one behind the other, stride 8 first; ARM heads on the sources, ODM heads on P3 to P6."""
    starts = np.cumsum([0, 384, 96, 24, 6])
    sources = {3: "conv_pw_5_relu", 4: "conv_pw_11_relu", 5: "conv_pw_13_relu", 6: "extra_2_relu"}
    predictions = tiny_model(tiny_images)
    for index, level in enumerate((3, 4, 5, 6)):
        rows = slice(starts[index], starts[index + 1])
        for name, below in (
            ("arm{}_objectness", sources[level]),
            ("arm{}_offsets", sources[level]),
            ("odm{}_classes", f"P{level}_relu"),
            ("odm{}_offsets", f"P{level}_relu"),
        ):
            head = name.format(level)
            features = tiny_model.get_layer(below).output
            assert tiny_model.get_layer(f"{head}_depthwise").input is features
            values = keras.Model(tiny_model.input, tiny_model.get_layer(f"{head}_reshape").output)(tiny_images)
            np.testing.assert_allclose(values, predictions[name.format("")][:, rows], atol=1e-6)


def test_blocks_are_fed_by_the_maps_of_the_arm_and_the_block_above(tiny_model):
    sources = {3: "conv_pw_5_relu", 4: "conv_pw_11_relu", 5: "conv_pw_13_relu", 6: "extra_2_relu"}
    for level, source in sources.items():
        assert tiny_model.get_layer(f"TL{level}_1_depthwise").input is tiny_model.get_layer(source).output
    for level in (3, 4, 5):
        assert tiny_model.get_layer(f"P{level + 1}-up").input is tiny_model.get_layer(f"P{level + 1}_relu").output


def test_raw_predictions_agree_between_eager_graph_and_compiled_execution(tiny_model, tiny_images):
    eager = tiny_model(tiny_images)
    for jit_compile in (False, True):
        values = tf.function(tiny_model, jit_compile=jit_compile)(tf.constant(tiny_images))
        for name, value in values.items():
            np.testing.assert_allclose(value, eager[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_detect_is_decoding_then_suppression_with_the_settings_of_the_recipe(tiny_model, tiny_images):
    config = dataclasses.replace(
        tiny_model.config, objectness_threshold=0.4, detection=DetectionConfig(0.2, 0.3, 50, 20, "across_classes")
    )
    model = RefineDet(config)
    model.set_weights(tiny_model.get_weights())
    found = model.detect(tiny_images)
    boxes, scores = decode_predictions(tiny_model(tiny_images), tiny_model.anchors, 0.4)
    expected = suppress(
        boxes,
        scores,
        score_threshold=0.2,
        iou_threshold=0.3,
        pre_suppression_top_k=50,
        max_detections=20,
        suppression="across_classes",
    )
    assert set(found) == DETECTION_NAMES
    assert 0 < expected["num_detections"][0] < tiny_model.detect(tiny_images)["num_detections"][0]
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def assert_equal_detections(actual, expected):
    assert set(actual) == set(expected) == DETECTION_NAMES
    np.testing.assert_array_equal(actual["num_detections"], expected["num_detections"])
    np.testing.assert_array_equal(actual["classes"], expected["classes"])
    np.testing.assert_allclose(actual["scores"], expected["scores"], atol=1e-6)
    np.testing.assert_allclose(actual["boxes"], expected["boxes"], atol=1e-5)


def test_predict_gives_the_detections_of_detect_and_needs_no_compile(tiny_model, tiny_images, targets):
    """From a dataset of training batches, the second of which is smaller."""
    dataset = tf.data.Dataset.from_tensor_slices((tiny_images, targets)).batch(2)
    assert_equal_detections(tiny_model.predict(dataset, verbose=0), tiny_model.detect(tiny_images))


def test_predict_of_a_model_compiled_with_xla(tiny_config, tiny_model, tiny_images):
    model = RefineDet(tiny_config)
    model.set_weights(tiny_model.get_weights())
    model.compile("sgd", jit_compile=True)
    assert_equal_detections(model.predict(tiny_images, verbose=0), tiny_model.detect(tiny_images))
    assert_equal_detections(model.predict_on_batch(tiny_images), tiny_model.detect(tiny_images))
    assert model.jit_compile is True


def test_fit_under_xla_goes_on_after_a_prediction(plain_model, tiny_images, targets):
    model = plain_model
    for layer in model.layers:  # XLA takes long for the gradients of a whole backbone
        layer.trainable = layer.name.startswith(("TL", "P", "arm", "odm"))
    model.compile("sgd", jit_compile=True)
    predict = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: model.predict(tiny_images, verbose=0))
    history = model.fit(tiny_images, targets, batch_size=3, epochs=2, callbacks=[predict], verbose=0).history
    assert np.isfinite(history["loss"]).all() and history["loss"][0] != history["loss"][1]


LOAD_AND_PREDICT = """
import sys
import numpy as np
from refinedet_tf import RefineDet  # Keras knows the class once it has been imported
from tensorflow import keras

model = keras.models.load_model(sys.argv[1])
assert type(model) is RefineDet
images = np.load(sys.argv[2])
np.savez(sys.argv[3], **model(images), **model.predict(images, verbose=0), anchors=model.anchors)
"""


def test_keras_file_gives_equal_predictions_in_another_process(tiny_model, tiny_images, tmp_path):
    tiny_model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", tiny_images)
    run(LOAD_AND_PREDICT, tmp_path / "model.keras", tmp_path / "images.npy", tmp_path / "results.npz")
    results = np.load(tmp_path / "results.npz")
    for name, value in tiny_model(tiny_images).items():
        np.testing.assert_allclose(results[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert_equal_detections({name: results[name] for name in DETECTION_NAMES}, tiny_model.detect(tiny_images))
    np.testing.assert_array_equal(results["anchors"], tiny_model.anchors)


# Thresholds name classes, so the recipe that other tests override key by key has none.
CHANGED_MODEL = dataclasses.replace(CHANGED.model, score_thresholds={"cat": 0.4})


def test_the_changed_configuration_of_these_tests_changes_every_setting():
    def equal(changed, default):
        names = (field.name for field in dataclasses.fields(default))
        return [name for name in names if getattr(changed, name) == getattr(default, name)]

    defaults = ModelConfig(classes=["x"])
    assert equal(CHANGED_MODEL, defaults) == []
    assert equal(CHANGED_MODEL.detection, defaults.detection) == []
    # Only KerasCV's backbones have these two.
    assert equal(CHANGED_MODEL.backbone, defaults.backbone) == ["preset_or_class", "arguments"]


def test_every_setting_survives_saving_and_so_do_weights_anchors_and_loss(tmp_path):
    model = RefineDet(CHANGED_MODEL, name="mine")
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.config == CHANGED_MODEL and again.name == "mine"
    assert vars(again.loss_function) == vars(RefineDetLoss.for_model(CHANGED_MODEL))
    np.testing.assert_array_equal(again.anchors, model.anchors)
    assert [weight.name for weight in again.weights] == [weight.name for weight in model.weights]
    for own, theirs in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(own, theirs)


def test_configuration_is_json_and_rebuilds_the_graph(tiny_model):
    values = json.loads(json.dumps(tiny_model.get_config()))
    assert values["config"] == as_dict(tiny_model.config)
    again = RefineDet.from_config(values)
    assert [layer.name for layer in again.layers] == [layer.name for layer in tiny_model.layers]
    assert [weight.shape for weight in again.weights] == [weight.shape for weight in tiny_model.weights]


def test_weights_file_restores_predictions(tiny_model, tiny_config, tiny_images, tmp_path):
    tiny_model.save_weights(tmp_path / "model.weights.h5")
    other = RefineDet(tiny_config)
    expected = tiny_model(tiny_images)["odm_classes"]
    assert np.abs(other(tiny_images)["odm_classes"] - expected).max() > 0.1
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(other(tiny_images)["odm_classes"], expected, rtol=1e-5, atol=1e-6)


def test_unusable_configurations_are_refused_before_anything_is_built():
    with pytest.raises(ConfigError, match=r"model\.input_size = \[300, 300\]"):
        build_model(ModelConfig(classes=["a"], input_size=[300, 300]))


def test_a_whole_recipe_builds_the_model_of_its_section(tiny_config):
    assert build_model(Config(model=tiny_config)).config == tiny_config


@pytest.fixture
def plain_model(tiny_config):
    """Ordinary convolutions on the same backbone: tracing a training step of them takes a fraction of the time."""
    keras.utils.set_random_seed(0)
    return RefineDet(dataclasses.replace(tiny_config, separable=False, batch_norm=False))


def test_fit_lowers_the_loss_of_a_batch_and_logs_its_parts(plain_model, tiny_images, targets):
    model = plain_model
    model.compile(keras.optimizers.SGD(0.03, momentum=0.9))
    logs = model.fit(tiny_images, targets, batch_size=3, epochs=25, verbose=0).history
    assert set(logs) == {"loss", *LOSS_NAMES, *COUNT_NAMES}
    for epoch in range(25):
        parts = sum(logs[name][epoch] for name in LOSS_NAMES)
        np.testing.assert_allclose(logs["loss"][epoch], parts, rtol=1e-5)
    assert np.mean(logs["loss"][-3:]) < 0.5 * logs["loss"][0]
    assert len(set(logs["arm_positives"])) == 1 and logs["arm_positives"][0] >= 3

    evaluated = model.evaluate(tiny_images, targets, batch_size=3, verbose=0, return_dict=True)
    direct = model.compute_losses(tiny_images, targets, training=False)
    assert set(evaluated) == set(logs)
    for name, value in evaluated.items():
        np.testing.assert_allclose(value, direct[name], rtol=1e-4, err_msg=name)


def freeze_batch_norm(model):
    """Statistics of a few tiny maps would magnify every rounding error a hundred times."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


@pytest.mark.parametrize("scaled", [False, True], ids=["plain optimizer", "loss scaling"])
def test_a_step_follows_the_gradient_of_the_sum_of_the_losses(tiny_config, tiny_model, tiny_images, targets, scaled):
    model = RefineDet(tiny_config)
    model.set_weights(tiny_model.get_weights())
    freeze_batch_norm(model)
    with tf.GradientTape() as tape:
        losses = model.compute_losses(tf.constant(tiny_images), targets, training=True)
        total = tf.add_n([losses[name] for name in LOSS_NAMES])
    gradients = tape.gradient(total, model.trainable_variables)
    before = [variable.numpy() for variable in model.trainable_variables]
    optimizer = keras.optimizers.SGD(1.0)
    if scaled:
        optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer)
    model.compile(optimizer, run_eagerly=True)
    logs = model.train_on_batch(tiny_images, targets, return_dict=True)
    np.testing.assert_allclose(logs["loss"], total, rtol=1e-5)
    for variable, start, gradient in zip(model.trainable_variables, before, gradients, strict=True):
        # The step is a difference of float32 weights.
        np.testing.assert_allclose(start - variable.numpy(), gradient, rtol=1e-4, atol=1e-6, err_msg=variable.name)


def test_losses_that_layers_add_are_trained_too(tiny_config, tiny_model, tiny_images, targets):
    model = RefineDet(tiny_config)
    model.set_weights(tiny_model.get_weights())
    # Of one image, since Keras 2 divides such a penalty by their number.
    image, target = tiny_images[:1], {name: value[:1] for name, value in targets.items()}
    plain = model.compute_losses(image, target, training=False)
    layer = model.get_layer("P5_pointwise")
    penalty = 0.5 * np.square(keras.Model(model.input, layer.output)(image)).sum()
    assert penalty > 0.01 * plain["loss"]
    layer.activity_regularizer = keras.regularizers.L2(0.5)
    with_penalty = model.compute_losses(image, target, training=False)
    np.testing.assert_allclose(with_penalty["loss"], plain["loss"] + penalty, rtol=1e-5)


def ragged(targets):
    lengths = (targets["classes"] >= 0).sum(axis=1)
    rows = targets["classes"] >= 0
    return {name: tf.RaggedTensor.from_row_lengths(value[rows], lengths) for name, value in targets.items()}


def test_steps_take_ragged_targets_from_a_dataset_even_without_any_object(plain_model, tiny_images, targets):
    """Within a graph the number of boxes is not known; the largest of a batch may be zero."""
    nothing = {name: np.full_like(value, -1) for name, value in targets.items()}
    model = plain_model
    model.compile()
    for given in (targets, nothing):
        dataset = tf.data.Dataset.from_tensors((tiny_images, ragged(given)))
        values = model.evaluate(dataset, verbose=0, return_dict=True)
        expected = model.compute_losses(tiny_images, given, training=False)
        for name in expected:
            np.testing.assert_allclose(values[name], expected[name], rtol=1e-4, err_msg=name)
    assert values["loss"] == 0


@pytest.fixture
def half_precision():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    yield
    keras.mixed_precision.set_global_policy("float32")


def test_predictions_and_losses_stay_float32_in_half_precision(
    half_precision, tiny_config, tiny_model, tiny_images, targets
):
    model = RefineDet(tiny_config)
    model.set_weights(tiny_model.get_weights())
    assert model.get_layer("P3_relu").output.dtype == "bfloat16"
    predictions = model(tiny_images)
    for name, expected in tiny_model(tiny_images).items():
        assert predictions[name].dtype == tf.float32
        assert 0 < np.abs(predictions[name] - expected).mean() < 0.1 * np.std(expected)  # bfloat16 has eight bits
    losses = model.compute_losses(tiny_images, targets, training=False)
    assert all(value.dtype == tf.float32 and np.isfinite(value) for value in losses.values())


REPLICAS = """
import sys
import numpy as np
import tensorflow as tf
from tensorflow import keras

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
from refinedet_tf.losses import RefineDetLoss
from refinedet_tf.model import RefineDet

values = dict(np.load(sys.argv[2]))
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
saved = keras.models.load_model(sys.argv[1])
with strategy.scope():
    model = RefineDet(saved.config)
    for layer in model.layers:
        layer.trainable = layer.name.startswith(("TL", "P", "arm", "odm"))
assert strategy.num_replicas_in_sync == 2
images = values.pop("images")
dataset = tf.data.Dataset.from_tensor_slices((images, values)).batch(len(images))
results = {}
for rule in ("per_replica", "global"):
    with strategy.scope():
        model.set_weights(saved.get_weights())
        model.compile(keras.optimizers.SGD(1.0), loss=RefineDetLoss(normalize_positives=rule))
    before = [variable.numpy() for variable in model.trainable_variables]
    results[f"{rule}_loss"] = model.fit(dataset, verbose=0).history["loss"]
    for index, (start, variable) in enumerate(zip(before, model.trainable_variables)):
        results[f"{rule}_{index:04d}"] = start - variable.numpy()
np.savez(sys.argv[3], **results)
"""


def test_two_replicas_count_their_own_positives_or_those_of_both(plain_model, tiny_images, targets, tmp_path):
    """Per replica, as in the original, gradients are the mean of both halves'; globally, those of the whole batch.

    The backbone stays frozen, as the statistics of its batch normalization would magnify rounding errors.
    """
    order = [0, 1, 2, 0]
    images, boxes, classes = tiny_images[order], targets["boxes"][order], targets["classes"][order]
    plain_model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "batch.npz", images=images, boxes=boxes, classes=classes)
    run(REPLICAS, tmp_path / "model.keras", tmp_path / "batch.npz", tmp_path / "steps.npz")
    results = dict(np.load(tmp_path / "steps.npz"))

    model = keras.models.load_model(tmp_path / "model.keras")
    for layer in model.layers:
        layer.trainable = layer.name.startswith(("TL", "P", "arm", "odm"))

    def losses_and_gradients(rows):
        with tf.GradientTape() as tape:
            part = {"boxes": boxes[rows], "classes": classes[rows]}
            losses = model.compute_losses(tf.constant(images[rows]), part, training=True)
        return losses, tape.gradient(losses["loss"], model.trainable_variables)

    first, first_gradients = losses_and_gradients(slice(0, 2))
    second, second_gradients = losses_and_gradients(slice(2, 4))
    whole, gradients = losses_and_gradients(slice(0, 4))
    assert first["arm_positives"] != second["arm_positives"], "equal normalizers would not tell the two rules apart"
    means = [(a + b) / 2 for a, b in zip(first_gradients, second_gradients, strict=True)]
    for rule, loss, expected in (
        ("per_replica", (first["loss"] + second["loss"]) / 2, means),
        ("global", whole["loss"], gradients),
    ):
        np.testing.assert_allclose(results[f"{rule}_loss"], [loss], rtol=1e-4)
        for index, gradient in enumerate(expected):
            # The step is a difference of float32 weights, in a graph that sums in another order.
            np.testing.assert_allclose(results[f"{rule}_{index:04d}"], gradient, rtol=1e-3, atol=1e-5)


def test_a_compiled_model_is_loaded_with_its_optimizer(tiny_config, tmp_path):
    model = RefineDet(tiny_config)
    model.compile(keras.optimizers.Adam(0.01))
    gradients = [tf.fill(variable.shape, 0.5) for variable in model.trainable_variables]
    model.optimizer.apply_gradients(list(zip(gradients, model.trainable_variables, strict=True)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert int(loaded.optimizer.iterations) == 1 and loaded.optimizer.get_config() == model.optimizer.get_config()
    # The next step depends on the moments that the first one left.
    for each in (model, loaded):
        each.optimizer.apply_gradients(list(zip(gradients, each.trainable_variables, strict=True)))
    for expected, value in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected)
