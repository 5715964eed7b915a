"""Draws a small detection data set: `python -m refinedet_tf.cli.draw_shapes --output_dir shapes`."""

from absl import app, flags

from refinedet_tf.cli import exit_on_error
from refinedet_tf.data.shapes import draw_shapes


@exit_on_error
def main(argv: list[str]) -> None:
    """Draws the data set that the flags describe."""
    values = flags.FLAGS
    draw_shapes(values.output_dir, {"train": values.train, "val": values.val}, seed=values.seed)
    print(f"Drew {values.train + values.val} images in {values.output_dir}")


def run() -> None:
    """Entry point: defines the flags and parses them."""
    flags.DEFINE_string("output_dir", None, "New or empty folder for the data set, in VOC layout.", required=True)
    flags.DEFINE_integer("train", 400, "Images in the split `train`.", lower_bound=0)
    flags.DEFINE_integer("val", 100, "Images in the split `val`.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "The same seed draws the same images.", lower_bound=0)
    app.run(main)


if __name__ == "__main__":
    run()
