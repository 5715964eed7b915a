"""Compares exported files with the model they were made from: detections, average precision, size, time, memory.

python export/verify.py --model=work/best.keras --artifact=saved_model/1 --artifact=model.tflite --data_dir=photos
"""

from collections.abc import Sequence

import numpy as np
from absl import app, flags

from refinedet_tf.cli import exit_on_error
from refinedet_tf.config import DATA_FORMATS
from refinedet_tf.data.examples import Example
from refinedet_tf.data.pipeline import image_pipeline
from refinedet_tf.data.readers import read_data
from refinedet_tf.data.shapes import draw_image
from refinedet_tf.errors import ExportError
from refinedet_tf.model import RefineDet
from refinedet_tf.verification import table, verify, write_json
from refinedet_tf.weights import load_model

FLAGS = flags.FLAGS

COMPARED_IMAGES = 8


@exit_on_error
def main(argv: list[str]) -> None:
    """Prints the table; above a tolerance the exit code is 1."""
    del argv
    model = load_model(FLAGS.model)
    check(model, FLAGS.artifact, labelled_examples(model), FLAGS.json)


def check(model: RefineDet, paths: Sequence[str], examples: Sequence[Example], json_file: str | None = None) -> None:
    """Verifies exports and prints the table.

    Raises:
        ExportError: something is above its tolerance.
    """
    results = verify(model, paths, compared_images(examples), examples)
    print(table(results))
    if json_file:
        write_json(results, json_file)
    if not all(result.passed for result in results):
        raise ExportError(f"Not what the model detects: {', '.join(r.form for r in results if not r.passed)}.")


def labelled_examples(model: RefineDet) -> list[Example]:
    """The labelled images that the flags name, none without --data_dir."""
    if not FLAGS.data_dir:
        return []
    return read_data(FLAGS.format, FLAGS.data_dir, FLAGS.splits, model.config.classes).examples


def compared_images(examples: Sequence[Example]) -> list[np.ndarray]:
    """The first labelled images, or without any some drawn ones, of two sizes."""
    if examples:
        return [batch[0].numpy() for batch in image_pipeline(examples[:COMPARED_IMAGES])]
    rng = np.random.default_rng(0)
    return [draw_image(rng, size)[0] for size in [(240, 320), (320, 240)] * (COMPARED_IMAGES // 2)]


def define_data_flags() -> None:
    """Flags that the exports share."""
    flags.DEFINE_string("data_dir", None, "Labelled images: average precision is compared on them.")
    flags.DEFINE_enum("format", "voc", DATA_FORMATS, "Their format.")
    flags.DEFINE_list("splits", ["val"], "The parts to use, for VOC lists of ImageSets/Main, separated by commas.")


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "The .keras file of a trained model.", required=True)
    flags.DEFINE_multi_string("artifact", None, "A SavedModel folder or a .tflite file; repeatable.", required=True)
    flags.DEFINE_string("json", None, "A file for the figures.")
    define_data_flags()
    app.run(main)
