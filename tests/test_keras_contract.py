"""Everything that `compile`, `fit` and the constructor accept works or raises."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from refinedet_tf.config import DetectionConfig, ModelConfig
from refinedet_tf.errors import ConfigError, DataError
from refinedet_tf.losses import COUNT_NAMES, LOSS_NAMES, RefineDetLoss
from refinedet_tf.model import RefineDet, build_model

NAMES = ("loss", *LOSS_NAMES, *COUNT_NAMES)


@pytest.fixture(scope="module")
def plain_config(tiny_config):
    """Ordinary convolutions: tracing a training step of them takes a fraction of the time."""
    return dataclasses.replace(tiny_config, separable=False, batch_norm=False, width=8)


@pytest.fixture(scope="module")
def shared_model(plain_config):
    """Compile it anew in each test; its weights may have been trained.

    Batch normalization is frozen, so that a step with a rate of 0 changes nothing and training is like evaluation.
    """
    keras.utils.set_random_seed(0)
    model = RefineDet(plain_config)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    return model


def rows(targets, which):
    return {name: value[which] for name, value in targets.items()}


def test_a_loss_given_to_compile_is_used_saved_and_restored(shared_model, tiny_images, targets, tmp_path):
    model = shared_model
    loss = RefineDetLoss(negative_ratio=1.0, odm_loss="focal", focal_gamma=1.0, normalize_positives="global")
    model.compile("sgd", loss=loss, run_eagerly=True)
    values = model.evaluate(tiny_images, targets, batch_size=3, verbose=0, return_dict=True)
    expected = loss(targets, model(tiny_images), model.anchors)
    for name in LOSS_NAMES:
        np.testing.assert_allclose(values[name], expected[name], rtol=1e-4)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.loss_function == loss != RefineDetLoss.for_model(model.config)
    restored = again.evaluate(tiny_images, targets, batch_size=3, verbose=0, return_dict=True)
    assert restored == pytest.approx(values, rel=1e-4)
    model.compile("sgd")  # without one it is the model's own again
    assert model.loss_function == RefineDetLoss.for_model(model.config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "mse"}, "trains with a RefineDetLoss"),
        ({"loss": {"odm_classes": keras.losses.MeanSquaredError()}}, "trains with a RefineDetLoss"),
        ({"loss_weights": [1, 2]}, "loss_weights: RefineDet has no use for it"),
        ({"weighted_metrics": ["accuracy"]}, "weighted_metrics: RefineDet has no use for it"),
        ({"metrics": ["accuracy"]}, "must be keras.metrics.Metric objects"),
    ],
)
def test_compile_refuses_what_has_no_meaning(shared_model, arguments, message):
    with pytest.raises(ConfigError, match=message):
        shared_model.compile("sgd", **arguments)
    with pytest.raises(TypeError):
        shared_model.compile("sgd", no_such_argument=1)


def test_fit_refuses_class_weights(shared_model, tiny_images, targets):
    shared_model.compile("sgd")
    with pytest.raises(ConfigError, match="class_weight"):
        shared_model.fit(tiny_images, targets, class_weight={0: 2.0}, verbose=0)
    with pytest.raises(ConfigError, match="class_weight"):
        shared_model.train_on_batch(tiny_images, targets, class_weight={0: 2.0})


def test_sample_weights_from_arrays_and_datasets_reach_the_loss(shared_model, tiny_images, targets):
    model, weights = shared_model, np.float32([0.5, 3.0, 1.0])
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    expected = model.compute_losses(tiny_images, targets, training=False, sample_weight=weights)
    assert expected["loss"] != model.compute_losses(tiny_images, targets, training=False)["loss"]
    dataset = tf.data.Dataset.from_tensor_slices((tiny_images, targets, weights)).batch(3)
    results = [
        model.evaluate(tiny_images, targets, sample_weight=weights, batch_size=3, verbose=0, return_dict=True),
        model.evaluate(dataset, verbose=0, return_dict=True),
        model.test_on_batch(tiny_images, targets, sample_weight=weights, return_dict=True),
        model.train_on_batch(tiny_images, targets, sample_weight=weights, return_dict=True),
        model.evaluate(
            *(tiny_images[[0, 1]], rows(targets, [0, 1])), sample_weight=weights[:2], verbose=0, return_dict=True
        ),
    ]
    for result in results:
        for name in NAMES:
            np.testing.assert_allclose(result[name], expected[name], rtol=1e-4, err_msg=name)
    with pytest.raises(DataError, match="one number for each image, not a dictionary"):
        model.evaluate(tiny_images, targets, sample_weight=dict.fromkeys(targets, weights), verbose=0)


class Objects(keras.metrics.Metric):
    """Objects in the targets, and the sum of the detections' scores."""

    def __init__(self, name="objects", **kwargs):
        super().__init__(name=name, **kwargs)
        self.objects = self.add_weight(name="objects", shape=(), initializer="zeros")
        self.found = self.add_weight(name="found", shape=(), initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.objects.assign_add(tf.reduce_sum(tf.cast(y_true["classes"] >= 0, tf.float32)))
        self.found.assign_add(tf.reduce_sum(y_pred["scores"]))

    def result(self):
        return {"objects": self.objects + 0.0, "found": self.found + 0.0}


@pytest.mark.parametrize("jit_compile", [False, True])
def test_metrics_compare_targets_and_detections_in_evaluation(shared_model, tiny_images, targets, jit_compile):
    model = shared_model
    model.detection = DetectionConfig(max_detections=20)  # rounding may decide which of the last ones are suppressed
    model.compile(keras.optimizers.SGD(0.0), metrics=[Objects()], jit_compile=jit_compile, run_eagerly=not jit_compile)
    found = model.detect(tiny_images)["scores"].numpy().sum(axis=1)
    values = model.evaluate(tiny_images, targets, batch_size=2, verbose=0, return_dict=True)
    assert set(values) == {*NAMES, "objects", "found"}
    assert values["objects"] == 3
    np.testing.assert_allclose(values["found"], found.sum(), rtol=1e-3)
    if jit_compile:
        return
    logs = model.fit(tiny_images, targets, batch_size=3, validation_split=1 / 3, epochs=2, verbose=0).history
    assert set(logs) == {*NAMES, *(f"val_{name}" for name in values)}
    assert logs["val_objects"] == [0, 0]
    np.testing.assert_allclose(logs["val_found"], found[2], rtol=1e-3)


def test_validation_data_and_split_are_evaluated_as_by_evaluate(shared_model, tiny_images, targets):
    model = shared_model
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    first, rest = [0], [1, 2]
    images = np.concatenate([tiny_images[first], tiny_images[rest]])
    expected = model.evaluate(tiny_images[rest], rows(targets, rest), batch_size=2, verbose=0, return_dict=True)
    data = (tiny_images[rest], rows(targets, rest))
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(2)
    for arguments in ({"validation_split": 0.6}, {"validation_data": data}, {"validation_data": dataset}):
        x, y = (images, targets) if "validation_split" in arguments else (tiny_images[first], rows(targets, first))
        logs = model.fit(x, y, batch_size=2, verbose=0, **arguments).history
        assert {name for name in logs if not name.startswith("val_")} == set(NAMES)
        for name in NAMES:
            np.testing.assert_allclose(logs[f"val_{name}"][0], expected[name], rtol=1e-4, err_msg=name)


def test_run_eagerly_and_steps_per_execution_do_what_they_say(shared_model, tiny_images, targets):
    start = shared_model.get_weights()
    images, four = tiny_images[[0, 1, 0, 1]], rows(targets, [0, 1, 0, 1])
    ends, modes = [], []

    class Spy(RefineDetLoss):
        def __call__(self, *args, **kwargs):
            modes.append(tf.executing_eagerly())
            return super().__call__(*args, **kwargs)

    for arguments in ({}, {"run_eagerly": True}, {"steps_per_execution": 2}):
        shared_model.set_weights(start)
        shared_model.compile(keras.optimizers.SGD(1e-4), loss=Spy(), **arguments)
        batches = []
        count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, seen=batches, **__: seen.append(1))
        modes.clear()
        shared_model.fit(images, four, batch_size=1, shuffle=False, verbose=0, callbacks=[count])
        assert len(batches) == (2 if "steps_per_execution" in arguments else 4)
        assert any(modes) == bool(arguments.get("run_eagerly"))
        ends.append(shared_model.get_weights())
    for end in ends[1:]:
        for expected, value in zip(ends[0], end, strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-5)


