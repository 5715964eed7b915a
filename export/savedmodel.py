"""Exports a trained model as a SavedModel that detects on its own.

python export/savedmodel.py --model=work/best.keras --output_dir=saved_model/1
"""

import os
import shutil
from pathlib import Path

from absl import app, flags
from verify import check, define_data_flags, labelled_examples

from refinedet_tf.cli import exit_on_error
from refinedet_tf.serving import WEIGHTS, export_saved_model, write_warmup_requests
from refinedet_tf.weights import load_model

FLAGS = flags.FLAGS


@exit_on_error
def main(argv: list[str]) -> None:
    """Exports beside the target first, so that a half-written model is never found there."""
    del argv
    output_dir = Path(FLAGS.output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(f"{output_dir} exists and is not empty; choose another --output_dir.")
    model = load_model(FLAGS.model)
    examples = labelled_examples(model)
    unfinished = output_dir.with_name(f"~{output_dir.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    export_saved_model(model, str(unfinished), FLAGS.weights)
    if FLAGS.warmup_batch_sizes:
        write_warmup_requests(str(unfinished), model.config.input_size, FLAGS.warmup_batch_sizes)
    if output_dir.exists():
        output_dir.rmdir()
    os.replace(unfinished, output_dir)
    print(f"Exported {FLAGS.model} with {len(model.config.classes)} classes to {output_dir}")
    if FLAGS.verify:
        check(model, [str(output_dir)], examples)


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "The .keras file of a trained model.", required=True)
    flags.DEFINE_string("output_dir", None, "The folder to write; it must not exist or be empty.", required=True)
    flags.DEFINE_enum(
        "weights", "variables", WEIGHTS, "Variables, or constants of a type: float16 halves the size, not the time."
    )
    flags.DEFINE_multi_integer("warmup_batch_sizes", [], "Write TensorFlow Serving's warm-up requests; repeatable.")
    flags.DEFINE_bool("verify", True, "Compare it with the model: on labelled images, or without on drawn ones.")
    define_data_flags()
    app.run(main)
