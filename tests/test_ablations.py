import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from benchmarks import ablations
from refinedet_tf.config import ModelConfig, load_config, save_config
from refinedet_tf.data.readers import read_data
from refinedet_tf.losses import RefineDetLoss
from refinedet_tf.model import build_model
from refinedet_tf.ops.boxes import decode_boxes
from refinedet_tf.serving.tflite import convert_tflite

SWITCHES = {
    "no negative anchor filter": {"objectness_threshold": 0.0},
    "one step": {"two_step_regression": False},
    "no transfer connection": {"transfer_connection": False},
}
# The rows of the paper's table that change the graph; both are without the negative anchor filter too, which is a mere
# threshold.
NO_TWO_STEPS = {"objectness_threshold": 0.0, "two_step_regression": False}
ROWS = {"no two steps": NO_TWO_STEPS, "no transfer connection": {**NO_TWO_STEPS, "transfer_connection": False}}

TARGETS = {
    "boxes": np.float32([[[0.1, 0.1, 0.6, 0.9]], [[0.3, 0.2, 0.5, 0.8]], [[0.0, 0.0, 0.25, 0.5]]]),
    "classes": np.int32([[0], [1], [2]]),
}


@pytest.fixture(scope="module", params=ROWS)
def model(request, tiny_config):
    keras.utils.set_random_seed(0)
    return build_model(dataclasses.replace(tiny_config, **ROWS[request.param]))


def names(model):
    return {layer.name for layer in model.layers}


def test_raw_predictions_keep_their_form_with_arm_offsets_of_zero(model, tiny_model, tiny_images):
    predictions, full = model(tiny_images), tiny_model(tiny_images)
    assert {k: (v.shape, v.dtype) for k, v in predictions.items()} == {k: (v.shape, v.dtype) for k, v in full.items()}
    assert np.any(full["arm_offsets"]) and not np.any(predictions["arm_offsets"])
    np.testing.assert_array_equal(model.anchors, tiny_model.anchors)


def test_only_the_layers_of_what_is_left_out_are_missing(model, tiny_model):
    missing = {name for name in names(tiny_model) if name.startswith("arm") and "_offsets_" in name}
    if not model.config.transfer_connection:
        missing |= {name for name in names(tiny_model) if name.startswith(("TL", "P", "Elt"))}
    assert names(tiny_model) - names(model) == missing
    # The zeros stand where the heads stood.
    assert names(model) - names(tiny_model) == {f"arm{level}_offsets" for level in (3, 4, 5, 6)}
    assert not [v for level in (3, 4, 5, 6) for v in model.get_layer(f"arm{level}_offsets").weights]


def test_heads_sit_on_the_maps_of_the_backbone_without_transfer_connection(model):
    sources = {3: "conv_pw_5_relu", 4: "conv_pw_11_relu", 5: "conv_pw_13_relu", 6: "extra_2_relu"}
    for level, source in sources.items():
        expected = f"P{level}_relu" if model.config.transfer_connection else source
        for kind in ("classes", "offsets"):
            head = model.get_layer(f"odm{level}_{kind}_depthwise")
            assert head.input is model.get_layer(expected).output


def test_detections_start_from_the_plain_anchors(model, tiny_images):
    detections = model.detect(tiny_images)
    boxes = np.asarray(decode_boxes(model(tiny_images)["odm_offsets"], model.anchors))
    for image, count in enumerate(detections["num_detections"]):
        assert count > 0
        for box in detections["boxes"][image, :count].numpy():
            assert np.abs(boxes[image] - box).max(axis=1).min() < 1e-5


def test_losses_are_those_of_the_plain_anchors_without_the_arms_box_loss(model, tiny_images):
    losses = model.compute_losses(tiny_images, TARGETS, training=False)
    full = RefineDetLoss(objectness_threshold=0.0)(TARGETS, model(tiny_images), model.anchors)
    for name in ("arm_objectness_loss", "odm_class_loss", "odm_box_loss"):
        np.testing.assert_allclose(losses[name], full[name], rtol=1e-5, err_msg=name)
    assert losses["arm_box_loss"] == 0 and full["arm_box_loss"] > 0
    # Both modules match the same anchors at the same IoU.
    assert losses["odm_positives"] == losses["arm_positives"] > 0


def train(model, images, steps, rate=3e-3):
    """Losses of steps on one batch."""
    model.compile(keras.optimizers.Adam(rate), run_eagerly=True)
    losses = []
    for _ in range(steps):
        model.reset_metrics()
        losses.append(model.train_on_batch(images, TARGETS, return_dict=True)["loss"])
    return losses


def test_training_lowers_the_loss_and_saving_keeps_the_ablation(model, tiny_images, tmp_path):
    losses = train(model, tiny_images, 4)
    assert losses[-1] < 0.9 * losses[0]

    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert again.config == model.config
    expected = model(tiny_images)
    for name, value in again(tiny_images).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize("switch", SWITCHES)
