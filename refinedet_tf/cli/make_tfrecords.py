"""Writes labeled images as record files with the TensorFlow Object Detection API's feature names.

refinedet make-tfrecords --format=coco --data_dir=COCO --splits=train2017,val2017 --output_dir=records
"""

from absl import flags

from refinedet_tf.config import DATA_FORMATS

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_enum("format", "voc", DATA_FORMATS, "The format of the data set.")
    flags.DEFINE_string("data_dir", None, "The data set.", required=True)
    flags.DEFINE_list("splits", None, "The splits to write, separated by commas.", required=True)
    flags.DEFINE_list("classes", None, "The class names in the order of their labels; by default the data's.")
    flags.DEFINE_string("output_dir", None, "The folder for the records; any path of tf.io.gfile.", required=True)
    flags.DEFINE_integer("shards", 8, "The number of files of each split.", lower_bound=1)


def main() -> None:
    """Writes each split as a set of record files."""
    from refinedet_tf.data.readers import read_data
    from refinedet_tf.data.record_writer import write_tfrecords

    classes = FLAGS.classes or None
    sets = {}
    for split in FLAGS.splits:
        sets[split] = read_data(FLAGS.format, FLAGS.data_dir, [split], classes)
        print(f"{split}: {sets[split].summary()}")
        classes = classes or sets[split].classes  # the same labels in all splits
    for split, example_set in sets.items():
        paths = write_tfrecords(example_set, FLAGS.output_dir, split.replace("/", "_"), FLAGS.shards)
        print(f"Wrote {len(example_set)} images to {len(paths)} files, {paths[0]} and so on")
