"""Trains the model of a recipe on a labeled data set."""

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import logging
from tensorflow import keras

from refinedet_tf.config import Config, validate
from refinedet_tf.data.pipeline import count_dropped_boxes
from refinedet_tf.data.readers import read_training_data, write_split_lists
from refinedet_tf.model import RefineDet
from refinedet_tf.training.devices import find_devices, lost_workers_explained
from refinedet_tf.training.run import Run
from refinedet_tf.training.run_folder import RunFolder, WorkerFolder
from refinedet_tf.training.stopping import StopRequests


def train(config: Config, data_dir: str | os.PathLike, work_dir: str | os.PathLike) -> RefineDet:
    """Trains, evaluates on the way and leaves everything in the work folder.

    Written to `work_dir`: `recipe.yaml`, the recipe as used; `checkpoints/`, the state of the run; `model.keras`, the
    model at the latest evaluation; `best.keras`, the one with the best average precision by `train.best_metric`;
    `evaluations.json`, all tables of average precision; `log.csv` and `curves.png`; `splits/`, the image ids of
    both splits if the recipe has `data.split`, which do not change when the run goes on.

    A run that was stopped or killed goes on from its last checkpoint when it is started again. On one CPU it ends with
    the same weights, to the last bit, as a run without interruption. SIGTERM and Ctrl-C save a checkpoint first. A
    finished run goes on if `train.epochs` is raised.

    It trains on all GPUs of the machine. With the environment variable `TF_CONFIG` it is one of several workers, each
    of which makes the same call; then it must be the first thing in its process that uses TensorFlow, and `work_dir`
    must be the same storage for all. Only the first worker, the chief, evaluates and writes.

    The state of Python's and NumPy's random generators and Keras's precision policy are left as they were;
    TensorFlow's global seed is not.

    Args:
        config: the recipe.
        data_dir: the data set, in the recipe's `data.format`.
        work_dir: the folder to write; made if missing.

    Returns:
        The trained model.

    Raises:
        ConfigError, DataError, WeightFileError: the recipe, the data, the initial weights or `TF_CONFIG` cannot be
            used; nothing has been written then.
        TrainingError: the folder cannot be written, holds a run of another recipe, or is in use; the loss is not
            finite; the run was stopped by a signal; or another worker has ended.
    """
    validate(config)
    devices = find_devices()
    lists_dir = Path(work_dir) / "splits"
    train_set, val_set, parts = read_training_data(config, data_dir, lists_dir)
    logging.info("Training data: %s", train_set.summary())
    if val_set is None:
        logging.warning("data.val_splits is empty: training without evaluation, so there is no best.keras.")
    else:
        logging.info("Validation data: %s", val_set.summary())
    dropped = count_dropped_boxes(train_set.examples, config.data.max_boxes)
    if dropped:
        logging.warning("%d boxes exceed data.max_boxes = %d and are not used.", dropped, config.data.max_boxes)
    with _seeded(config.train.seed), lost_workers_explained(devices):
        run = Run(config, train_set, val_set if devices.is_chief else None, devices)
        kind = RunFolder if devices.is_chief else WorkerFolder
        with kind(Path(work_dir), config) as folder, StopRequests(devices.is_chief) as stop_requests:
            if devices.is_chief:
                write_split_lists(lists_dir, parts)
            run.train(folder, stop_requests)
            devices.agree(0)  # nobody leaves before the chief has written everything
    return run.model


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds Keras, TensorFlow, NumPy and Python; gives the last two their state back."""
    states = random.getstate(), np.random.get_state()
    keras.utils.set_random_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