def test_precision_of_the_constructor_holds_for_layers_alone_and_is_kept(plain_config, tiny_images, tmp_path):
    model = build_model(plain_config, name="half", dtype="mixed_bfloat16")
    assert keras.mixed_precision.global_policy().name == "float32"
    assert model.get_layer("P3_relu").output.dtype == "bfloat16"
    assert all(value.dtype == tf.float32 for value in model(tiny_images).values())
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.name == "half" and again.get_config() == model.get_config()
    assert again.get_layer("P3_relu").output.dtype == "bfloat16"
    np.testing.assert_allclose(
        again(tiny_images)["odm_classes"], model(tiny_images)["odm_classes"], rtol=1e-5, atol=1e-5
    )
    policy = keras.mixed_precision.Policy("mixed_float16")
    assert RefineDet(plain_config, dtype=policy).get_config()["dtype"] == "mixed_float16"


def test_old_configurations_without_precision_are_rebuilt(tiny_model):
    config = tiny_model.get_config()
    assert config.pop("dtype") is None
    assert RefineDet.from_config(config).get_config()["config"] == config["config"]


def test_changed_detection_settings_take_effect_after_a_first_call_and_are_saved(plain_config, tiny_images, tmp_path):
    model = RefineDet(plain_config)
    default = model.predict(tiny_images, verbose=0)
    model.detection = DetectionConfig(score_threshold=0.0, max_detections=7, suppression="across_classes")
    changed = model.predict(tiny_images, verbose=0)
    assert default["boxes"].shape == (3, 500, 4) and changed["boxes"].shape == (3, 7, 4)
    assert model.predict_on_batch(tiny_images)["scores"].shape == (3, 7)
    np.testing.assert_allclose(changed["scores"], model.detect(tiny_images)["scores"], rtol=1e-5)
    model.config.detection.max_detections = 5  # not the documented way, but not ignored either
    assert model.predict(tiny_images, verbose=0)["scores"].shape == (3, 5)
    model.export(tmp_path / "saved_model")
    served = tf.saved_model.load(str(tmp_path / "saved_model")).signatures["serving_default"]
    assert served(images=tf.cast(tiny_images, tf.uint8))["detection_scores"].shape == (3, 5)
    model.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").detection == model.detection
    with pytest.raises(ConfigError, match="max_detections = 0"):
        model.detection = DetectionConfig(max_detections=0)
    assert model.detection.max_detections == 5


