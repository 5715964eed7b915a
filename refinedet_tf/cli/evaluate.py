"""Measures the average precision of a model on labeled images.

refinedet evaluate --model=work/best.keras --data_dir=photos --splits=val
"""

import json
from pathlib import Path

from absl import flags

from refinedet_tf.config import DATA_FORMATS

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("model", None, "A .keras file, a SavedModel folder or a .tflite file.", required=True)
    flags.DEFINE_enum("format", "voc", DATA_FORMATS, "The format of the data set.")
    flags.DEFINE_string("data_dir", None, "The data set.", required=True)
    flags.DEFINE_list("splits", ["val"], "The splits to evaluate on, separated by commas.")
    flags.DEFINE_string("json", None, "A file for the figures.")


def main() -> None:
    """Prints VOC's and COCO's average precision for every class."""
    from refinedet_tf.data.readers import read_data
    from refinedet_tf.evaluation.evaluator import evaluate
    from refinedet_tf.inference.detector import Detector

    detector = Detector.load(FLAGS.model)
    data = read_data(FLAGS.format, FLAGS.data_dir, FLAGS.splits, detector.classes)
    print(data.summary())
    result = evaluate(detector, data)
    print(result.table())
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(result.as_dict(), indent=1), encoding="utf-8")
