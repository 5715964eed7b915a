"""Writes a copy of a trained model with its weights in half precision: half the size, for shipping it.

refinedet pack-model --model=work/mine/best.keras --output=mine.keras
"""

from pathlib import Path

from absl import flags

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("model", None, "The .keras file of a trained model.", required=True)
    flags.DEFINE_string("output", None, "The .keras file to write.", required=True)


def main() -> None:
    """Writes the copy and prints its size."""
    from refinedet_tf.weights.packing import pack_model

    pack_model(FLAGS.model, FLAGS.output)
    print(f"Saved {FLAGS.output}: {Path(FLAGS.output).stat().st_size / 1e6:.1f} MB.")
