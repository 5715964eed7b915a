"""Writes a recipe that fits a data set and the devices of this machine.

refinedet new-recipe --data_dir=photos --output=my.yaml
"""

from pathlib import Path

from absl import flags

from refinedet_tf.config import DATA_FORMATS

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("data_dir", None, "The data set.", required=True)
    flags.DEFINE_string("output", None, "The recipe to write, a YAML file; it must not exist.", required=True)
    flags.DEFINE_enum("format", "voc", DATA_FORMATS, "The format of the data set.")
    flags.DEFINE_list("train_splits", ["train"], "The splits to train on, separated by commas.")
    flags.DEFINE_list("val_splits", ["val"], "The splits to evaluate on, separated by commas.")


def main() -> None:
    """Looks at the data and writes the recipe."""
    import tensorflow as tf

    from refinedet_tf.training.new_recipe import new_recipe

    gpus = len(tf.config.list_physical_devices("GPU"))
    recipe = new_recipe(FLAGS.format, FLAGS.data_dir, FLAGS.train_splits, FLAGS.val_splits, gpus=gpus)
    with Path(FLAGS.output).open("x", encoding="utf-8") as file:
        file.write(recipe)
    print(f"Wrote {FLAGS.output}. Look through it, then: refinedet train --config={FLAGS.output} --data_dir=...")
