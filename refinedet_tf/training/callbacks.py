"""What happens at the end of an epoch."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorflow import keras

from refinedet_tf.data.pipeline import epoch_variable
from refinedet_tf.evaluation.voc import VocResult

AP_LOG = "val_ap"


class CurrentEpoch(keras.callbacks.Callback):
    """The number of the epoch under way, from 0, also in a run that was taken up again.

    `training_pipeline` reads it, so that such a run sees the images that it would have seen without interruption.

    Attributes:
        number: the variable to give to the pipeline.
    """

    def __init__(self):
        super().__init__()
        self.number = epoch_variable(0)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Takes the number down; Keras asks the dataset for the epoch's first batch after that."""
        self.number.assign(epoch)


class VocEvaluation(keras.callbacks.Callback):
    """Evaluates every few epochs; saves the model, the best one so far, and a history of all results.

    Adds `val_ap` (mean 11-point AP at IoU 0.5; NaN in epochs without an evaluation) to the logs.
    """

    def __init__(self, evaluate: Callable[[keras.Model], VocResult], every: int, epochs: int, folder: Path):
        """Evaluates after each `every` of `epochs` epochs.

        Writes `model.keras`, `best.keras` and `evaluations.json` to `folder`.
        """
        super().__init__()
        self.evaluate = evaluate
        self.every = every
        self.epochs = epochs
        self.model_path = folder / "model.keras"
        self.best_path = folder / "best.keras"
        self.history_path = folder / "evaluations.json"
        self.history = json.loads(self.history_path.read_text()) if self.history_path.exists() else []

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Evaluates if it is time."""
        logs = {} if logs is None else logs
        logs[AP_LOG] = float("nan")
        number = epoch + 1
        if number % self.every and number != self.epochs:
            return
        save_model(self.model, self.model_path)
        result = self.evaluate(self.model)
        print(f"\nEpoch {number}, validation:\n{result.table()}")
        logs[AP_LOG] = result.mean_ap_11_point
        if all(result.mean_ap_11_point > entry[AP_LOG] for entry in self.history):
            save_model(self.model, self.best_path)
        self.history.append({"epoch": number, AP_LOG: result.mean_ap_11_point, **result.as_dict()})
        replace_text(self.history_path, json.dumps(self.history, indent=1))


def save_model(model: keras.Model, path: Path) -> None:
    """Saves to a temporary file beside `path`, then puts it in place."""
    temporary = path.with_name(f"~{path.name}")
    model.save(temporary)
    os.replace(temporary, path)


def replace_text(path: Path, text: str) -> None:
    """Writes a text file that is never seen half-written."""
    temporary = path.with_name(f"~{path.name}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
