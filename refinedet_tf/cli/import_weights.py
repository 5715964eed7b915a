"""Makes a model from a recipe and somebody's weights.

python -m refinedet_tf.cli.import_weights --config=RECIPE --weights=FILE --output=model.keras
"""

from pathlib import Path

from absl import app, flags

from refinedet_tf.cli import exit_on_error
from refinedet_tf.config import load_config
from refinedet_tf.errors import WeightFileError
from refinedet_tf.model import build_model
from refinedet_tf.weights import load_weights

FLAGS = flags.FLAGS


@exit_on_error
def main(argv: list[str]) -> None:
    """Loads the weights, prints what became of them and saves the model."""
    del argv
    if Path(FLAGS.output).suffix != ".keras":
        raise WeightFileError(f"--output={FLAGS.output}: the file's name must end in .keras.")
    model = build_model(load_config(FLAGS.config, FLAGS.set))
    print(load_weights(model, FLAGS.weights, FLAGS.class_map).summary())
    model.save(FLAGS.output)
    print(f"Saved {FLAGS.output} with {len(model.config.classes)} classes.")


def run() -> None:
    """Entry point: defines the flags and parses them."""
    flags.DEFINE_string("config", None, "The recipe, a YAML file.", required=True)
    flags.DEFINE_string("weights", None, "A .caffemodel, .pth, .keras, .h5 or .npz file, or imagenet.", required=True)
    flags.DEFINE_string("output", None, "The .keras file to write.", required=True)
    flags.DEFINE_string("class_map", None, "coco_to_voc, or a YAML or JSON file: our class name -> the file's index.")
    flags.DEFINE_multi_string("set", [], "A value that wins over the recipe's: model.width=256; repeatable.")
    app.run(main)


if __name__ == "__main__":
    run()
