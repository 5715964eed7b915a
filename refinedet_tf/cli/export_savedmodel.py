"""Exports a trained model as a SavedModel for servers.

refinedet export-savedmodel --model=work/best.keras --output_dir=saved_model/1
"""

import os
import shutil
from pathlib import Path

from absl import flags

from refinedet_tf.cli.verify import check, define_data_flags, labeled_examples
from refinedet_tf.errors import ExportError

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("model", None, "The .keras file of a trained model.", required=True)
    flags.DEFINE_string("output_dir", None, "The folder to write; it must not exist or be empty.", required=True)
    flags.DEFINE_enum(
        "weights",
        "variables",
        ["variables", "float32", "float16", "bfloat16"],
        "Variables, or constants of a type: float16 halves the size, not the time.",
    )
    flags.DEFINE_multi_integer("warmup_batch_sizes", [], "Adds warm-up requests for TensorFlow Serving. Repeatable.")
    flags.DEFINE_bool("verify", True, "Compare it with the model, on labeled images or, without any, on drawn ones.")
    define_data_flags()


def main() -> None:
    """Exports to a temporary folder first, so that the target never holds a half-written model."""
    from refinedet_tf.serving import export_saved_model, write_warmup_requests
    from refinedet_tf.weights import load_model

    output_dir = Path(FLAGS.output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ExportError(f"{output_dir} exists and is not empty; choose another --output_dir.")
    model = load_model(FLAGS.model)
    examples = labeled_examples(model)
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
