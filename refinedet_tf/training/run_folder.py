"""The folder of a run: one process, one recipe, and the results written from the run's state."""

import contextlib
import csv
import dataclasses
import fcntl
import io
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

from tensorflow import keras

from refinedet_tf.config import Config, load_config, save_config
from refinedet_tf.errors import TrainingError
from refinedet_tf.training.checkpoints import Checkpoints, ChiefsCheckpoints, Progress
from refinedet_tf.training.files import explained_errors, replace_model, replace_text

# The settings that may change when a run goes on.
EXTENDABLE = ("train.epochs", "train.checkpoint_steps", "train.keep_checkpoints")


class RunFolder:
    """A run's folder, locked while it is entered.

    `checkpoints/` holds the state of the run. Everything else is written from that state: `recipe.yaml`, `log.csv`,
    `evaluations.json`, `model.keras` and `best.keras`. The lock belongs to the process and ends with it.
    """

    def __init__(self, path: Path, config: Config):
        """Takes the folder of a recipe's run; nothing is written before it is entered."""
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints", config.train.keep_checkpoints)
        self._config = config
        self._lock = None

    def __enter__(self) -> "RunFolder":
        """Makes the folder if it is missing, locks it and writes the recipe.

        Raises:
            TrainingError: the folder cannot be written, another process trains in it, or it holds a run of another
                recipe.
        """
        with contextlib.ExitStack() as on_error, explained_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = on_error.enter_context(open(self.path / ".lock", "ab"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TrainingError(f"Another process trains in {self.path}.") from None
            self._claim()
            self._lock = on_error.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Unlocks the folder."""
        self._lock.close()

    def write_history(self, progress: Progress) -> None:
        """Writes `log.csv` and `evaluations.json`, with each epoch once."""
        text = io.StringIO()
        if progress.rows:
            writer = csv.DictWriter(text, progress.rows[0].keys())
            writer.writeheader()
            writer.writerows(progress.rows)
        with explained_errors(self.path):
            replace_text(self.path / "log.csv", text.getvalue())
            replace_text(self.path / "evaluations.json", json.dumps(progress.evaluations, indent=1))

    def write_models(self, model: keras.Model, best: bool) -> None:
        """Writes `model.keras`, and `best.keras` if it is the best so far."""
        with explained_errors(self.path):
            replace_model(model, self.path / "model.keras")
            if best:
                replace_model(model, self.path / "best.keras")

    def _claim(self) -> None:
        recipe, fresh = self.path / "recipe.yaml", self.path / "~recipe.yaml"
        if recipe.exists():
            changed = [key for key in _changed(load_config(recipe), self._config) if key not in EXTENDABLE]
            if changed:
                raise TrainingError(
                    f"{self.path} holds a run of another recipe; different here: {', '.join(changed)}. Use another "
                    f"folder, or the same recipe to go on. Only {', '.join(EXTENDABLE)} may change."
                )
        try:
            save_config(self._config, fresh)
            fresh.replace(recipe)
        finally:
            fresh.unlink(missing_ok=True)


class WorkerFolder(RunFolder):
    """Stands for a run's folder in all workers but the chief: it has the chief's checkpoints and keeps nothing.

    What these workers write goes to a temporary folder.
    """

    def __init__(self, path: Path, config: Config):
        """Takes the folder of the chief, on storage that all workers share."""
        self._temporary = tempfile.TemporaryDirectory()
        super().__init__(Path(self._temporary.name), config)
        self.checkpoints = ChiefsCheckpoints(path / "checkpoints", config.train.keep_checkpoints)

    def __exit__(self, *error: object) -> None:
        """Removes the temporary folder."""
        super().__exit__(*error)
        self._temporary.cleanup()

    def write_models(self, model: keras.Model, best: bool) -> None:
        """Does nothing."""


def _changed(old: Any, new: Any, prefix: str = "") -> list[str]:
    """The keys whose values differ between two sections."""
    if not dataclasses.is_dataclass(old):
        return [] if old == new else [prefix]
    keys = [field.name for field in dataclasses.fields(old)]
    parts = [_changed(getattr(old, key), getattr(new, key), f"{prefix}.{key}".lstrip(".")) for key in keys]
    return list(itertools.chain(*parts))
