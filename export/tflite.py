"""Exports a trained model as a TFLite file for phones and boards.

python export/tflite.py --model=work/best.keras --output=model.tflite --quantize=int8 --data_dir=photos --splits=train
"""

import shutil
from pathlib import Path

from absl import app, flags
from verify import check, define_data_flags, labelled_examples

from refinedet_tf.cli import exit_on_error
from refinedet_tf.data.pipeline import image_pipeline
from refinedet_tf.data.readers import read_data
from refinedet_tf.inference import numpy_decoder
from refinedet_tf.inference.tflite_runner import TFLiteModel
from refinedet_tf.serving.tensor_ranges import measure_tensor_ranges, write_tensor_ranges
from refinedet_tf.serving.tflite import INPUT_TYPES, POSTPROCESSES, QUANTIZATIONS, convert_tflite
from refinedet_tf.weights import load_model

FLAGS = flags.FLAGS
MEASURED_IMAGES = 8


@exit_on_error
def main(argv: list[str]) -> None:
    """Converts, writes, and compares what was written with the model."""
    del argv
    output = Path(FLAGS.output)
    if output.exists():
        raise FileExistsError(f"{output} exists; choose another --output.")
    model = load_model(FLAGS.model)
    examples = labelled_examples(model)
    photos = []
    if FLAGS.quantize == "int8" and FLAGS.data_dir:
        data = read_data(FLAGS.format, FLAGS.data_dir, FLAGS.calibration_splits, model.config.classes)
        photos = [batch[0].numpy() for batch in image_pipeline(data.examples[: FLAGS.calibration_images])]
    kind = (FLAGS.postprocess, FLAGS.input_type)
    content = convert_tflite(model, FLAGS.quantize, *kind, photos, FLAGS.float_layers)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(content)
    if FLAGS.postprocess == "none":
        shutil.copy(numpy_decoder.__file__, output.with_name("decode_detections.py"))
    print(f"Exported {FLAGS.model} with {len(model.config.classes)} classes to {output}")
    if FLAGS.quantize == "int8" and FLAGS.ranges:
        served = TFLiteModel(output)
        images = [served.prepare(photo) for photo in photos[:MEASURED_IMAGES]]
        layers = [layer.name for layer in model.layers]
        ranges = measure_tensor_ranges(convert_tflite(model, "none", *kind), content, images, layers)
        write_tensor_ranges(ranges, FLAGS.ranges)
        worst = sorted(ranges, key=lambda entry: entry.precision)[:5]
        print("Least precise:", ", ".join(f"{entry.layer} {entry.precision:.0f} dB" for entry in worst))
    if FLAGS.verify:
        check(model, [str(output)], examples)


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "The .keras file of a trained model.", required=True)
    flags.DEFINE_string("output", None, "The .tflite file to write.", required=True)
    flags.DEFINE_enum("quantize", "none", QUANTIZATIONS, "Precision: of the weights, or with int8 of the network.")
    flags.DEFINE_enum("postprocess", "op", POSTPROCESSES, "Suppress inside, or give raw predictions and a decoder.")
    flags.DEFINE_enum("input_type", "uint8", INPUT_TYPES, "Type of the pixels, 0..255.")
    flags.DEFINE_list("calibration_splits", ["train"], "Parts of the data to measure int8's ranges on.")
    flags.DEFINE_integer("calibration_images", 200, "At most so many images to measure on.", lower_bound=1)
    flags.DEFINE_list("float_layers", [], "With int8: layers of the model that stay in float32.")
    flags.DEFINE_string("ranges", None, "With int8: a CSV file for the range and the precision of every tensor.")
    flags.DEFINE_bool("verify", True, "Compare the file with the model: on labelled images, or without on drawn ones.")
    define_data_flags()
    app.run(main)
