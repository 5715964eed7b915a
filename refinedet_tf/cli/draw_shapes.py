"""Draws a small labeled data set in VOC layout.

refinedet draw-shapes --output_dir=shapes
"""

from absl import flags

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("output_dir", None, "The folder to write; it must not exist or be empty.", required=True)
    flags.DEFINE_integer("train", 400, "The number of images in the split train.", lower_bound=0)
    flags.DEFINE_integer("val", 100, "The number of images in the split val.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "The seed; the same seed draws the same images.", lower_bound=0)


def main() -> None:
    """Draws the data set that the flags describe."""
    from refinedet_tf.data.shapes import draw_shapes

    draw_shapes(FLAGS.output_dir, {"train": FLAGS.train, "val": FLAGS.val}, seed=FLAGS.seed)
    print(f"Drew {FLAGS.train + FLAGS.val} images in {FLAGS.output_dir}")
