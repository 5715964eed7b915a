"""Trains a detector from a recipe and labeled images.

Writes checkpoints, logs, curves and average precision to the work folder. A stopped training resumes when the same
command is given again.

    refinedet train --config=refinedet320_vgg16_voc07 --data_dir=VOCdevkit --work_dir=work/voc --set train.batch_size=8
"""

import dataclasses

from absl import flags

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string(
        "config", None, "The recipe: a name, such as refinedet320_vgg16_voc07, or a YAML file.", required=True
    )
    flags.DEFINE_string("data_dir", None, "The data set, in the recipe's data.format.", required=True)
    flags.DEFINE_string("work_dir", None, "The folder for checkpoints, logs and results.", required=True)
    flags.DEFINE_string("weights", None, "Initial weights instead of the recipe's train.weights: a file, imagenet, "
                        "or the name of a pretrained model.")  # fmt: skip
    flags.DEFINE_multi_string("set", [], "Overrides a value of the recipe: train.batch_size=8. Repeatable.")


def main() -> None:
    """Loads the recipe and trains."""
    from refinedet_tf.config import load_config
    from refinedet_tf.training.trainer import train

    config = load_config(FLAGS.config, FLAGS.set)
    if FLAGS.weights:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, weights=FLAGS.weights))
    train(config, FLAGS.data_dir, FLAGS.work_dir)
