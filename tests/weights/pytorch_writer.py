"""Writes .pth files as torch.save does, but without PyTorch: the operations of the pickle are emitted by hand."""

import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

STORAGE_TYPES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
LEGACY_START = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19." + b"\x80\x02M\xe9\x03."


@dataclass(eq=False)
class Storage:
    """Numbers that several tensors may share; `type_name` for types that NumPy lacks (BFloat16Storage over uint16)."""

    values: np.ndarray
    type_name: str = ""
    declared_size: int | None = None

    def __post_init__(self):
        self.type_name = self.type_name or STORAGE_TYPES[self.values.dtype.name]

    @property
    def size(self):
        return self.values.size if self.declared_size is None else self.declared_size


@dataclass(eq=False)
class Tensor:
    """A view of a storage, counted in elements."""

    storage: Storage
    offset: int
    size: tuple
    stride: tuple
    is_parameter: bool = False


@dataclass(eq=False)
class Call:
    """A call that the pickle asks for: module, name, arguments."""

    module: str
    name: str
    arguments: tuple


def tensor(array):
    """A contiguous tensor with a storage of its own."""
    array = np.ascontiguousarray(array).reshape(np.shape(array))
    return Tensor(Storage(array.ravel()), 0, array.shape, tuple(step // array.itemsize for step in array.strides))


class Pickler:
    """Protocol 2, with a memo for strings and globals; remembers the storages that it came across."""

    def __init__(self, legacy):
        self.legacy = legacy
        self.storages = []
        self.memo = {}

    def dump(self, value):
        return b"\x80\x02" + self.encode(value) + b"."

    def memoized(self, key, code):
        if key in self.memo:
            return b"j" + struct.pack("<I", self.memo[key])
        self.memo[key] = len(self.memo)
        return code + b"r" + struct.pack("<I", self.memo[key])

    def reference(self, module, name):
        return self.memoized((module, name), f"c{module}\n{name}\n".encode())

    def call(self, module, name, *arguments):
        return self.reference(module, name) + self.encode(arguments) + b"R"

    def encode(self, value):
        match value:
            case None:
                return b"N"
            case bool():
                return b"\x88" if value else b"\x89"
            case int() if -(2**31) <= value < 2**31:
                return b"J" + struct.pack("<i", value)
            case int():
                content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
                return b"\x8a" + bytes([len(content)]) + content
            case float():
                return b"G" + struct.pack(">d", value)
            case str():
                content = value.encode()
                return self.memoized(value, b"X" + struct.pack("<I", len(content)) + content)
            case tuple():
                return b"(" + b"".join(map(self.encode, value)) + b"t"
            case list():
                return b"](" + b"".join(map(self.encode, value)) + b"e"
            case dict():
                is_ordered = isinstance(value, OrderedDict)
                code = self.call("collections", "OrderedDict") if is_ordered else b"}"
                code += b"(" + b"".join(self.encode(part) for item in value.items() for part in item) + b"u"
                # With attributes, such as the _metadata of a module's state dict.
                return code + self.encode({"_metadata": {}}) + b"b" if is_ordered else code
            case np.ndarray():
                return self.encode(tensor(value))
            case Tensor():
                return self.encode_tensor(value)
            case Call():
                return self.call(value.module, value.name, *value.arguments)
        raise TypeError(type(value))

    def encode_tensor(self, value):
        if value.storage not in self.storages:
            self.storages.append(value.storage)
        storage = value.storage
        key = str(self.storages.index(storage))
        identity = b"(" + self.encode("storage") + self.reference("torch", storage.type_name)
        identity += self.encode(key) + self.encode("cuda:0") + self.encode(storage.size)
        identity += (b"N" if self.legacy else b"") + b"tQ"
        code = self.reference("torch._utils", "_rebuild_tensor_v2") + b"(" + identity + self.encode(value.offset)
        code += self.encode(value.size) + self.encode(value.stride) + b"\x89"
        code += self.call("collections", "OrderedDict") + b"tR"
        if value.is_parameter:
            function = self.reference("torch._utils", "_rebuild_parameter")
            return function + b"(" + code + b"\x88" + self.call("collections", "OrderedDict") + b"tR"
        return code


def write_checkpoint(path, value, legacy=False, byte_order="little"):
    """Writes what torch.save writes for plain values, NumPy arrays (as tensors), `Tensor` and `Call`.

    Args:
        path: the file to write.
        value: usually dict[str, np.ndarray]; an OrderedDict gets attributes as that of a module has.
        legacy: the stream of before PyTorch 1.6 instead of a zip archive.
        byte_order: of the storages in the archive.
    """
    pickler = Pickler(legacy)
    pickle = pickler.dump(value)
    order = "<" if byte_order == "little" else ">"
    contents = [one.values.astype(one.values.dtype.newbyteorder(order)).tobytes() for one in pickler.storages]
    if legacy:
        keys = [str(i) for i in range(len(contents))]
        content = LEGACY_START + Pickler(True).dump({"protocol_version": 1001, "little_endian": True})
        content += pickle + Pickler(True).dump(keys)
        for storage, one in zip(pickler.storages, contents, strict=True):
            content += struct.pack("<q", storage.values.size) + one
        path.write_bytes(content)
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", byte_order)
        for i, one in enumerate(contents):
            archive.writestr(f"archive/data/{i}", one)
        archive.writestr("archive/version", "3\n")
