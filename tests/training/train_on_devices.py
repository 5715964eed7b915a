"""Trains as `refinedet train` does, on so many logical CPU devices, and prints the losses of its steps as JSON.

The VGG-16 of recipes has a quarter of its channels here: what devices exchange is the same, and there is less of it.

python -m tests.training.train_on_devices DEVICES RECIPE DATA_DIR WORK_DIR [OVERRIDE ...]
"""

import json
import sys

import tensorflow as tf
from absl import logging

from refinedet_tf.backbones import vgg16
from refinedet_tf.config import load_config
from refinedet_tf.training import run, trainer
from refinedet_tf.training.devices import Devices
from tests.narrow_vgg16 import narrow_conv


def main(count: str, recipe: str, data_dir: str, work_dir: str, *overrides: str) -> None:
    """Trains."""
    logging.set_verbosity(logging.INFO)
    losses = []
    vgg16._conv = narrow_conv
    run.ProgressBar.show = lambda self, logs: losses.append(float(logs["loss"]))
    if int(count) > 1:
        names = [f"CPU:{index}" for index in range(int(count))]
        configurations = [tf.config.LogicalDeviceConfiguration() for _ in names]
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], configurations)
        trainer.find_devices = lambda: Devices(tf.distribute.MirroredStrategy(names))
    trainer.train(load_config(recipe, list(overrides)), data_dir, work_dir)
    print(json.dumps(losses))


if __name__ == "__main__":
    main(*sys.argv[1:])
