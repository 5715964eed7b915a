"""Opening a weight file."""

import os
import stat
from typing import BinaryIO

from refinedet_tf.errors import WeightFileError


def open_weight_file(path: str | os.PathLike) -> BinaryIO:
    """Opens a weight file for reading.

    Args:
        path: a regular file. Pipes and devices are refused, since reading them may never end.

    Returns:
        The file, opened in binary mode.

    Raises:
        WeightFileError: the file does not exist, is not a regular file or cannot be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise WeightFileError(f"{os.fspath(path)} is not a regular file")
        return open(path, "rb")
    except OSError as error:
        raise WeightFileError(f"{os.fspath(path)} cannot be read: {error.strerror}") from error
