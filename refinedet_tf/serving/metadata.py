"""What a TFLite file carries besides its network: a ZIP archive behind the FlatBuffer.

That is how TFLite metadata attach files to a model. Interpreters ignore it, and any ZIP tool opens the model.
"""

import io
import json
import os
import zipfile
from dataclasses import dataclass

import numpy as np

from refinedet_tf.errors import ExportError
from refinedet_tf.serving.labels import LABELS

SETTINGS = "detector.json"
ANCHORS = "anchors.npy"
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
    """A TFLite file's content with metadata behind it."""
    file = io.BytesIO(content)
    # A fixed date, so that the same model gives the same file.
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(zipfile.ZipInfo(LABELS), "".join(f"{name}\n" for name in metadata.classes))
        archive.writestr(zipfile.ZipInfo(SETTINGS), json.dumps(metadata.settings, indent=1))
        if metadata.anchors is not None:
            anchors = io.BytesIO()
            np.save(anchors, metadata.anchors)
            archive.writestr(zipfile.ZipInfo(ANCHORS), anchors.getvalue())
    return file.getvalue()


def read_metadata(path: str | os.PathLike) -> Metadata:
    """Reads what `append_metadata` wrote.

    Raises:
        ExportError: the file carries no such metadata.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            anchors = np.load(io.BytesIO(archive.read(ANCHORS))) if ANCHORS in archive.namelist() else None
            classes = archive.read(LABELS).decode().splitlines()
            return Metadata(classes, json.loads(archive.read(SETTINGS)), anchors)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ExportError(f"{os.fspath(path)} is no TFLite file that this project exported: {error}") from error
