"""Reads .npz archives of arrays."""

import os
import zipfile

import numpy as np

from refinedet_tf.errors import WeightFileError


def read_npz(path: str | os.PathLike, max_bytes: int) -> dict[str, np.ndarray]:
    """Reads all arrays of an archive.

    Args:
        path: a file written by `numpy.savez` or `numpy.savez_compressed`.
        max_bytes: how many bytes it may unpack to.

    Returns:
        The arrays by name.

    Raises:
        WeightFileError: the file is not such an archive, holds pickled objects or would unpack to more.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > max_bytes:
            raise ValueError(f"it would unpack to {size} bytes, of which at most {max_bytes} can be needed")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # NumPy, zipfile and zlib raise many kinds of errors over damaged files
        raise WeightFileError(f"{os.fspath(path)} is not a readable .npz archive of arrays: {error}") from error
