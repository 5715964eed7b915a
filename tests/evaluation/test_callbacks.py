"""Average precision as a callback of any model's `fit`, and of plain arrays."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from refinedet_tf.data.readers import read_data
from refinedet_tf.evaluation.callbacks import AveragePrecision
from refinedet_tf.evaluation.evaluator import evaluate, evaluate_arrays
from refinedet_tf.model import RefineDet

NAMES = ["a", "b"]
TRUTH = {
    "boxes": np.array([[[0.1, 0.1, 0.5, 0.5], [0.5, 0.5, 1, 1]], [[0.2, 0.2, 0.9, 0.9], [-1, -1, -1, -1]]], np.float32),
    "classes": np.array([[0, 1], [1, -1]]),
}
FOUND = {
    "boxes": np.array([[[0.1, 0.1, 0.5, 0.5], [0.5, 0.5, 1, 1]], [[0.2, 0.2, 0.9, 0.9], [0, 0, 1, 1]]], np.float32),
    "classes": np.array([[0, 0], [1, -1]]),
    "num_detections": np.array([2, 1]),
}
SCORES = np.array([[0.9, 0.8], [0.7, 0.0]])


def test_arrays_of_any_detector():
    for name in ("scores", "confidence"):
        result = evaluate_arrays([({**FOUND, name: SCORES}, TRUTH, (100, 200))], NAMES)
        assert [row.ground_truths for row in result.voc.rows] == [1, 2]
        assert [row.ap_area for row in result.voc.rows] == [1.0, 0.5]
    difficult = {**TRUTH, "difficult": np.array([[False, True], [False, False]])}
    result = evaluate_arrays([({**FOUND, "scores": SCORES}, difficult, (100, 200))], NAMES)
    assert [row.ap_area for row in result.voc.rows] == [1.0, 1.0]
    ignored = {**TRUTH, "classes": np.array([[0, -2], [1, -1]])}
    result = evaluate_arrays([({**FOUND, "scores": SCORES[:, ::-1]}, ignored, (100, 200))], NAMES)
    assert [row.ground_truths for row in result.voc.rows] == [1, 1]
    assert result.ap_area == 1.0 and result.coco_ap == pytest.approx(1.0)


def test_callback_for_another_model():
    images = np.zeros([2, 100, 100, 1], np.float32)
    model = keras.Sequential([keras.Input((100, 100, 1)), keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    data = tf.data.Dataset.from_tensor_slices((images, TRUTH)).batch(1)
    seen = []

    def detect(_, batch):
        seen.append(batch.shape)
        start = len(seen) - 1
        return {name: value[start : start + 1] for name, value in {**FOUND, "scores": SCORES}.items()}

    callback = AveragePrecision(data, NAMES, detect=detect, every=2)
    history = model.fit(images, np.zeros([2, 1]), epochs=2, verbose=0, callbacks=[callback]).history
    assert np.isnan(history["val_ap_area"][0]) and len(seen) == 2
    assert history["val_ap_area"][1] == callback.result.ap_area == pytest.approx(0.75)
    assert history["val_coco_ap"][1] == callback.result.coco_ap
    with pytest.raises(ValueError, match="no class names"):
        AveragePrecision(data)


def test_callback_for_refinedet_on_batches_and_on_labeled_images(tiny_config, shapes_dir):
    data = read_data("voc", shapes_dir, ["val"], None)
    plain = {"separable": False, "batch_norm": False}
    model = RefineDet(dataclasses.replace(tiny_config, classes=data.classes, input_size=[64, 64], **plain))
    model.compile("sgd", run_eagerly=True)
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    batches = tf.data.Dataset.from_tensor_slices((images, TRUTH)).batch(2)
    on_files, on_batches = AveragePrecision(data), AveragePrecision(batches, data.classes)
    model.fit(batches, verbose=0, callbacks=[on_files, on_batches])
    assert on_files.result.as_dict() == evaluate(model, data).as_dict()
    found = model.predict(images, verbose=0)
    assert on_batches.result.as_dict() == evaluate_arrays([(found, TRUTH, (64, 64))], data.classes).as_dict()
