"""Looks into .keras files without Keras."""

import io
import json
import os
import zipfile
from dataclasses import dataclass
from typing import Any

import h5py

from refinedet_tf.errors import WeightFileError
from refinedet_tf.weights.files.hdf5_probe import KERAS_WEIGHTS, check_datasets

MAX_CONFIG_BYTES = 2**20  # of config.json; a RefineDet's has some thousand bytes


@dataclass(frozen=True)
class KerasArchive:
    """What a .keras file holds.

    Attributes:
        config: the content of config.json.
        arrays: number of arrays of weights, those of the optimizer included.
        numbers: how many numbers these have in all.
    """

    config: dict[str, Any]
    arrays: int
    numbers: int


def is_keras_archive(path: str | os.PathLike) -> bool:
    """Returns whether a zip archive is a .keras file; False for a damaged archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "config.json" in archive.namelist()
    except Exception:  # besides BadZipFile also NotImplementedError and others
        return False


def read_archive(path: str | os.PathLike) -> KerasArchive:
    """Checks a .keras file and reads its configuration and the sizes of its weights.

    Keras compresses neither archives nor datasets, so a file that claims to unpack to more than its own size is refused
    before anything is unpacked.

    Args:
        path: the file. Keras takes a file without the ending .keras for HDF5, in which Keras 2 executes Python code.

    Raises:
        WeightFileError: the file has another ending, is damaged, or claims to hold more than it can.
    """
    try:
        if not os.fspath(path).endswith(".keras"):
            raise ValueError("its name does not end in .keras")
        size = os.path.getsize(path)
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > size:
                raise ValueError("it is compressed; Keras never compresses, so this may be a zip bomb")
            if archive.getinfo("config.json").file_size > MAX_CONFIG_BYTES:
                raise ValueError("its config.json is too large")
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} in it is damaged")
            # From memory: within an archive, each step back would read and sum up everything before it again.
            weights = io.BytesIO(archive.read(KERAS_WEIGHTS))
            with h5py.File(weights, "r") as file:
                sizes = [dataset.size for dataset in check_datasets(file, size)]
            config = json.loads(archive.read("config.json"))
        if not isinstance(config, dict):
            raise ValueError("its config.json holds no configuration")
        return KerasArchive(config, len(sizes), sum(sizes))
    except Exception as error:  # zipfile, zlib, h5py and json raise many kinds of errors over damaged files
        raise WeightFileError(f"{os.fspath(path)} is not a model that can be opened: {error}") from error
