"""Draws a small detection data set: `python -m refinedet_tf.cli.draw_shapes --output_dir shapes`."""

import sys

from absl import app, flags

from refinedet_tf.data.examples import DataError
from refinedet_tf.data.shapes import draw_shapes


def main(argv: list[str]) -> int:
    """Draws the data set that the flags describe; returns the exit code."""
    values = flags.FLAGS
    try:
        if argv[1:]:
            raise DataError(f"Unexpected arguments: {' '.join(argv[1:])}; everything is said with flags.")
        draw_shapes(values.output_dir, {"train": values.train, "val": values.val}, seed=values.seed)
    except (DataError, OSError) as error:
        print(f"draw_shapes: {error}", file=sys.stderr)
        return 1
    print(f"Drew {values.train + values.val} images in {values.output_dir}")
    return 0


def run() -> None:
    """Entry point: defines the flags and parses them."""
    flags.DEFINE_string("output_dir", None, "New or empty folder for the data set, in VOC layout.", required=True)
    flags.DEFINE_integer("train", 400, "Images in the split `train`.", lower_bound=0)
    flags.DEFINE_integer("val", 100, "Images in the split `val`.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "The same seed draws the same images.", lower_bound=0)
    app.run(main)


if __name__ == "__main__":
    run()
