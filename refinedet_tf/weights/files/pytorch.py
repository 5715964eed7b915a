"""Reads the tensors out of a PyTorch checkpoint (.pth) without PyTorch and without executing it.

`torch.save` writes a pickle that describes tensors as views of raw storages, either as a zip archive (since PyTorch
1.6) or as one stream (before; "legacy" here). `torch_pickle` interprets the pickle; this module reads the two
containers and turns storages into arrays.
"""

import io
import math
import os
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from refinedet_tf.errors import WeightFileError
from refinedet_tf.weights.files import torch_pickle
from refinedet_tf.weights.files.opening import open_weight_file
from refinedet_tf.weights.files.torch_pickle import STORAGES, Storage, Tensor

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
ZIP_MAGIC = b"PK\x03\x04"
MAX_REUSE = 10  # how many times larger than the file its tensors may be, since tensors can share storages

_WRAPPERS = ("state_dict", "model")
_DATA_PARALLEL_PREFIX = "module."


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the tensors of a PyTorch checkpoint.

    A state dict inside {"state_dict": ...} or {"model": ...} is unwrapped, entries other than tensors (epoch,
    optimizer) are left out, and if every name starts with "module." (nn.DataParallel) that prefix is dropped.

    Args:
        path: a file written by `torch.save`, in the zip or in the legacy format.

    Returns:
        The arrays by name, in the order of the file, each with its own memory and of its tensor's type; bfloat16, which
        NumPy lacks, becomes float32.

    Raises:
        WeightFileError: the file is missing, not a regular file, not written by PyTorch, damaged, or without tensors,
            or it refers to anything but tensors and plain values, which the message names.
    """
    with open_weight_file(path) as file:
        try:
            return _read(file, os.fstat(file.fileno()).st_size)
        # The parsers of pickle and zip raise many kinds of errors over damaged files.
        except Exception as error:
            reason = error if type(error) is ValueError else f"it is damaged ({error!r:.200})"
            raise WeightFileError(f"{path} cannot be read as PyTorch weights: {reason}") from error


def is_pytorch_file(path: str | os.PathLike) -> bool:
    """Returns whether a file was written by `torch.save`, judging by its structure.

    Args:
        path: the file.

    Returns:
        True for both formats of `read_state_dict`; False for other zip files (.keras, .npz) and anything else.

    Raises:
        WeightFileError: the file is missing or not a regular file.
    """
    with open_weight_file(path) as file:
        try:
            start = file.read(64)
            if start.startswith(ZIP_MAGIC):
                return any(name.endswith("/data.pkl") for name in zipfile.ZipFile(file).namelist())
            return torch_pickle.load(io.BytesIO(start)) == LEGACY_MAGIC
        except Exception:  # as in read_state_dict
            return False


def _read(file: BinaryIO, file_size: int) -> dict[str, np.ndarray]:
    is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    file.seek(0)
    if is_zip:
        root, read_storage, byte_order = _open_zip(file, file_size)
    else:
        root, read_storage, byte_order = _open_legacy(file.read())
    tensors = _find_tensors(root)

    total = sum(math.prod(tensor.size) * _item_type(tensor.storage).itemsize for tensor in tensors.values())
    if total > MAX_REUSE * file_size:
        raise ValueError(f"its tensors claim {total} bytes, the file has {file_size}")
    storages = {}
    arrays = {}
    for name, tensor in tensors.items():
        if tensor.storage not in storages:
            storages[tensor.storage] = read_storage(tensor.storage)
        try:
            arrays[name] = _to_array(tensor, storages[tensor.storage], byte_order)
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from error
    return arrays


def _open_zip(file: BinaryIO, file_size: int) -> tuple[Any, Callable[[Storage], bytes | memoryview], str]:
    """Returns the unpickled object, a function that reads a storage, and the byte order of the storages."""
    archive = zipfile.ZipFile(file)
    members = {info.filename: info for info in archive.infolist()}
    if sum(info.file_size for info in archive.infolist()) > file_size:
        raise ValueError("it is compressed; torch.save never compresses, so this may be a zip bomb")
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"a zip archive of torch.save has one data.pkl, this one has {len(pickles)}")
    folder = pickles[0].removesuffix("data.pkl")
    byte_order = archive.read(folder + "byteorder").decode() if folder + "byteorder" in members else "little"
    if byte_order not in ("little", "big"):
        raise ValueError(f"unknown byte order {byte_order!r:.40}")

    def read_storage(storage: Storage) -> bytes:
        name = f"{folder}data/{storage.key}"
        if name not in members:
            raise ValueError(f"the archive has no member {name!r:.100}")
        return archive.read(name)

    root = torch_pickle.load(io.BytesIO(archive.read(pickles[0])))
    return root, read_storage, byte_order


def _open_legacy(raw: bytes) -> tuple[Any, Callable[[Storage], bytes | memoryview], str]:
    """Like `_open_zip`, for the stream: magic, version, system, object, storage keys, storages.

    Every storage is its number of elements (int64) and the elements, little-endian on every machine.
    """
    stream = io.BytesIO(raw)
    try:
        magic = torch_pickle.load(stream)
    except Exception as error:
        raise ValueError("it is neither a zip archive nor a legacy file of torch.save") from error
    if magic != LEGACY_MAGIC:
        raise ValueError("it is a pickle, but not one of torch.save")
    if torch_pickle.load(stream) != LEGACY_PROTOCOL:
        raise ValueError(f"it is of the legacy format, but not of version {LEGACY_PROTOCOL}")
    torch_pickle.load(stream)  # byte order and word sizes of the writer, which do not influence the storages
    storages = {}
    root = torch_pickle.load(stream, storages)
    keys = torch_pickle.load(stream)

    contents = {}
    position = stream.tell()
    for key in keys:
        if not isinstance(key, str) or key not in storages:
            raise ValueError("its list of storages names one that no tensor uses")
        storage = storages[key]
        size = int.from_bytes(raw[position : position + 8], "little")
        start, position = position + 8, position + 8 + storage.size * _item_type(storage).itemsize
        if size != storage.size or position > len(raw):
            raise ValueError(f"storage {key!r:.40} is truncated or of another size than declared")
        contents[storage] = memoryview(raw)[start:position]

    def read_storage(storage: Storage) -> memoryview:
        if storage not in contents:
            raise ValueError(f"storage {storage.key!r:.40} is missing")
        return contents[storage]

    return root, read_storage, "little"


def _find_tensors(root: Any) -> dict[str, Tensor]:
    """Finds the state dict in the saved object."""
    if not isinstance(root, dict):
        raise ValueError(f"it holds a {type(root).__name__.strip('_').lower()}, not a state dict")
    for wrapper in _WRAPPERS:
        if isinstance(root.get(wrapper), dict):
            root = root[wrapper]
            break
    tensors = {name: value for name, value in root.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        entries = ", ".join(f"{name!r:.40}" for name in list(root)[:5])
        raise ValueError(f"it holds no tensors; its entries are {entries or 'none'}")
    if all(name.startswith(_DATA_PARALLEL_PREFIX) for name in tensors):
        tensors = {name.removeprefix(_DATA_PARALLEL_PREFIX): value for name, value in tensors.items()}
    return tensors


def _item_type(storage: Storage) -> np.dtype:
    return np.dtype(STORAGES[storage.type_name])


def _to_array(tensor: Tensor, raw: bytes | memoryview, byte_order: str) -> np.ndarray:
    """Copies a tensor out of its storage, after checking that it lies within."""
    storage, offset, size, stride = tensor
    item_type = _item_type(storage)
    if len(raw) != storage.size * item_type.itemsize:
        raise ValueError(f"its storage has {len(raw)} bytes, not {storage.size} elements of {storage.type_name}")
    if 0 not in size and offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= storage.size:
        raise ValueError(f"shape {size} with strides {stride} from {offset} leaves its storage of {storage.size}")

    if 0 in size:
        array = np.zeros(size, item_type)
    else:
        flat = np.frombuffer(raw, item_type.newbyteorder("<" if byte_order == "little" else ">"))[offset:]
        strides = [step * item_type.itemsize for step in stride]
        view = np.lib.stride_tricks.as_strided(flat, size, strides, writeable=False)
        array = np.array(view, item_type, order="C")
    if storage.type_name == "torch.BFloat16Storage":  # the upper half of a float32
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array != 0 if storage.type_name == "torch.BoolStorage" else array
