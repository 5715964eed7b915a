"""Trains the model of a recipe on a folder of images."""

import os
from pathlib import Path

import tensorflow as tf
from tensorflow import keras

from refinedet_tf.config import Config, save_config, validate
from refinedet_tf.data.examples import ExampleSet
from refinedet_tf.data.pipeline import count_dropped_boxes, training_pipeline
from refinedet_tf.data.readers import read_data
from refinedet_tf.errors import ConfigError
from refinedet_tf.evaluation.evaluator import evaluate
from refinedet_tf.evaluation.voc import VocResult
from refinedet_tf.model import RefineDet, build_model
from refinedet_tf.ops.resizing import Resizing
from refinedet_tf.training.callbacks import CurrentEpoch, VocEvaluation
from refinedet_tf.training.optimizers import build_optimizer
from refinedet_tf.visualization.curves import save_loss_curves
from refinedet_tf.weights import load_weights


def train(config: Config, data_dir: str | os.PathLike, work_dir: str | os.PathLike) -> RefineDet:
    """Trains, evaluates on the way and leaves everything in the work folder.

    Written to `work_dir`: `recipe.yaml`, the recipe as used; `model.keras`, the model at the latest evaluation;
    `best.keras`, the one with the best validation AP; `evaluations.json`, every AP table; `log.csv`, `curves.png` and
    `tensorboard/`. If it is stopped, the same call goes on after the last complete epoch.

    Args:
        config: the recipe.
        data_dir: the data set, in the recipe's `data.format`.
        work_dir: the folder to write; made if missing.

    Returns:
        The trained model.

    Raises:
        ConfigError, DataError, WeightFileError: the recipe, the data or the initial weights cannot be used; nothing
            has been written then.
        ConfigError: the folder holds a run of another recipe.
    """
    validate(config)
    train_set = read_data(config.data.format, data_dir, config.data.train_splits, config.model.classes)
    val_set = read_data(config.data.format, data_dir, config.data.val_splits, config.model.classes)
    keras.utils.set_random_seed(config.train.seed)
    keras.mixed_precision.set_global_policy(config.train.precision)
    current_epoch = CurrentEpoch()
    dataset = training_pipeline(
        train_set.examples,
        Resizing(*config.model.input_size, config.model.resize),
        config.train.batch_size,
        config.data.augmentation,
        config.data.max_boxes,
        config.train.seed,
        cache=config.data.cache,
        epoch=current_epoch.number,
    )
    with _strategy().scope():
        model = build_model(config)
        if config.train.weights:
            print(load_weights(model, config.train.weights).summary())
        model.compile(build_optimizer(config.train, len(dataset)), jit_compile=config.train.jit_compile)

    work_dir = Path(work_dir)
    _claim(work_dir, config)
    for title, example_set in (("Training", train_set), ("Validation", val_set)):
        print(f"{title} data: {example_set.summary()}")
    dropped = count_dropped_boxes(train_set.examples, config.data.max_boxes)
    if dropped:
        print(f"{dropped} boxes are beyond data.max_boxes = {config.data.max_boxes} of their image and are not used.")

    log = work_dir / "log.csv"
    resumed = (work_dir / "backup").exists()
    model.fit(
        dataset,
        epochs=config.train.epochs,
        shuffle=False,  # the pipeline does
        callbacks=[
            current_epoch,
            VocEvaluation(
                lambda model: evaluate_model(model, val_set, config.train.batch_size),
                config.train.evaluate_every,
                config.train.epochs,
                work_dir,
            ),
            keras.callbacks.CSVLogger(os.fspath(log), append=resumed),
            keras.callbacks.TensorBoard(os.fspath(work_dir / "tensorboard")),
            keras.callbacks.TerminateOnNaN(),
            keras.callbacks.BackupAndRestore(os.fspath(work_dir / "backup")),
        ],
    )
    save_loss_curves(log, work_dir / "curves.png")
    return model


def evaluate_model(model: RefineDet, example_set: ExampleSet, batch_size: int) -> VocResult:
    """VOC average precision of a model on labelled images."""
    return evaluate(model, example_set, batch_size=batch_size).voc


def _strategy() -> tf.distribute.Strategy:
    """All GPUs of this machine, or the one device there is."""
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def _claim(work_dir: Path, config: Config) -> None:
    """Writes the recipe into the work folder, unless another recipe has been there."""
    work_dir.mkdir(parents=True, exist_ok=True)
    recipe, fresh = work_dir / "recipe.yaml", work_dir / "~recipe.yaml"
    save_config(config, fresh)
    if recipe.exists() and recipe.read_text() != fresh.read_text():
        fresh.unlink()
        raise ConfigError(
            f"{work_dir} holds a run of another recipe ({recipe}). Use another --work_dir, or the same recipe to go on."
        )
    os.replace(fresh, recipe)
