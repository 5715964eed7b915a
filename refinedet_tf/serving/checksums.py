"""Checksums by which an exported model is known to be complete and unchanged before anything in it is run.

They reveal damage, such as a copy that was cut short, not intent: whoever changes a file can change its checksum, too.
"""

import hashlib
import json
from typing import Any

import tensorflow as tf

CHECKSUM = "sha256"
BLOCK = 2**22
# The last entry of an ONNX file's `metadata_props`, whose value is the checksum of everything before the entry: the
# tags and lengths of Protocol Buffers, then 64 hexadecimal digits.
ONNX_ENTRY = b"\x72\x4a\x0a\x06sha256\x12\x40"


def seal_settings(settings: dict[str, Any]) -> str:
    """Returns settings as JSON with a checksum of their own."""
    return json.dumps({**settings, CHECKSUM: _of_settings(settings)}, indent=1)


def open_settings(text: str | bytes) -> dict[str, Any]:
    """Reads what `seal_settings` returned.

    Raises:
        ValueError: it is not JSON, or has been changed.
    """
    settings = json.loads(text)
    if not isinstance(settings, dict) or settings.pop(CHECKSUM, None) != _of_settings(settings):
        raise ValueError("its settings have been changed, or are not of this version")
    return settings


def seal_onnx(content: bytes) -> bytes:
    """Returns an ONNX file with a checksum as its last metadata entry."""
    return content + ONNX_ENTRY + hashlib.sha256(content).hexdigest().encode()


def check_onnx(content: bytes) -> None:
    """Checks what `seal_onnx` returned.

    Raises:
        ValueError: the file has been changed, or has no checksum.
    """
    body, end = content[: -len(ONNX_ENTRY) - 64], content[-len(ONNX_ENTRY) - 64 :]
    if end != ONNX_ENTRY + hashlib.sha256(body).hexdigest().encode():
        raise ValueError("it is incomplete or has been changed")


def checksum_of_file(path: str) -> str:
    """Returns the SHA-256 of a file, on any path of tf.io.gfile, as hexadecimal digits."""
    digest = hashlib.sha256()
    with tf.io.gfile.GFile(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _of_settings(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
