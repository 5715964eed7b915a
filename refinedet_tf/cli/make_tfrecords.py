"""Labelled images to record files with the feature names of the TensorFlow Object Detection API.

python -m refinedet_tf.cli.make_tfrecords --format=coco --data_dir=DIR --splits=train2017,val2017 --output_dir=DIR
"""

from absl import app, flags

from refinedet_tf.cli import exit_on_error
from refinedet_tf.config import DATA_FORMATS
from refinedet_tf.data.readers import read_data
from refinedet_tf.data.readers.tfrecords import write_tfrecords

FLAGS = flags.FLAGS


@exit_on_error
def main(argv: list[str]) -> None:
    """Writes each split as a set of records of its name."""
    del argv
    classes = FLAGS.classes or None
    sets = {}
    for split in FLAGS.splits:
        sets[split] = read_data(FLAGS.format, FLAGS.data_dir, [split], classes)
        print(f"{split}: {sets[split].summary()}")
        classes = classes or sets[split].classes  # the same labels in all splits
    for split, example_set in sets.items():
        paths = write_tfrecords(example_set, FLAGS.output_dir, split.replace("/", "_"), FLAGS.shards)
        print(f"Wrote {len(example_set)} images to {len(paths)} files, {paths[0]} and so on")


def run() -> None:
    """Entry point: defines the flags and parses them."""
    flags.DEFINE_enum("format", "voc", DATA_FORMATS, "The format of the data set.")
    flags.DEFINE_string("data_dir", None, "The data set.", required=True)
    flags.DEFINE_list("splits", None, "What to write, separated by commas; a set of records for each.", required=True)
    flags.DEFINE_list("classes", None, "Names of the classes in the order of their labels; by default the data's.")
    flags.DEFINE_string("output_dir", None, "The folder for the records; any path of tf.io.gfile.", required=True)
    flags.DEFINE_integer("shards", 8, "Files of each split.", lower_bound=1)
    app.run(main)


if __name__ == "__main__":
    run()
