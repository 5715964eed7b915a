"""Measures the average precision of models or saved detections on labeled images.

refinedet evaluate --model=work/best.keras --data_dir=photos --splits=val
"""

import json
from pathlib import Path

from absl import flags

from refinedet_tf.config import DATA_FORMATS, EVALUATION_PROTOCOLS
from refinedet_tf.errors import ConfigError

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_multi_string("model", [], "A .keras file, a SavedModel folder or a .tflite file; repeatable.")
    flags.DEFINE_multi_string(
        "detections", [], "Saved detections: detections.json of `refinedet detect` or COCO's result JSON; repeatable."
    )
    flags.DEFINE_enum("format", "voc", DATA_FORMATS, "The format of the data set.")
    flags.DEFINE_string("data_dir", None, "The data set.", required=True)
    flags.DEFINE_list("splits", ["val"], "The splits to evaluate on, separated by commas.")
    flags.DEFINE_enum(
        "protocol", None, EVALUATION_PROTOCOLS, "How a .keras model detects; without it, by the model's own settings."
    )
    flags.DEFINE_string("json", None, "A file for the figures.")
    flags.DEFINE_string("coco_results", None, "A file for the detections in COCO's result format.")
    flags.DEFINE_string("voc_results", None, "A folder for the detections in the VOC server's format.")


def main() -> None:
    """Prints VOC's and COCO's average precision for every class, and a comparison if there are several models."""
    from refinedet_tf.evaluation.evaluator import comparison_table
    from refinedet_tf.evaluation.result_files import write_coco_results, write_voc_results

    sources = [*FLAGS.model, *FLAGS.detections]
    if not sources:
        raise ConfigError("Give --model or --detections to evaluate.")
    if len(sources) > 1 and (FLAGS.coco_results or FLAGS.voc_results):
        raise ConfigError("--coco_results and --voc_results take the detections of one model; give one.")
    results = {}
    for number, source in enumerate(sources):
        data, result = _evaluate(source, is_model=number < len(FLAGS.model))
        if not results:
            print(data.summary())
        results[source] = result
        print(f"\n{source}\n{result.table()}")
    if len(results) > 1:
        print(f"\n{comparison_table(results)}")
    if FLAGS.json:
        figures = {source: each.as_dict() for source, each in results.items()} if len(results) > 1 else result.as_dict()
        Path(FLAGS.json).write_text(json.dumps(figures, indent=1), encoding="utf-8")
    if FLAGS.coco_results:
        write_coco_results(FLAGS.coco_results, result.detections, data)
    if FLAGS.voc_results:
        write_voc_results(FLAGS.voc_results, result.detections, data)


def _evaluate(source: str, *, is_model: bool) -> tuple:
    """Returns the data, with the classes of the model, and the result."""
    from refinedet_tf.data.readers import read_data
    from refinedet_tf.evaluation.evaluator import evaluate
    from refinedet_tf.evaluation.result_files import read_detections
    from refinedet_tf.inference.detector import Detector
    from refinedet_tf.weights import load_model

    def read(classes: list[str] | None) -> object:
        return read_data(FLAGS.format, FLAGS.data_dir, FLAGS.splits, classes)

    if not is_model:
        data = read(None)
        return data, evaluate(read_detections(source, data), data)
    if FLAGS.protocol:
        model = load_model(source)
        data = read(model.config.classes)
        return data, evaluate(model, data, protocol=FLAGS.protocol)
    detector = Detector.load(source)
    data = read(detector.classes)
    return data, evaluate(detector, data)
