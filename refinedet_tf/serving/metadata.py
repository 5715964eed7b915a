"""What a TFLite file carries besides its network: a ZIP archive behind the FlatBuffer.

That is how TFLite metadata attach files to a model. Interpreters ignore it, and any ZIP tool opens the model.
"""

import hashlib
import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refinedet_tf.errors import ExportError
from refinedet_tf.serving.checksums import open_settings, seal_settings
from refinedet_tf.serving.labels import LABELS

SETTINGS = "detector.json"
FILES = "files"  # the setting of a SavedModel with the checksum of each of its files
ANCHORS = "anchors.npy"
FLATBUFFER = "flatbuffer_sha256"  # the setting with the checksum of everything before the archive
MAX_MEMBER = 2**25  # bytes of a member, unpacked; 2 million anchors
# Threads that `TFLite_Detection_PostProcess` can run on; see `serving.tflite`.
MAX_THREADS = 16


@dataclass(frozen=True)
class Metadata:
    """What a program that runs the file needs to know.

    Attributes:
        classes: class names by index.
        settings: `input` (an `InputForm`), `quantize`, `postprocess`, and the detection settings, which the file has
            applied with `postprocess: op` and the program is to apply to raw predictions.
        anchors: float32 `[n, 4]` if the outputs are raw predictions, else None.
    """

    classes: list[str]
    settings: dict
    anchors: np.ndarray | None = None


def append_metadata(content: bytes, metadata: Metadata) -> bytes:
    """Appends metadata to a TFLite file's content."""
    file = io.BytesIO(content)
    checksum = hashlib.sha256(content).hexdigest()
    # A fixed date, so that the same model gives the same file.
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(zipfile.ZipInfo(LABELS), "".join(f"{name}\n" for name in metadata.classes))
        settings = {**metadata.settings, "classes": metadata.classes, FLATBUFFER: checksum}
        archive.writestr(zipfile.ZipInfo(SETTINGS), seal_settings(settings))
        if metadata.anchors is not None:
            anchors = io.BytesIO()
            np.save(anchors, metadata.anchors)
            archive.writestr(zipfile.ZipInfo(ANCHORS), anchors.getvalue())
    return file.getvalue()


def read_metadata(path: str | os.PathLike) -> Metadata:
    """Reads what `append_metadata` wrote, and checks that the whole file is as it was written.

    Raises:
        OSError: the file cannot be read.
        ExportError: the file carries no such metadata, or has been damaged.
    """
    content = Path(path).read_bytes()
    try:
        return _parse(content)
    # Damaged archives raise errors of many kinds, from `zipfile`, `struct`, `zlib`, `json` and NumPy.
    except Exception as error:
        raise ExportError(f"{os.fspath(path)} is not a TFLite file that this project exported: {error}") from error


def _parse(content: bytes) -> Metadata:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        settings = open_settings(_read_member(archive, SETTINGS))
        classes = settings.pop("classes")
        if _read_member(archive, LABELS).decode() != "".join(f"{name}\n" for name in classes):
            raise ValueError(f"{LABELS} has been changed")
        start = min(member.header_offset for member in archive.infolist())
        if hashlib.sha256(content[:start]).hexdigest() != settings.pop(FLATBUFFER):
            raise ValueError("the network is incomplete or has been changed")
        anchors = None
        if settings["postprocess"] == "none":
            anchors = _read_anchors(_read_member(archive, ANCHORS))
    return Metadata(classes, settings, anchors)


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Reads a member that is no larger than those that are written here."""
    with archive.open(name) as file:
        content = file.read(MAX_MEMBER + 1)
    if len(content) > MAX_MEMBER:
        raise ValueError(f"{name} is larger than {MAX_MEMBER} bytes")
    return content


def _read_anchors(content: bytes) -> np.ndarray:
    """Reads float32 `[n, 4]` whose claimed size is that of the data; NumPy would allocate what is claimed."""
    file = io.BytesIO(content)
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype != np.float32 or len(shape) != 2 or shape[1] != 4 or 16 * shape[0] != len(content) - file.tell():
        raise ValueError(f"{ANCHORS} does not hold anchors")
    return np.frombuffer(content, np.float32, offset=file.tell()).reshape(shape)
