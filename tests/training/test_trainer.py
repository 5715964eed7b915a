import csv
import json
import shutil

import pytest
import tensorflow as tf

from refinedet_tf.config import load_config
from refinedet_tf.data.readers.voc import read_voc
from refinedet_tf.errors import DataError, TrainingError, WeightFileError
from refinedet_tf.evaluation.evaluator import evaluate
from refinedet_tf.training.run import Run
from refinedet_tf.training.trainer import train
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
    assert evaluate(model, val_set, batch_size=4).ap_11_point == pytest.approx(evaluation["val_ap"])


def test_a_run_without_lists_and_validation_keeps_its_split_and_its_last_model(tiny_recipe, shapes_dir, tmp_path):
    data = tmp_path / "flat"
    data.mkdir()
    for path in [*shapes_dir.glob("JPEGImages/*"), *shapes_dir.glob("Annotations/*")]:
        shutil.copy(path, data)
    config = load_config(tiny_recipe, ["train.epochs=1", "data.split.val=0.25", "data.val_splits=[]"])
    train(config, data, tmp_path / "run")
    lists = [(tmp_path / f"run/splits/{name}.txt").read_text().split() for name in ("train", "val")]
    assert [len(names) for names in lists] == [9, 3]
    assert sorted(lists[0] + lists[1]) == sorted(path.stem for path in data.glob("*.jpg"))
    assert (tmp_path / "run/model.keras").exists() and not (tmp_path / "run/best.keras").exists()
    assert json.loads((tmp_path / "run/evaluations.json").read_text()) == []


def test_another_recipe_does_not_overwrite_a_run(finished_run, tiny_recipe, shapes_dir):
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}
    changes = ["train.learning_rate=0.5", "train.epochs=2", "model.detection.max_detections=7"]
    with pytest.raises(TrainingError, match=r"different here: model.detection.max_detections, train.learning_rate\."):
        train(load_config(tiny_recipe, changes), shapes_dir, finished_run)
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


@pytest.mark.parametrize("rule", ["per_replica", "global"])
def test_the_rule_that_counts_positives_reaches_the_loss(tiny_recipe, shapes_dir, rule):
    config = load_config(tiny_recipe, [f"train.normalize_positives={rule}", "model.negative_ratio=2.0"])
    examples = read_voc(shapes_dir, ["train"], config.model.classes)
    loss = Run(config, examples, examples, tf.distribute.get_strategy()).model.loss_function
    assert (loss.normalize_positives, loss.negative_ratio) == (rule, 2.0)
