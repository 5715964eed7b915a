"""Exports a trained model as a TFLite file for phones and boards.

refinedet export-tflite --model=work/best.keras --output=model.tflite --quantize=int8 --data_dir=photos
"""

from absl import flags

from refinedet_tf.cli.data_flags import define_data_flags, read_labeled_images
from refinedet_tf.cli.verify import COMPARED, check, labeled_examples

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("model", None, "A .keras file or the name of a pretrained model.", required=True)
    flags.DEFINE_string("output", None, "The .tflite file to write.", required=True)
    quantizations = ["none", "float16", "dynamic", "int8"]
    flags.DEFINE_enum("quantize", "none", quantizations, "Precision of the weights, or with int8 of the network.")
    flags.DEFINE_enum("postprocess", "op", ["op", "none"], "Suppress in the file, or output raw predictions.")
    flags.DEFINE_enum("input_type", "uint8", ["uint8", "float32"], "The type of the pixels, 0..255.")
    flags.DEFINE_list("calibration_splits", ["train"], "Splits on which int8 ranges are measured.")
    flags.DEFINE_integer("calibration_images", 200, "The number of images to measure on, at most.", lower_bound=1)
    flags.DEFINE_list("float_layers", [], "With int8: layers of the model that stay in float32.")
    flags.DEFINE_string("ranges", None, "With int8: a CSV file for the range and the precision of every tensor.")
    flags.DEFINE_bool("verify", True, "Compare it with the model, on labeled images or, without any, on drawn ones.")
    define_data_flags(COMPARED)


def main() -> None:
    """Exports, and compares the result with the model."""
    from refinedet_tf.export import export_tflite
    from refinedet_tf.weights import load_model

    model = load_model(FLAGS.model)
    examples = labeled_examples(model)
    calibration = []
    if FLAGS.quantize == "int8" and FLAGS.data_dir:
        data = read_labeled_images(FLAGS.model, FLAGS.calibration_splits, model.config.classes)
        calibration = data.examples[: FLAGS.calibration_images]
    export = export_tflite(
        model,
        FLAGS.output,
        quantize=FLAGS.quantize,
        postprocess=FLAGS.postprocess,
        input_type=FLAGS.input_type,
        calibration=calibration,
        float_layers=FLAGS.float_layers,
        ranges=FLAGS.ranges,
    )
    print(f"Exported {FLAGS.model} with {len(model.config.classes)} classes to {FLAGS.output}")
    if export.ranges:
        worst = sorted(export.ranges, key=lambda entry: entry.precision)[:5]
        print("Least precise:", ", ".join(f"{entry.layer} {entry.precision:.0f} dB" for entry in worst))
    if FLAGS.verify:
        check(model, [FLAGS.output], examples)