def test_focal_loss_starts_from_rare_objects(plain_config, tiny_images):
    """As in RetinaNet; otherwise the background of all anchors would drown the objects."""
    model = RefineDet(dataclasses.replace(plain_config, odm_loss="focal"))
    assert model.loss_function.odm_loss == "focal"
    probabilities = tf.nn.softmax(model(0.0 * tiny_images)["odm_classes"]).numpy()
    biases = model.get_layer("odm3_classes").bias.numpy().reshape(3, 4)
    start = np.exp(biases) / np.exp(biases).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(start, [[0.99, *[0.01 / 3] * 3]] * 3, rtol=1e-4)
    assert 0.9 < probabilities[..., 0].mean() < 1
    assert not RefineDet(ModelConfig(**vars(plain_config))).get_layer("odm3_classes").bias.numpy().any()


def spoil(targets, images, kind):
    """A copy of the batch with one fault, and what the error says about it."""
    boxes, classes, images = targets["boxes"].copy(), targets["classes"].copy(), images.copy()
    if kind == "pixels":
        boxes[0, 1] *= 300
        message = r"image 0, box 1, class 2, \(150.*\): boxes must be relative to the image"
    elif kind == "inverted":
        boxes[1, 0] = boxes[1, 0, [2, 1, 0, 3]]
        message = r"image 1, box 0, class 1, \(0.8, 0.2, 0.2, 0.8\): the box is inverted"
    elif kind == "not finite":
        boxes[0, 0, 3] = np.nan
        message = "image 0, box 0, class 0, .*the box is not finite"
    elif kind == "class":
        classes[0, 1] = 3
        message = "image 0, box 1, class 3, .*the class must be below 3"
    elif kind == "NaN pixel":
        images[2, 3, 4, 0] = np.nan
        message = "image 2 has pixels that are not finite"
    elif kind == "size":
        images = images[:, :, :64]
        message = "images of 64 x 64 pixels .*the model takes 64 x 128"
    elif kind == "count":
        boxes, classes = np.repeat(boxes, 501, axis=1), np.repeat(classes, 501, axis=1)
        message = "2004 rows of boxes"
    return images, {"boxes": boxes, "classes": classes}, f"Unusable batch: {message}"


