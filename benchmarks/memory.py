"""Memory of a training step at the recipe's batch, by XLA's own analysis of its buffers; nothing is computed.

python benchmarks/memory.py [--config=refinedet320_vgg16_voc07 --config=refinedet512_vgg16_voc07] [--batch_size=32]

XLA compiles the step for this machine's CPU, from shapes alone, and says how much memory it lays out: weights, momenta,
inputs, and all activations and gradients that live at the same time. On a GPU fusion and layouts differ, and
convolutions take workspace on top, so the figures are an estimate there; the card named is the smallest with a tenth
more than the total.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from absl import app, flags

from refinedet_tf.config import load_config
from refinedet_tf.model import build_model
from refinedet_tf.training.optimizers import build_optimizer

FLAGS = flags.FLAGS
PARTS = ("parameter", "preallocated-temp", "total")
OVERRIDES = ["train.weights=null"]
CARDS = (8, 12, 16, 24, 32, 40, 48, 80, 141)  # GB of usual cards


def compile_step(name):
    """Compiles a training step; XLA writes its analysis where XLA_FLAGS says."""
    config = load_config(name, OVERRIDES)
    model = build_model(config, dtype=FLAGS.precision)
    model.compile(build_optimizer(config.train, 100))
    model.optimizer.build(model.trainable_variables)
    batch, boxes = FLAGS.batch_size or config.train.batch_size, config.data.max_boxes

    @tf.function(jit_compile=True)
    def step(images, boxes, classes):
        return model.train_step((images, {"boxes": boxes, "classes": classes}))

    shapes = (
        tf.TensorSpec([batch, *config.model.input_size, 3]),
        tf.TensorSpec([batch, boxes, 4]),
        tf.TensorSpec([batch, boxes], tf.int32),
    )
    step.experimental_get_compiler_ir(*shapes)("optimized_hlo")


def analysis(text):
    """The bytes of each part in XLA's file about the assignment of buffers."""
    allocations = re.findall(r"^allocation \d+: size (\d+), (.*)", text, flags=re.MULTILINE)
    found = {part: sum(int(size) for size, kind in allocations if part in kind) for part in PARTS[:-1]}
    return {**found, "total": int(re.search(r"^Total bytes used: (\d+)", text, flags=re.MULTILINE)[1])}


def smallest_card(size):
    """The memory of the smallest usual card that holds some bytes and a tenth more."""
    return next((f"{card} GB" for card in CARDS if 1.1 * size <= card * 1e9), "none")


def main(argv):
    """Prints a line for each recipe."""
    del argv
    if FLAGS.child:
        compile_step(FLAGS.config[0])
        return
    print(f"{'recipe':32}" + "".join(f"{part + ' MiB':>24}" for part in PARTS) + f"{'card':>10}")
    for name in FLAGS.config:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--child", f"--config={name}", f"--precision={FLAGS.precision}"]
            environment = {**os.environ, "XLA_FLAGS": f"--xla_dump_to={folder} --xla_dump_hlo_as_text"}
            subprocess.run([*command, f"--batch_size={FLAGS.batch_size}"], env=environment, check=True)
            texts = [path.read_text() for path in Path(folder).glob("*buffer-assignment.txt")]
        # The step is the largest of what was compiled.
        largest = max((analysis(text) for text in texts), key=lambda found: found["total"])
        sizes = "".join(f"{largest[part] / 2**20:24.0f}" for part in PARTS)
        print(f"{name:32}{sizes}{smallest_card(largest['total']):>10}")
    print(f"batch {FLAGS.batch_size or 'of the recipe'}, {FLAGS.precision}, TensorFlow {tf.__version__}, XLA for CPU")


if __name__ == "__main__":
    recipes = ["refinedet320_vgg16_voc07", "refinedet512_vgg16_voc07"]
    flags.DEFINE_multi_string("config", recipes, "A recipe, by name or path. Repeatable.")
    flags.DEFINE_integer("batch_size", 0, "Images of a step; 0: the recipe's.", 0)
    flags.DEFINE_string("precision", "float32", "Keras's policy.")
    flags.DEFINE_bool("child", False, "Set by the program itself.")
    app.run(main)
