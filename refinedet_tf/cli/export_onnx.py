"""Exports a trained model as an ONNX file for ONNX Runtime or OpenVINO.

refinedet export-onnx --model=work/best.keras --output=model.onnx
"""

from absl import flags

from refinedet_tf.cli.data_flags import define_data_flags
from refinedet_tf.cli.verify import COMPARED, check, labeled_examples

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("model", None, "A .keras file or the name of a pretrained model.", required=True)
    flags.DEFINE_string("output", None, "The .onnx file to write.", required=True)
    flags.DEFINE_bool("verify", True, "Compare it with the model, on labeled images or, without any, on drawn ones.")
    define_data_flags(COMPARED)


def main() -> None:
    """Exports, and compares the result with the model."""
    from refinedet_tf.export import export_onnx
    from refinedet_tf.weights import load_model

    model = load_model(FLAGS.model)
    examples = labeled_examples(model)
    export_onnx(model, FLAGS.output)
    print(f"Exported {FLAGS.model} with {len(model.config.classes)} classes to {FLAGS.output}")
    if FLAGS.verify:
        check(model, [FLAGS.output], examples)