FAULTS = ("pixels", "inverted", "not finite", "class", "NaN pixel", "size", "count")


@pytest.mark.parametrize("kind", FAULTS)
def test_wrong_data_raise_an_error_that_names_the_first_fault(shared_model, tiny_images, targets, kind):
    model = shared_model
    # Building the graph of a step takes seconds; one kind goes through it.
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=kind != "pixels")
    images, wrong, message = spoil(targets, tiny_images, kind)
    for call in (model.fit, model.evaluate):
        with pytest.raises(DataError, match=message):
            call(images, wrong, verbose=0)
    for call in (model.train_on_batch, model.test_on_batch):
        with pytest.raises(DataError, match=message):
            call(images, wrong)
    with pytest.raises(DataError, match=message):
        model.fit(((batch, wrong) for batch in [images]), verbose=0)
    with pytest.raises(DataError, match=message):
        model.fit(tiny_images, targets, validation_data=(images, wrong), verbose=0)


@pytest.mark.parametrize("kind", ["pixels", "NaN pixel"])
def test_wrong_batch_of_a_dataset_is_found_when_it_comes(shared_model, tiny_images, targets, kind):
    """Not before: the batches in front of it are used."""
    model = shared_model
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    images, wrong, message = spoil(targets, tiny_images, kind)
    both = {name: np.concatenate([targets[name], wrong[name]]) for name in targets}
    dataset = tf.data.Dataset.from_tensor_slices((np.concatenate([tiny_images, images]), both)).batch(3)
    seen = []
    count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **__: seen.append(1))
    with pytest.raises(DataError, match=message):
        model.fit(dataset, verbose=0, callbacks=[count])
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (lambda x, y: (x, None), "the targets are NoneType"),
        (lambda x, y: (x, y["boxes"]), "the targets are"),
        (lambda x, y: (x, {"bounding_boxes": y}), r"the targets are \['bounding_boxes'\]"),
        (lambda x, y: (x, {**y, "boxes": y["boxes"][0]}), r"the boxes have shape \(4, 4\)"),
        (lambda x, y: (x[0], y), r"the images have shape \(64, 128, 3\)"),
    ],
)
def test_data_of_another_form_raise_an_error_that_says_which_form(shared_model, tiny_images, targets, batch, message):
    shared_model.compile(keras.optimizers.SGD(0.0))
    with pytest.raises(DataError, match=message):
        shared_model.fit(*batch(tiny_images, targets), verbose=0)


def test_targets_without_any_row_and_ignored_objects_pass(shared_model, tiny_images, targets):
    model = shared_model
    model.compile(keras.optimizers.SGD(0.0))
    nothing = {"boxes": np.zeros([3, 0, 4], np.float32), "classes": np.zeros([3, 0], np.int32)}
    assert model.evaluate(tiny_images, nothing, verbose=0, return_dict=True)["loss"] == 0
    ignored = {**targets, "classes": np.where(targets["classes"] >= 0, -2, -1)}
    assert model.evaluate(tiny_images, ignored, verbose=0, return_dict=True)["loss"] == 0
