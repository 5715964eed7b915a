"""Builds the model of a recipe and loads weights from a file into it.

refinedet import-weights --config=refinedet320_vgg16_voc07 --weights=FILE.caffemodel --output=model.keras
"""

from pathlib import Path

from absl import flags

from refinedet_tf.errors import WeightFileError

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string(
        "config", None, "The recipe: a name, such as refinedet320_vgg16_voc07, or a YAML file.", required=True
    )
    flags.DEFINE_string("weights", None, "A .caffemodel, .pth, .keras, .h5 or .npz file, imagenet, or the name of a "
                        "pretrained model.", required=True)  # fmt: skip
    flags.DEFINE_string("output", None, "The .keras file to write.", required=True)
    flags.DEFINE_string("class_map", None, "coco_to_voc, or a YAML or JSON file: our class name -> the file's index.")
    flags.DEFINE_multi_string("set", [], "Overrides a value of the recipe: model.width=256. Repeatable.")


def main() -> None:
    """Loads the weights, prints a report and saves the model."""
    from refinedet_tf.config import load_config
    from refinedet_tf.model import build_model
    from refinedet_tf.weights import load_weights

    if Path(FLAGS.output).suffix != ".keras":
        raise WeightFileError(f"--output={FLAGS.output}: the file's name must end in .keras.")
    model = build_model(load_config(FLAGS.config, FLAGS.set))
    print(load_weights(model, FLAGS.weights, FLAGS.class_map).summary())
    model.save(FLAGS.output)
    print(f"Saved {FLAGS.output} with {len(model.config.classes)} classes.")
