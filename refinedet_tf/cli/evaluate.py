"""Average precision of a model on labelled images.

python -m refinedet_tf.cli.evaluate --model=MODEL --data_dir=DIR --splits=val
"""

import json
from pathlib import Path

from absl import app, flags

from refinedet_tf.cli import exit_on_error
from refinedet_tf.config import DATA_FORMATS
from refinedet_tf.data.pipeline import image_pipeline
from refinedet_tf.data.readers import read_data
from refinedet_tf.evaluation.coco import coco_average_precision
from refinedet_tf.evaluation.evaluator import detections_to_images, evaluate, examples_to_truths
from refinedet_tf.inference.detector import Detector

FLAGS = flags.FLAGS


@exit_on_error
def main(argv: list[str]) -> None:
    """Prints VOC AP for every class, and COCO's AP."""
    del argv
    detector = Detector.load(FLAGS.model)
    example_set = read_data(FLAGS.format, FLAGS.data_dir, FLAGS.splits, detector.classes)
    examples = example_set.examples
    print(example_set.summary())

    detections = detector.predict(image_pipeline(examples))
    result = evaluate(lambda images: detections, examples, detector.classes, image_pipeline(examples))
    sizes = [(example.height, example.width) for example in examples]
    coco = coco_average_precision(
        detections_to_images(detections, sizes), examples_to_truths(examples), detector.classes
    )
    print(result.table())
    print(f"COCO: AP {coco['AP']:.3f}, AP50 {coco['AP50']:.3f}, AP75 {coco['AP75']:.3f}")
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps({"voc": result.as_dict(), "coco": coco}, indent=1), encoding="utf-8")


def run() -> None:
    """Entry point: defines the flags and parses them."""
    flags.DEFINE_string("model", None, "A .keras file, a SavedModel folder or a .tflite file.", required=True)
    flags.DEFINE_enum("format", "voc", DATA_FORMATS, "The format of the data set.")
    flags.DEFINE_string("data_dir", None, "The data set.", required=True)
    flags.DEFINE_list("splits", ["val"], "What to evaluate on, separated by commas.")
    flags.DEFINE_string("json", None, "A file for the figures.")
    app.run(main)


if __name__ == "__main__":
    run()
