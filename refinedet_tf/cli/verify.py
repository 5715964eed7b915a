"""Compares exported files with the model they were made from.

Prints a table of detections, average precision, size, time and memory; fails if anything exceeds its tolerance.

    refinedet verify --model=work/best.keras --artifact=saved_model/1 --artifact=model.tflite --data_dir=photos
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from refinedet_tf.cli.data_flags import define_data_flags, read_labeled_images

if TYPE_CHECKING:
    from refinedet_tf.data.examples import Example
    from refinedet_tf.model import RefineDet

FLAGS = flags.FLAGS
COMPARED = "Labeled images on which average precision is compared."


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("model", None, "A .keras file or the name of a pretrained model.", required=True)
    flags.DEFINE_multi_string(
        "artifact", None, "A SavedModel folder, .tflite or .onnx file. Repeatable.", required=True
    )
    flags.DEFINE_string("json", None, "A file for the figures.")
    define_data_flags(COMPARED)


def main() -> None:
    """Verifies the artifacts that the flags name."""
    from refinedet_tf.weights import load_model

    model = load_model(FLAGS.model)
    check(model, FLAGS.artifact, labeled_examples(model), FLAGS.json)


def check(model: RefineDet, paths: Sequence[str], examples: Sequence[Example], json_file: str | None = None) -> None:
    """Verifies exported files and prints the table.

    Raises:
        ExportError: something exceeds its tolerance.
    """
    from refinedet_tf.verification import require_passed, table, verify, write_json

    results = verify(model, paths, examples=examples)
    print(table(results))
    if json_file:
        write_json(results, json_file)
    require_passed(results)


def labeled_examples(model: RefineDet) -> list[Example]:
    """Returns the labeled images that the flags name, none without --data_dir."""
    if not FLAGS.data_dir:
        return []
    return read_labeled_images(FLAGS.model, FLAGS.splits, model.config.classes).examples
