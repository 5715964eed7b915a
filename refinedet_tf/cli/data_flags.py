"""The flags that name labeled images, for the commands that run a trained model on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags, logging

from refinedet_tf.config import DATA_FORMATS, DataConfig, load_config

if TYPE_CHECKING:
    from refinedet_tf.data.examples import ExampleSet

FLAGS = flags.FLAGS
RECIPE, LISTS = "recipe.yaml", "splits"  # what a training run leaves in its folder


def define_data_flags(purpose: str, *, required: bool = False) -> None:
    """Defines the flags.

    Args:
        purpose: the help text of --data_dir.
        required: whether --data_dir is.
    """
    flags.DEFINE_string("data_dir", None, purpose, required=required)
    flags.DEFINE_list("splits", ["val"], "The splits to use, separated by commas.")
    flags.DEFINE_enum("format", None, DATA_FORMATS, "The format of the data set; by default the recipe's, or voc.")
    flags.DEFINE_string("config", None, "The recipe whose section data says how to read the data set; by default that "
                        "of the training run in whose folder the model is.")  # fmt: skip


def read_labeled_images(model: str | None, splits: Sequence[str], classes: Sequence[str] | None) -> ExampleSet:
    """Reads the labeled images that the flags name, as the recipe says: classes renamed or left out, splits divided.

    Args:
        model: the path of the model. If it is in the folder of a training run and --config is not given, the run's
            recipe counts, and its lists of splits.
        splits: names of splits.
        classes: the class names of the model; None takes those of the recipe, or if there is none, those of the data.
    """
    from refinedet_tf.data.readers import read_data

    run = None if FLAGS.config or model is None else _run_of(Path(model))
    config = None
    if FLAGS.config or run:
        recipe = FLAGS.config or run / RECIPE
        config = load_config(recipe)
        logging.info("Reading the data as %s says.", recipe)
    data = DataConfig() if config is None else config.data
    if FLAGS.format:
        data = dataclasses.replace(data, format=FLAGS.format)
    if run:
        splits = [_list_of(run, split) for split in splits]
    if classes is None and config is not None:
        classes = config.model.classes
    return read_data(data, FLAGS.data_dir, splits, classes)


def _run_of(model: Path) -> Path | None:
    """Returns the folder of the training run that a model is in, or is."""
    return next((folder for folder in (model, model.parent) if (folder / RECIPE).is_file()), None)


def _list_of(run: Path, split: str) -> str:
    """Returns the list that the run has written for a split, or the split itself."""
    path = run / LISTS / f"{split}.txt"
    return str(path) if path.is_file() else split
