"""Files that are never seen half-written and that survive a power failure."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from tensorflow import keras

from refinedet_tf.errors import TrainingError


@contextlib.contextmanager
def explained_errors(folder: Path) -> Iterator[None]:
    """Turns the operating system's errors inside into one that names the folder of a run.

    Raises:
        TrainingError: there was an error.
    """
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{error.filename or folder} cannot be written: {error.strerror or error}. "
            "What was written before is intact; the same command goes on from there."
        ) from error


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a new file with a function and waits until it is on disk."""
    with open(path, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Writes a text file, or replaces it by another in one step."""
    temporary = path.with_name(f"~{path.name}")
    try:
        write_file(temporary, lambda file: file.write(text.encode()))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_model(model: keras.Model, path: Path) -> None:
    """Saves a model as a .keras file, or replaces it by another in one step."""
    temporary = path.with_name(f"~{path.name}")
    try:
        model.save(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
