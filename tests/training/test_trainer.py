import csv
import inspect
import json
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from refinedet_tf.config import AugmentationConfig, load_config
from refinedet_tf.data.readers.voc import read_voc
from refinedet_tf.errors import DataError, TrainingError, WeightFileError
from refinedet_tf.evaluation.evaluator import evaluate
from refinedet_tf.ops.resizing import Resizing
from refinedet_tf.training import run as run_module
from refinedet_tf.training import trainer
from refinedet_tf.training.checkpoints import Progress
from refinedet_tf.training.devices import Devices
from refinedet_tf.training.report import best_evaluation
from refinedet_tf.training.run import Run
from refinedet_tf.training.trainer import train
from refinedet_tf.weights import load_model
from tests.commands import without_graphs


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


def test_tensorboard_gets_the_numbers_of_each_epoch_and_pictures_of_evaluations(finished_run):
    (path,) = (finished_run / "tensorboard").glob("events.*")
    values = {
        value.tag: tf.make_ndarray(value.tensor)
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    }
    (row,) = csv.DictReader((finished_run / "log.csv").open())
    pictures = [f"ground truth and detections/{index}" for index in range(4)]
    assert values.keys() == {*row.keys() - {"epoch"}, "learning_rate", *pictures}
    for name in row.keys() - {"epoch"}:
        assert values[name] == pytest.approx(float(row[name]), rel=1e-6), name
    for name in pictures:
        width, height, png = values[name]
        image = tf.io.decode_png(png).numpy()
        assert image.shape == (int(height), int(width), 3) and image.std() > 0


def test_a_run_without_lists_and_validation_keeps_its_split_and_its_last_model(tiny_recipe, shapes_dir, tmp_path):
    data = tmp_path / "flat"
    data.mkdir()
    for path in [*shapes_dir.glob("JPEGImages/*"), *shapes_dir.glob("Annotations/*")]:
        shutil.copy(path, data)
    config = load_config(tiny_recipe, ["train.epochs=1", "data.split.val=0.25", "data.val_splits=[]"])
    with without_graphs():
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


CHANGES = [
    "model.resize=letterbox",
    "model.negative_ratio=2.0",
    "data.max_boxes=7",
    "data.augmentation={photometric: false, expand_max_ratio: 1.0, random_crop: false, random_interpolation: false}",
    "evaluation.protocol=paper",
    "train.epochs=5",
    "train.evaluate_every=2",
    "train.seed=11",
    "train.precision=mixed_bfloat16",
    "train.normalize_positives=global",
]


class Calls:
    """Notes what a function is called with, and calls it."""

    def __init__(self, patch, name):
        self.function, self.given = getattr(run_module, name), []
        self.signature = inspect.signature(self.function)
        patch.setattr(run_module, name, self)

    def __call__(self, *args, **kwargs):
        self.given.append(self.signature.bind(*args, **kwargs).arguments)
        return self.function(*args, **kwargs)


@pytest.fixture(scope="module")
def wired(tiny_recipe, shapes_dir):
    """A run of a recipe with other settings than the defaults, and what it has handed on."""
    config = load_config(tiny_recipe, CHANGES)
    examples = read_voc(shapes_dir, ["train"], config.model.classes)
    with pytest.MonkeyPatch.context() as patch:
        calls = {name: Calls(patch, name) for name in ("training_pipeline", "build_optimizer", "build_schedule")}
        run = Run(config, examples, examples, Devices(tf.distribute.get_strategy()))
    return run, {name: call.given for name, call in calls.items()}


def test_the_recipe_reaches_the_data_and_the_model(wired):
    run, calls = wired
    (given,) = calls["training_pipeline"]
    assert given["resizing"] == Resizing(64, 64, "letterbox")
    assert (given["batch_size"], given["max_boxes"], given["seed"], given["cache"]) == (4, 7, 11, False)
    assert given["augmentation"] == AugmentationConfig(
        photometric=False, expand_max_ratio=1.0, random_crop=False, random_interpolation=False
    )
    loss = run.model.loss_function
    assert (loss.normalize_positives, loss.negative_ratio) == ("global", 2.0)


