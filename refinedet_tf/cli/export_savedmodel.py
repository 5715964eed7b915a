"""Exports a trained model as a SavedModel for servers.

refinedet export-savedmodel --model=work/best.keras --output_dir=saved_model/1
"""

from absl import flags

from refinedet_tf.cli.data_flags import define_data_flags
from refinedet_tf.cli.verify import COMPARED, check, labeled_examples

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("model", None, "A .keras file or the name of a pretrained model.", required=True)
    flags.DEFINE_string("output_dir", None, "The folder to write; it must not exist or be empty.", required=True)
    flags.DEFINE_enum(
        "weights",
        "variables",
        ["variables", "float32", "float16", "bfloat16"],
        "Variables, or constants of a type: float16 halves the size, not the time.",
    )
    flags.DEFINE_multi_integer("warmup_batch_sizes", [], "Adds warm-up requests for TensorFlow Serving. Repeatable.")
    flags.DEFINE_integer("max_pixels", 36_000_000, "Larger image files are flagged, not decoded.", lower_bound=1)
    flags.DEFINE_bool("verify", True, "Compare it with the model, on labeled images or, without any, on drawn ones.")
    define_data_flags(COMPARED)


def main() -> None:
    """Exports, and compares the result with the model."""
    from refinedet_tf.export import export_saved_model
    from refinedet_tf.weights import load_model

    model = load_model(FLAGS.model)
    examples = labeled_examples(model)
    export_saved_model(
        model,
        FLAGS.output_dir,
        weights=FLAGS.weights,
        warmup_batch_sizes=FLAGS.warmup_batch_sizes,
        max_pixels=FLAGS.max_pixels,
    )
    print(f"Exported {FLAGS.model} with {len(model.config.classes)} classes to {FLAGS.output_dir}")
    if FLAGS.verify:
        check(model, [FLAGS.output_dir], examples)
