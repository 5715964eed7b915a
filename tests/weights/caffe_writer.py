"""Writes .caffemodel files with a protobuf encoder of its own: it shares no code with the reader under test."""

import struct

import numpy as np


def varint(value):
    value &= 2**64 - 1  # negative numbers are written as 64-bit two's complement
    result = b""
    while value >= 0x80:
        result += bytes([value & 0x7F | 0x80])
        value >>= 7
    return result + bytes([value])


def number(field, value):
    return varint(field << 3) + varint(value)


def block(field, content):
    """A field with a length: string, message or packed list."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def blob(values, shape=None, legacy_shape=False, double=False):
    """A BlobProto; `shape` is written instead of the true one if given, as it stands."""
    values = np.asarray(values)
    shape = values.shape if shape is None else shape
    if legacy_shape:
        shape = (1,) * (4 - len(shape)) + tuple(shape)
        head = b"".join(number(1 + i, size) for i, size in enumerate(shape))
    else:
        head = block(7, block(1, b"".join(varint(size) for size in shape)))
    packed = values.astype("<f8" if double else "<f4").tobytes()
    return head + block(8 if double else 5, packed)


def layer(name, blobs, v1=False):
    """One field of NetParameter: a layer with serialized blobs and a few fields that hold no weights."""
    if v1:
        content = block(2, b"data") + block(3, name.encode()) + block(4, name.encode()) + number(5, 4)
        content += b"".join(block(6, one) for one in blobs)
        content += varint(7 << 3 | 5) + struct.pack("<f", 1.0)  # blobs_lr
        return block(2, content)
    content = block(1, name.encode()) + block(2, b"Convolution") + block(3, b"data") + block(4, name.encode())
    content += block(6, varint(3 << 3 | 5) + struct.pack("<f", 1.0))  # param { lr_mult: 1 }
    content += b"".join(block(7, one) for one in blobs)
    content += number(10, 0)  # phase
    return block(100, content)


def write_caffemodel(path, layers, v1=False, legacy_shape=False, double=False):
    """Writes layer name -> arrays in Caffe's layout; an empty list makes a layer without weights.

    Args:
        path: the file to write.
        layers: dict[str, list[np.ndarray]].
        v1: the layer messages of before 2014.
        legacy_shape: four-dimensional shapes with leading ones (num, channels, height, width).
        double: double precision.
    """
    with path.open("wb") as file:
        file.write(block(1, b"a net") + block(3, b"data"))
        for name, blobs in layers.items():
            file.write(layer(name, [blob(one, None, legacy_shape, double) for one in blobs], v1))