def test_layers_have_the_precision_of_the_recipe_and_the_global_policy_comes_back(wired):
    layer = wired[0].model.get_layer("P3")
    assert (layer.compute_dtype, layer.variable_dtype) == ("bfloat16", "float32")
    assert keras.mixed_precision.global_policy().name == "float32"


def test_the_schedule_counts_batches(wired):
    _, calls = wired
    assert [given["steps_per_epoch"] for name in ("build_optimizer", "build_schedule") for given in calls[name]] == [
        2,
        2,
    ]


def test_evaluations_come_every_so_many_epochs_and_after_the_last(wired, monkeypatch):
    run, _ = wired
    assert [epoch for epoch in range(6) if run._is_evaluated(epoch)] == [2, 4, 5]
    given = {}
    monkeypatch.setattr(run_module, "evaluate", lambda model, data, **settings: given.update(settings))
    run._evaluate(run.model)
    assert given == {"batch_size": 4, "protocol": "paper"}


def test_tensorboard_shows_each_epoch_with_the_rate_of_its_last_step(wired, tmp_path):
    run, _ = wired
    rows = [{"epoch": 0, "loss": 2.5, "val_ap": None}, {"epoch": 1, "loss": 1.5, "val_ap": None}]
    for count in (1, 2):
        run._write_summaries(Progress(epoch=count, rows=rows[:count], evaluations=[]), SimpleNamespace(path=tmp_path))
    found = {}
    for path in sorted((tmp_path / "tensorboard").iterdir()):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = float(tf.make_ndarray(value.tensor))
    assert found.pop("loss") == {1: 2.5, 2: 1.5}
    rates = {epoch: pytest.approx(float(run._schedule(2 * epoch - 1))) for epoch in (1, 2)}
    assert found == {"learning_rate": rates} and rates[1] != float(run._schedule(0))


@pytest.mark.parametrize(
    "values, best", [([0.3, 0.2, 0.1], 1), ([0.1, 0.2, 0.3], 3), ([None, 0.0, 0.0], 2), ([0.2, None, 0.1], 1)]
)
def test_the_best_model_is_the_first_with_the_highest_precision(wired, values, best):
    run, _ = wired
    written = []
    folder = SimpleNamespace(
        write_history=lambda progress: None, write_models=lambda model, *, best: written.append(best)
    )
    evaluations = [{"epoch": epoch, "val_ap": value} for epoch, value in enumerate(values, start=1)]
    assert best_evaluation(evaluations)["epoch"] == best
    for count in (1, 2, 3):
        run._write_results(Progress(epoch=count, evaluations=evaluations[:count]), folder)
    assert [epoch for epoch in (1, 2, 3) if written[epoch - 1]][-1] == best


def test_everything_random_follows_from_the_seed_and_random_states_come_back(
    tiny_recipe, shapes_dir, tmp_path, monkeypatch
):
    drawn = []

    def note(*_):
        initial = keras.initializers.GlorotUniform()((4,)).numpy().tolist()
        drawn.append((initial, tf.random.uniform([2]).numpy().tolist(), random.random(), np.random.random()))
        raise InterruptedError

    monkeypatch.setattr(trainer, "Run", note)
    data = trainer.read_training_data(load_config(tiny_recipe), shapes_dir, tmp_path)
    monkeypatch.setattr(trainer, "read_training_data", lambda *_: data)
    for seed in (3, 4, 3):
        before = random.getstate(), np.random.get_state()[1].tolist()
        with pytest.raises(InterruptedError):
            train(load_config(tiny_recipe, [f"train.seed={seed}"]), shapes_dir, tmp_path)
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert drawn[0] == drawn[2]
    assert all(one != other for one, other in zip(drawn[0], drawn[1], strict=True))
