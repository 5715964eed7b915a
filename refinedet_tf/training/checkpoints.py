"""Checkpoints of a run: complete, checked generations of its variables and its progress."""

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from tensorflow import keras

from refinedet_tf.errors import TrainingError
from refinedet_tf.stacks import KERAS_VERSION, optimizer_variables, same_stack
from refinedet_tf.training.devices import local_parts
from refinedet_tf.training.files import explained_errors, sync_folder, write_file

VARIABLES, PROGRESS, MANIFEST = "variables.npz", "progress.json", "manifest.json"


@dataclass(frozen=True)
class Progress:
    """How far a run is, and its history up to there.

    Attributes:
        epoch: complete epochs, evaluated if they were due.
        step: steps done in the epoch after those.
        logs: the mean losses of that epoch after its last step; empty before.
        rows: a row of `log.csv` for each complete epoch.
        evaluations: the entries of `evaluations.json`.
    """

    epoch: int = 0
    step: int = 0
    logs: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)


class RunVariables:
    """All variables that training changes: the model's, the optimizer's and the running means of the losses.

    Moving averages of weights, accumulated gradients and the scale of a mixed_float16 loss belong to the optimizer;
    the seeds of dropout belong to the model.
    """

    def __init__(self, model: keras.Model):
        """Collects the variables of a compiled model whose optimizer is built, on this process's devices."""
        metrics = [variable for metric in model.metrics for variable in metric.variables]
        variables = [*model.variables, *optimizer_variables(model.optimizer), *metrics]
        variables = {id(variable): variable for variable in variables}.values()
        self._copies = [local_parts(variable, model.distribute_strategy) for variable in variables]

    def read(self) -> list[np.ndarray]:
        """Returns the values on the first device. No other worker takes part."""
        return [copies[0].numpy() for copies in self._copies]

    def assign(self, values: list[np.ndarray]) -> None:
        """Sets the values that `read` returned.

        Raises:
            TrainingError: they belong to other variables.
        """
        shapes = [tuple(copies[0].shape) for copies in self._copies]
        if shapes != [value.shape for value in values]:
            raise TrainingError("The checkpoint belongs to another model or optimizer.")
        for copies, value in zip(self._copies, values, strict=True):
            for copy in copies:
                copy.assign(value)


class Checkpoints:
    """The last generations of a run's checkpoints.

    A generation is a folder with a number. It is written under a temporary name, synchronized to disk, read back,
    and only then renamed, so a folder with a number is complete. Its manifest has the size and the SHA-256 of each
    file, so damage that comes later is found before anything is restored.
    """

    def __init__(self, folder: Path, keep: int):
        """Uses a folder, which is made when the first generation is saved, for the last `keep` generations."""
        self._folder = folder
        self._keep = keep

    def save(self, values: list[np.ndarray], progress: Progress) -> None:
        """Writes a new generation, then removes those that are too old.

        Raises:
            TrainingError: a value is not finite, or the generation cannot be written; the older ones are intact.
        """
        if not all(np.isfinite(value).all() for value in values if value.dtype.kind == "f"):
            raise TrainingError("The weights are not finite.")
        generations = self._generations()
        number = int(generations[-1].name) + 1 if generations else 1
        temporary = self._folder / f"~{number:08d}"
        with explained_errors(self._folder):
            try:
                self._write(temporary, values, progress)
                temporary.rename(self._folder / f"{number:08d}")
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            sync_folder(self._folder)
            for old in self._generations()[: -self._keep]:
                _remove(old)

    def load_latest(self) -> tuple[list[np.ndarray], Progress] | None:
        """Returns the newest generation that is intact, or None if there is no generation.

        Damaged ones are removed.

        Raises:
            TrainingError: all generations are damaged, or were written with another major version of Keras.
        """
        for leftover in self._folder.glob("~*"):
            shutil.rmtree(leftover)
        generation, damaged = self._newest_intact()
        for old in damaged:
            _remove(old)
        return None if generation is None else _load(generation)

    def _newest_intact(self) -> tuple[Path | None, list[Path]]:
        """The newest generation that is intact, and the damaged ones after it."""
        damaged = []
        for generation in reversed(self._generations()):
            defect = _defect(generation)
            if defect is None:
                return generation, damaged
            logging.warning("The checkpoint %s is damaged (%s); going back to the one before.", generation, defect)
            damaged.append(generation)
        if damaged:
            raise TrainingError(
                f"No checkpoint in {self._folder} is intact. Remove {self._folder} to train from the start."
            )
        return None, []

    def _write(self, folder: Path, values: list[np.ndarray], progress: Progress) -> None:
        folder.mkdir(parents=True)
        arrays = {f"{index:05d}": value for index, value in enumerate(values)}
        write_file(folder / VARIABLES, lambda file: np.savez(file, **arrays))
        _write_json(folder / PROGRESS, dataclasses.asdict(progress))
        files = {name: _fingerprint(folder / name) for name in (VARIABLES, PROGRESS)}
        _write_json(folder / MANIFEST, {"keras": KERAS_VERSION, "files": files})
        sync_folder(folder)

    def _generations(self) -> list[Path]:
        """The oldest first."""
        return sorted(path for path in self._folder.glob("[0-9]*") if path.name.isdigit())


class ChiefsCheckpoints(Checkpoints):
    """The same for the other workers, which go on from what the chief has written and write nothing."""

    def save(self, values: list[np.ndarray], progress: Progress) -> None:
        """Does nothing."""

    def load_latest(self) -> tuple[list[np.ndarray], Progress] | None:
        """Returns the newest generation that is intact, as the chief does, but removes none."""
        generation, _ = self._newest_intact()
        return None if generation is None else _load(generation)


def _load(generation: Path) -> tuple[list[np.ndarray], Progress]:
    version = json.loads((generation / MANIFEST).read_text())["keras"]
    if not same_stack(version):
        raise TrainingError(
            f"{generation} was written with Keras {version}, and this is Keras {KERAS_VERSION}. Checkpoints cannot "
            "be moved between Keras 2 (TensorFlow 2.15) and Keras 3: continue the run where it was started. To use its "
            "weights here, start a new run with train.weights set to a .keras file of the old one."
        )
    with np.load(generation / VARIABLES, allow_pickle=False) as arrays:
        values = [arrays[name] for name in sorted(arrays.files)]
    return values, Progress(**json.loads((generation / PROGRESS).read_text()))


def _defect(generation: Path) -> str | None:
    """What is wrong with a generation's files, if anything is."""
    try:
        manifest = json.loads((generation / MANIFEST).read_text())
        expected = {name: manifest["files"][name] for name in (VARIABLES, PROGRESS)}
        for name, fingerprint in expected.items():
            if _fingerprint(generation / name) != fingerprint:
                return f"{name} has changed since it was written"
        str(manifest["keras"])
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is not readable"
    return None


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_file(path, lambda file: file.write(json.dumps(content).encode()))


def _remove(generation: Path) -> None:
    """Removes a generation; it loses its name first, so that half of one is never taken for a generation."""
    temporary = generation.with_name(f"~{generation.name}")
    generation.rename(temporary)
    shutil.rmtree(temporary)