def test_each_switch_alone_trains_and_is_exported(switch, tiny_config, tiny_images, tmp_path):
    keras.utils.set_random_seed(0)
    # On the paper's backbone, whose few layers are also the quickest to export.
    model = build_model(ModelConfig(classes=tiny_config.classes, input_size=[64, 128], width=16, **SWITCHES[switch]))
    losses = train(model, tiny_images, 2, rate=1e-5)
    assert np.isfinite(losses).all() and losses[1] < losses[0]

    model.export(tmp_path / "saved_model")
    served = tf.saved_model.load(tmp_path / "saved_model").signatures
    pixels = tf.cast(tiny_images[:1], tf.uint8)
    images = tf.cast(pixels, tf.float32)
    raw, expected = served["serving_raw"](images=pixels), model(images)
    for name, value in expected.items():
        np.testing.assert_allclose(raw[name], value, atol=1e-5 * np.abs(value).max(), err_msg=name)
    outputs, expected = served["serving_default"](images=pixels), model.detect(images)
    np.testing.assert_allclose(outputs["detection_scores"], expected["scores"], atol=1e-5)
    count = int(expected["num_detections"][0])
    assert count > 0
    # Exported boxes have rows first and are clipped to the image.
    boxes = tf.clip_by_value(tf.gather(expected["boxes"], [1, 0, 3, 2], axis=-1), 0, 1)
    np.testing.assert_allclose(outputs["detection_boxes"][:, :count], boxes[:, :count], atol=1e-4)


def test_a_tflite_file_has_the_ablations_in_it(tiny_config, tiny_images, tmp_path):
    model = build_model(dataclasses.replace(tiny_config, **ROWS["no transfer connection"]))
    (tmp_path / "model.tflite").write_bytes(convert_tflite(model, postprocess="none", input_type="float32"))
    interpreter = tf.lite.Interpreter(str(tmp_path / "model.tflite"))
    outputs = interpreter.get_signature_runner()(images=tiny_images[:1])
    for name, value in model(tiny_images[:1]).items():
        np.testing.assert_allclose(outputs[name], value, atol=1e-5 * max(np.abs(value).max(), 1), err_msg=name)


def test_the_rows_of_the_benchmark_differ_in_their_switches_alone():
    """In the paper's order, each without the parts of the row above it."""

    def differences(row):
        full, other = (
            dataclasses.asdict(load_config(ablations.RECIPE, ablations.BUDGET + ablations.ROWS[name]))
            for name in ("full", row)
        )
        return {
            f"{section}.{key}": value
            for section, values in other.items()
            for key, value in values.items()
            if value != full[section][key]
        }

    filtered = {"model.objectness_threshold": 0.0}
    one_step = {**filtered, "model.two_step_regression": False}
    assert {row: differences(row) for row in ablations.ROWS} == {
        "full": {},
        "no_filter": filtered,
        "no_two_steps": one_step,
        "no_tcb": {**one_step, "model.transfer_connection": False},
        "full_second_seed": {"train.seed": 1},
    }


def test_the_benchmark_trains_each_row_once_on_a_part_of_the_images(shapes_dir, tiny_recipe, tmp_path, monkeypatch):
    trained = []

    def train(config, data_dir, folder):
        """Leaves what a run leaves; the third one is stopped after its first epoch."""
        trained.append(folder.name)
        epoch = 1 if len(trained) == 3 else config.train.epochs
        precision = {"ap_11_point": 0.1 * len(trained), "ap_area": 0.5 / len(trained), "coco_ap": 0.2}
        folder.mkdir(exist_ok=True)
        save_config(config, folder / "recipe.yaml")
        (folder / "evaluations.json").write_text(json.dumps([{"epoch": epoch, **precision}]))
        assert read_data(config, data_dir, config.data.train_splits).examples
        if epoch == 1:
            raise InterruptedError

    monkeypatch.setattr(ablations.rd, "train", train)
    arguments = (tiny_recipe, ["model.input_size=[64,64]", "train.epochs=3"], shapes_dir, tmp_path)
    with pytest.raises(InterruptedError):
        ablations.train_rows(*arguments)
    names = (shapes_dir / "ImageSets/Main/train.txt").read_text().split()
    assert (tmp_path / "train.txt").read_text().split() == names[::4]
    figures = ablations.train_rows(*arguments)
    rows = list(ablations.ROWS)
    assert trained == [*rows[:3], *rows[2:]] and list(figures) == rows
    assert [found["epoch"] for found in figures.values()] == [3] * 5
    assert not load_config(tmp_path / "no_tcb/recipe.yaml").model.transfer_connection
    assert ablations.train_rows(*arguments) == figures and len(trained) == 6

    text = ablations.table(figures)
    (line,) = [line for line in text.splitlines() if line.startswith("no_two_steps")]
    assert line.split()[1:] == ["no", "no", "yes", "0", "0.400", "0.125", "0.200", "77.3"]
    assert f"differ by {0.5 - 0.5 / 6:.3f}" in text
