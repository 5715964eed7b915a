"""Trains a detector: a recipe and a folder of images with boxes in, checkpoints and average precision out.

python train.py --config=configs/NAME.yaml --data_dir=DIR --work_dir=DIR [--set train.batch_size=8 ...]
"""

from absl import app, flags

from refinedet_tf.cli import exit_on_error
from refinedet_tf.config import load_config
from refinedet_tf.training.trainer import train

FLAGS = flags.FLAGS


@exit_on_error
def main(argv: list[str]) -> None:
    """Reads the recipe and trains."""
    del argv
    train(load_config(FLAGS.config, FLAGS.set), FLAGS.data_dir, FLAGS.work_dir)


if __name__ == "__main__":
    flags.DEFINE_string("config", None, "The recipe, a YAML file.", required=True)
    flags.DEFINE_string("data_dir", None, "The data set, in the format that the recipe names.", required=True)
    flags.DEFINE_string("work_dir", None, "Where checkpoints, logs and results go.", required=True)
    flags.DEFINE_multi_string("set", [], "A value that wins over the recipe's: train.batch_size=8; repeatable.")
    app.run(main)
