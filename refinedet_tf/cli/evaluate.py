"""Measures the average precision of models or saved detections on labeled images.

refinedet evaluate --model=work/best.keras --data_dir=photos --splits=val
"""

import dataclasses
import json
import os
from pathlib import Path

from absl import flags

from refinedet_tf.cli.data_flags import define_data_flags, read_labeled_images
from refinedet_tf.config import EVALUATION_PROTOCOLS
from refinedet_tf.errors import ConfigError

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_multi_string(
        "model", [], "A .keras file, the name of a pretrained model, a SavedModel folder or a .tflite file; repeatable."
    )
    flags.DEFINE_multi_string(
        "detections", [], "Saved detections: detections.json of `refinedet detect` or COCO's result JSON; repeatable."
    )
    define_data_flags("The labeled images to evaluate on.", required=True)
    flags.DEFINE_enum(
        "protocol", None, EVALUATION_PROTOCOLS, "How a .keras model detects; without it, by the model's own settings."
    )
    flags.DEFINE_string(
        "report", None, "A folder for evaluation.html and evaluation.json, which show why the detector errs."
    )
    flags.DEFINE_bool(
        "save_thresholds",
        False,
        "Write the score threshold with the best F1 of each class into the .keras file, as `config.score_thresholds`.",
    )
    flags.DEFINE_bool("robustness", False, "Also evaluate on compressed, blurred, darker, brighter and smaller images.")
    flags.DEFINE_string("json", None, "A file for the figures.")
    flags.DEFINE_string("coco_results", None, "A file for the detections in COCO's result format.")
    flags.DEFINE_string("voc_results", None, "A folder for the detections in the VOC server's format.")


def main() -> None:
    """Prints VOC's and COCO's average precision for every class, and a comparison if there are several models."""
    from refinedet_tf.evaluation.analysis.analysis import analyze
    from refinedet_tf.evaluation.analysis.report import write_report
    from refinedet_tf.evaluation.evaluator import comparison_table
    from refinedet_tf.evaluation.result_files import write_coco_results, write_voc_results
    from refinedet_tf.evaluation.robustness import robustness_table

    sources = [*FLAGS.model, *FLAGS.detections]
    if not sources:
        raise ConfigError("Give --model or --detections to evaluate.")
    for flag in ("coco_results", "voc_results", "report", "robustness", "save_thresholds"):
        if FLAGS[flag].value and len(sources) > 1:
            raise ConfigError(f"--{flag} is for one model; {len(sources)} are given.")
    if FLAGS.save_thresholds and not (FLAGS.model and FLAGS.model[0].endswith(".keras")):
        raise ConfigError("--save_thresholds needs a .keras --model to write to.")
    if FLAGS.robustness and (FLAGS.detections or FLAGS.protocol):
        raise ConfigError("--robustness needs a --model and no --protocol.")
    results = {}
    for number, source in enumerate(sources):
        data, result = _evaluate(source, is_model=number < len(FLAGS.model))
        if not results:
            print(data.summary())
        results[source] = result
        print(f"\n{source}\n{result.table()}")
    if len(results) > 1:
        print(f"\n{comparison_table(results)}")
    robustness = _robustness(sources[0], data) if FLAGS.robustness else []
    if robustness:
        print(f"\n{robustness_table(robustness)}")
    if FLAGS.json:
        figures = {source: each.as_dict() for source, each in results.items()} if len(results) > 1 else result.as_dict()
        Path(FLAGS.json).write_text(json.dumps(figures, indent=1), encoding="utf-8")
    if FLAGS.coco_results:
        write_coco_results(FLAGS.coco_results, result.detections, data)
    if FLAGS.voc_results:
        write_voc_results(FLAGS.voc_results, result.detections, data)
    if FLAGS.report or FLAGS.save_thresholds:
        analysis = analyze(result, data)
    if FLAGS.save_thresholds:
        _save_thresholds(sources[0], analysis.score_thresholds)
    if FLAGS.report:
        page = write_report(analysis, data, FLAGS.report, title=sources[0], robustness=robustness)
        print(f"\n{page}")


def _save_thresholds(path: str, thresholds: dict[str, float]) -> None:
    from refinedet_tf.weights import load_model

    model = load_model(path)
    model.config = dataclasses.replace(model.config, score_thresholds=thresholds)
    temporary = Path(path).with_name(f"~{Path(path).name}")
    model.save(temporary)
    os.replace(temporary, path)
    print("\nScore thresholds: " + ", ".join(f"{name} {value:.3f}" for name, value in thresholds.items()))


def _robustness(model: str, data: object) -> list:
    from refinedet_tf.evaluation.robustness import evaluate_robustness
    from refinedet_tf.inference.detector import Detector

    return evaluate_robustness(Detector.load(model), data)


def _evaluate(source: str, *, is_model: bool) -> tuple:
    """Returns the data, with the classes of the model, and the result."""
    from refinedet_tf.evaluation.evaluator import evaluate
    from refinedet_tf.evaluation.result_files import read_detections
    from refinedet_tf.inference.detector import Detector
    from refinedet_tf.weights import load_model

    if not is_model:
        data = read_labeled_images(None, FLAGS.splits, None)
        return data, evaluate(read_detections(source, data), data)
    if FLAGS.protocol:
        model = load_model(source)
        data = read_labeled_images(source, FLAGS.splits, model.config.classes)
        return data, evaluate(model, data, protocol=FLAGS.protocol)
    detector = Detector.load(source)
    data = read_labeled_images(source, FLAGS.splits, detector.classes)
    return data, evaluate(detector, data)
