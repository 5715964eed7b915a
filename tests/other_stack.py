"""What the other stack does with a model of this one; tests/test_stacks.py runs it in the other environment.

    python -m tests.other_stack FOLDER

It opens `FOLDER/this/model.keras`, writes its predictions, verifies the exports beside the model, and saves and exports
a model with other weights into `FOLDER/other`.
"""

import sys
from pathlib import Path

import numpy as np

import refinedet_tf as rd
from refinedet_tf.model import RefineDet
from refinedet_tf.serving.tflite import convert_tflite
from refinedet_tf.verification import require_passed, verify

EXPORTS = ("saved_model", "model.tflite")


def save(model: RefineDet, images: np.ndarray, folder: Path) -> None:
    """Writes a model, its exports and what it predicts."""
    folder.mkdir()
    model.save(folder / "model.keras")
    model.export(folder / "saved_model")
    (folder / "model.tflite").write_bytes(convert_tflite(model))
    write_predictions(model, images, folder / "predictions.npz")


def write_predictions(model: RefineDet, images: np.ndarray, path: Path) -> None:
    """Writes the raw predictions for some images."""
    np.savez(path, **{name: np.asarray(value) for name, value in model(images, training=False).items()})


def main(folder: Path) -> None:
    """Does all that the module's docstring says."""
    images = np.load(folder / "images.npy")
    model = rd.load_model(folder / "this" / "model.keras")
    write_predictions(model, images, folder / "predictions_of_other.npz")
    require_passed(verify(model, [folder / "this" / name for name in EXPORTS]))
    model.set_weights([1.1 * weight for weight in model.get_weights()])
    save(model, images, folder / "other")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
