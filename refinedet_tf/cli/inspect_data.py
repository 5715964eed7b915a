"""Reports what a data set contains and everything that is wrong with it.

refinedet inspect-data --config=my.yaml --data_dir=photos --picture=samples.png --strict
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from refinedet_tf.config import DATA_FORMATS, Config, DataConfig, load_config
from refinedet_tf.errors import DataError

if TYPE_CHECKING:
    from refinedet_tf.data.examples import ExampleSet

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string(
        "config",
        None,
        "The recipe, a name or a YAML file; without one, the data's own classes and the paper's anchors.",
    )
    flags.DEFINE_multi_string("set", [], "Overrides a value of the recipe: model.input_size=[512,512]. Repeatable.")
    flags.DEFINE_string("data_dir", None, "The data set.", required=True)
    flags.DEFINE_enum("format", None, DATA_FORMATS, "The format of the data set; by default the recipe's, or voc.")
    flags.DEFINE_list("splits", None, "The splits to inspect, separated by commas; by default all of the recipe's.")
    flags.DEFINE_string("json", None, "A file for the whole report.")
    flags.DEFINE_string("picture", None, "A PNG file for random samples with their boxes.")
    flags.DEFINE_integer("samples", 12, "The number of images in the picture.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "The seed that chooses the images of the picture.")
    flags.DEFINE_bool("strict", False, "Exit with code 1 if the data has any error.")


def main() -> int:
    """Reads all splits, prints the report and draws samples; returns the exit code."""
    from refinedet_tf.data.inspection import as_text, inspect_data

    config = load_config(FLAGS.config, FLAGS.set) if FLAGS.config else Config()
    classes = config.model.classes if FLAGS.config else None
    splits = FLAGS.splits or [*config.data.train_splits, *config.data.val_splits]
    data = dataclasses.replace(config.data, format=FLAGS.format) if FLAGS.format else config.data
    sets = {split: _read(data, split, classes) for split in dict.fromkeys(splits)}
    report = inspect_data(sets, config)
    print(as_text(report))
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(report, indent=1), encoding="utf-8")
    if FLAGS.picture:
        _draw_samples(sets)
    return 1 if FLAGS.strict and report["errors"] else 0


def _read(data: DataConfig, split: str, classes: list[str] | None) -> ExampleSet:
    """Reads a split; if the recipe's classes do not fit, with the data's own and the mismatch as the first defect."""
    from refinedet_tf.data.examples import Defect
    from refinedet_tf.data.readers import read_data

    try:
        return read_data(data, FLAGS.data_dir, [split], classes)
    except DataError as error:
        every_class = dataclasses.replace(data, rename={}, other_classes="error")
        found = read_data(every_class, FLAGS.data_dir, [split], None)
        return dataclasses.replace(found, defects=[Defect(split, f"classes do not fit: {error}"), *found.defects])


def _draw_samples(sets: dict[str, ExampleSet]) -> None:
    """Draws random samples of all splits with their boxes."""
    import numpy as np
    import tensorflow as tf

    from refinedet_tf.ops import images as image_ops
    from refinedet_tf.visualization import draw_detections, save_gallery

    samples = [(split, found.classes, example) for split, found in sets.items() for example in found.examples]
    order = np.random.default_rng(FLAGS.seed).permutation(len(samples))[: FLAGS.samples]
    pictures, titles = [], []
    for split, classes, example in (samples[index] for index in order):
        image = image_ops.decode(tf.constant(example.read_image())).numpy()
        pictures.append(draw_detections(image, example.boxes, example.classes, class_names=classes))
        titles.append(f"{split}: {example.image_id}")
    save_gallery(pictures, FLAGS.picture, titles=titles)
