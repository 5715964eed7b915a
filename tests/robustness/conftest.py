"""One small run, built once, that tests start, stop and break as often as they like."""

import contextlib
import dataclasses
import os
import sys
import zipfile
from pathlib import Path

import h5py
import pytest
import tensorflow as tf

from refinedet_tf.config import load_config
from refinedet_tf.data.readers.voc import read_voc
from refinedet_tf.training.devices import Devices
from refinedet_tf.training.run import Run
from refinedet_tf.training.run_folder import RunFolder
from refinedet_tf.training.stopping import StopRequests


class SmallRun:
    """Two epochs of two steps, a checkpoint after each step, an evaluation after each epoch."""

    def __init__(self, config, data_dir):
        tf.keras.utils.set_random_seed(config.train.seed)
        self.config = config
        train_set, val_set = (read_voc(data_dir, [split], config.model.classes) for split in ("train", "val"))
        self.run = Run(config, train_set, val_set, Devices(tf.distribute.get_strategy()))
        self._initial = self.run.variables.read()

    def start(self, folder):
        """Does what the command does in a new process, and returns all variables at the end."""
        self.run.variables.assign(self._initial)
        with RunFolder(folder, self.config) as run_folder, StopRequests() as stop_requests:
            self.run.train(run_folder, stop_requests)
        return self.run.variables.read()


@pytest.fixture(scope="package")
def small_run(tiny_recipe, shapes_dir):
    # Without most of the augmentation, whose graph takes seconds to build each time a run goes on within an epoch.
    plain = "{photometric: false, expand_max_ratio: 1.0, random_crop: false, random_interpolation: false}"
    changes = ["train.checkpoint_steps=1", f"data.augmentation={plain}"]
    return SmallRun(load_config(tiny_recipe, changes), shapes_dir)


@dataclasses.dataclass
class Finished:
    """A run that nothing has interrupted: its folder, its variables, and the folder before each change to a file."""

    folder: Path
    values: list
    snapshots: list


class _Watch:
    """Calls a function before each change to a file below a folder, by Python's audit events."""

    folder = action = None
    busy = False

    def __call__(self, event, arguments):
        if self.action is None or self.busy or event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            return
        path = arguments[0]
        if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(os.fspath(self.folder)):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        self.busy = True
        try:
            self.action()
        finally:
            self.busy = False


_watch = _Watch()
sys.addaudithook(_watch)


@contextlib.contextmanager
def before_each_change(folder, action):
    _watch.folder, _watch.action = folder, action
    try:
        yield
    finally:
        _watch.action = None


def saved_weights(path):
    """The arrays in a .keras file, by name; the file itself also holds the time."""
    arrays = {}
    with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as member, h5py.File(member) as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    return arrays
