"""Average precision of a model on labeled images.

python -m refinedet_tf.cli.evaluate --model=MODEL --data_dir=DIR --splits=val
"""

import json
from pathlib import Path

from absl import app, flags

from refinedet_tf.cli import exit_on_error
from refinedet_tf.config import DATA_FORMATS
from refinedet_tf.data.readers import read_data
from refinedet_tf.evaluation.evaluator import evaluate
from refinedet_tf.inference.detector import Detector

FLAGS = flags.FLAGS


@exit_on_error
def main(argv: list[str]) -> None:
    """Prints VOC's and COCO's average precision for every class."""
    del argv
    detector = Detector.load(FLAGS.model)
    data = read_data(FLAGS.format, FLAGS.data_dir, FLAGS.splits, detector.classes)
    print(data.summary())
    result = evaluate(detector, data)
    print(result.table())
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(result.as_dict(), indent=1), encoding="utf-8")


def run() -> None:
    """Defines the flags and parses them."""
    flags.DEFINE_string("model", None, "A .keras file, a SavedModel folder or a .tflite file.", required=True)
    flags.DEFINE_enum("format", "voc", DATA_FORMATS, "The format of the data set.")
    flags.DEFINE_string("data_dir", None, "The data set.", required=True)
    flags.DEFINE_list("splits", ["val"], "The splits to evaluate on, separated by commas.")
    flags.DEFINE_string("json", None, "A file for the figures.")
    app.run(main)


if __name__ == "__main__":
    run()
