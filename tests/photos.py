"""Image files of all kinds, as cameras and programs write them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

ORIENTATION = 0x0112


def smooth(rng, size, mode="RGB"):
    """A picture of soft color changes, so that its JPEG is not noise; `size` is width and height."""
    width, height = size
    bands = [
        Image.fromarray(rng.integers(0, 256, (height // 7 + 2, width // 7 + 2), dtype=np.uint8)).resize(size)
        for _ in mode
    ]
    return Image.merge(mode, bands) if len(bands) > 1 else bands[0]


def encode(image, file_format="JPEG", orientation=None, byte_order="<", **options):
    """The bytes of an image file; with an orientation it has EXIF data like a camera's."""
    if orientation is not None:
        exif = Image.Exif()
        exif.endian = byte_order
        exif[0x010F], exif[ORIENTATION], exif[0x0110] = "maker", orientation, "model"
        options["exif"] = exif.tobytes()
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def stored(upright, orientation):
    """The pixels that a file with this orientation holds for an upright image."""
    turn = Image.Transpose
    methods = [None, turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE, turn.ROTATE_90,
               turn.TRANSVERSE, turn.ROTATE_270]  # fmt: skip
    method = methods[orientation - 1]
    return upright if method is None else upright.transpose(method)


def jpegs():
    """40 JPEGs: baseline and progressive, all chroma subsamplings, gray, CMYK, all orientations, odd sizes."""
    rng = np.random.default_rng(40)
    files = {}
    for orientation in (None, 1, 2, 3, 4, 5, 6, 7, 8):
        order = "<>"[(orientation or 0) % 2]
        for kind, options in (
            ("444", {"subsampling": 0}),
            ("422", {"subsampling": 1}),
            ("420", {"subsampling": 2}),
            ("progressive", {"progressive": True, "subsampling": 2}),
        ):
            size = (int(rng.integers(60, 130)), int(rng.integers(60, 130)))
            files[f"{kind}_{orientation}"] = encode(
                smooth(rng, size), "JPEG", orientation, order, quality=85, **options
            )
    for mode, orientation in (("L", None), ("L", 6), ("CMYK", None), ("CMYK", 8)):
        files[f"{mode}_{orientation}"] = encode(smooth(rng, (91, 67), mode), "JPEG", orientation)
    assert len(files) == 40
    return files


def png_that_claims(height, width):
    """The header of a PNG that would unpack to height x width pixels, without the pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    parts = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
