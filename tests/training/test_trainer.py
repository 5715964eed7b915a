import csv
import json
import math

import pytest
import tensorflow as tf

from refinedet_tf.config import load_config
from refinedet_tf.data.pipeline import training_pipeline
from refinedet_tf.data.readers.voc import read_voc
from refinedet_tf.errors import ConfigError, DataError, WeightFileError
from refinedet_tf.training.trainer import evaluate_model, train
from refinedet_tf.weights import load_model


def test_a_run_leaves_recipe_models_results_and_log(finished_run, tiny_recipe, shapes_dir):
    assert load_config(finished_run / "recipe.yaml") == load_config(tiny_recipe, ["train.epochs=1"])
    (row,) = csv.DictReader((finished_run / "log.csv").open())
    parts = ("arm_objectness_loss", "arm_box_loss", "odm_class_loss", "odm_box_loss")
    assert float(row["loss"]) == pytest.approx(sum(float(row[name]) for name in parts), rel=1e-5)
    (evaluation,) = json.loads((finished_run / "evaluations.json").read_text())
    assert evaluation["val_ap"] == pytest.approx(float(row["val_ap"]))

    model = load_model(finished_run / "model.keras")
    val_set = read_voc(shapes_dir, ["val"], model.config.classes)
    assert evaluate_model(model, val_set, 4).mean_ap_11_point == pytest.approx(evaluation["val_ap"])


def test_a_stopped_run_goes_on_where_it_was(tiny_recipe, shapes_dir, tmp_path, monkeypatch):
    config = load_config(tiny_recipe)
    log = tmp_path / "log.csv"

    class Stopped(Exception):
        """Stands for a machine that is switched off in the second epoch."""

    def stop(self, batch, logs=None):
        if log.exists() and len(log.read_text().splitlines()) == 2:
            raise Stopped

    epochs = []

    def pipeline(*args, epoch, **kwargs):
        def note(images, targets):
            number = tf.numpy_function(lambda number: epochs.append(number) or number, [epoch.read_value()], tf.int64)
            with tf.control_dependencies([number]):
                return tf.identity(images), targets

        return training_pipeline(*args, epoch=epoch, **kwargs).map(note)

    monkeypatch.setattr("refinedet_tf.training.trainer.training_pipeline", pipeline)
    with monkeypatch.context() as patch:
        patch.setattr("refinedet_tf.training.callbacks.VocEvaluation.on_train_batch_begin", stop)
        with pytest.raises(Stopped):
            train(config, shapes_dir, tmp_path)
    steps_before = 2  # one epoch of 8 images in batches of 4
    model = train(config, shapes_dir, tmp_path)
    assert int(model.optimizer.iterations) == 2 * steps_before
    assert sorted(set(epochs)) == [0, 1] and epochs[-1] == 1  # with the data of its second epoch, not of another first
    assert [row["epoch"] for row in csv.DictReader(log.open())] == ["0", "1"]
    assert [entry["epoch"] for entry in json.loads((tmp_path / "evaluations.json").read_text())] == [1, 2]
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_another_recipe_does_not_overwrite_a_run(finished_run, tiny_recipe, shapes_dir):
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}
    with pytest.raises(ConfigError, match="another recipe"):
        train(load_config(tiny_recipe, ["train.learning_rate=0.5"]), shapes_dir, finished_run)
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")} == before


@pytest.mark.parametrize(
    "override, error, message",
    [
        ("data.train_splits=[trian]", DataError, "trian"),
        ("train.batch_size=64", DataError, "batch"),
        ("train.weights=nowhere.npz", WeightFileError, "nowhere.npz"),
        ("model.classes=[circle,square,triangle,stars]", DataError, "star"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    tiny_recipe, shapes_dir, tmp_path, override, error, message
):
    work_dir = tmp_path / "run"
    with pytest.raises(error, match=message):
        train(load_config(tiny_recipe, [override]), shapes_dir, work_dir)
    assert not work_dir.exists()


def test_epochs_without_evaluation_log_nan(tmp_path):
    from refinedet_tf.training.callbacks import VocEvaluation

    callback = VocEvaluation(evaluate=None, every=5, epochs=10, folder=tmp_path)
    logs = {}
    callback.on_epoch_end(0, logs)
    assert math.isnan(logs["val_ap"])
