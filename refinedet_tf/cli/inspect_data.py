"""What a data set holds and everything that is wrong with it.

python -m refinedet_tf.cli.inspect_data --config=configs/NAME.yaml --data_dir=DIR --picture=samples.png --strict
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import app, flags

from refinedet_tf.cli import exit_on_error
from refinedet_tf.config import DATA_FORMATS, Config, load_config
from refinedet_tf.data.examples import Defect, ExampleSet
from refinedet_tf.data.inspection import as_text, inspect_data
from refinedet_tf.data.readers import read_data
from refinedet_tf.errors import DataError
from refinedet_tf.ops import images as image_ops
from refinedet_tf.visualization import draw_detections, save_gallery

FLAGS = flags.FLAGS


@exit_on_error
def main(argv: list[str]) -> None:
    """Reads all splits, prints the report and draws samples."""
    del argv
    config = load_config(FLAGS.config, FLAGS.set) if FLAGS.config else Config()
    classes = config.model.classes if FLAGS.config else None
    splits = FLAGS.splits or [*config.data.train_splits, *config.data.val_splits]
    data_format = FLAGS.format or config.data.format
    sets = {split: _read(data_format, split, classes) for split in dict.fromkeys(splits)}
    report = inspect_data(sets, config)
    print(as_text(report))
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(report, indent=1), encoding="utf-8")
    if FLAGS.picture:
        _draw_samples(sets)
    if FLAGS.strict and report["errors"]:
        sys.exit(1)


def _read(data_format: str, split: str, classes: list[str] | None) -> ExampleSet:
    """A split; if the classes of the recipe do not fit, those of the data with the misfit as the first defect."""
    try:
        return read_data(data_format, FLAGS.data_dir, [split], classes)
    except DataError as error:
        found = read_data(data_format, FLAGS.data_dir, [split], None)
        return dataclasses.replace(found, defects=[Defect(split, f"classes do not fit: {error}"), *found.defects])


def _draw_samples(sets: dict[str, ExampleSet]) -> None:
    samples = [(split, found.classes, example) for split, found in sets.items() for example in found.examples]
    order = np.random.default_rng(FLAGS.seed).permutation(len(samples))[: FLAGS.samples]
    pictures, titles = [], []
    for split, classes, example in (samples[index] for index in order):
        image = image_ops.decode(tf.constant(example.read_image())).numpy()
        pictures.append(draw_detections(image, example.boxes, example.classes, class_names=classes))
        titles.append(f"{split}: {example.image_id}")
    save_gallery(pictures, FLAGS.picture, titles=titles)


def run() -> None:
    """Entry point: defines the flags and parses them."""
    flags.DEFINE_string("config", None, "The recipe; without one, the data's own classes and the paper's anchors.")
    flags.DEFINE_multi_string("set", [], "A value that wins over the recipe's: model.input_size=[512,512]; repeatable.")
    flags.DEFINE_string("data_dir", None, "The data set.", required=True)
    flags.DEFINE_enum("format", None, DATA_FORMATS, "The format of the data set; by default the recipe's, or voc.")
    flags.DEFINE_list("splits", None, "What to inspect, separated by commas; by default all of the recipe.")
    flags.DEFINE_string("json", None, "A file for the whole report.")
    flags.DEFINE_string("picture", None, "A PNG for random samples with their boxes.")
    flags.DEFINE_integer("samples", 12, "Images in the picture.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Decides which images are in the picture.")
    flags.DEFINE_bool("strict", False, "Exit with code 1 if there is any error.")
    app.run(main)


if __name__ == "__main__":
    run()
