import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from refinedet_tf.ops import images
from refinedet_tf.ops.image_headers import read_header, read_orientation
from tests.photos import encode, jpegs, smooth

BYTES = [tf.TensorSpec([], tf.string)]
decode = tf.function(images.decode, input_signature=BYTES)
header = tf.function(read_header, input_signature=BYTES)
orientation_alone = tf.function(read_orientation, input_signature=BYTES)


def with_pillow(contents):
    with Image.open(io.BytesIO(contents)) as image:
        return images.from_pillow(image)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_png_becomes_rgb(mode):
    rng = np.random.default_rng(2)
    image = smooth(rng, (14, 9))
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 1 << 16, (9, 14)).astype(np.uint16))
        expected = (np.asarray(image) >> 8)[..., np.newaxis].repeat(3, axis=-1)
    else:
        image = image.convert(mode)
        expected = np.asarray(image.convert("RGB"))
    contents = encode(image, "PNG")
    np.testing.assert_array_equal(decode(contents), expected)
    np.testing.assert_array_equal(with_pillow(contents), expected)


@pytest.mark.parametrize("file_format", ["GIF", "BMP"])
def test_other_formats_are_decoded_too(file_format):
    contents = encode(smooth(np.random.default_rng(3), (14, 9)), file_format)
    np.testing.assert_array_equal(decode(contents), with_pillow(contents))
    assert header(contents)[0].numpy().tolist() == [9, 14]


def test_a_gif_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "blue")]
    contents = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(contents), np.broadcast_to([255, 0, 0], (6, 8, 3)))


def test_jpegs_have_the_pixels_of_pillow_upright():
    for name, contents in jpegs().items():
        with Image.open(io.BytesIO(contents)) as image:
            stored, upright = image.size, np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
        np.testing.assert_array_equal(decode(contents), with_pillow(contents), err_msg=name)
        # Pillow rounds the product of CMYK inks to the nearest number, TensorFlow downward.
        np.testing.assert_allclose(decode(contents), upright, atol=1 if "CMYK" in name else 0, err_msg=name)
        assert header(contents)[0].numpy().tolist() == list(stored[::-1]), name


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_pngs_are_turned_as_pillow_turns_them(orientation, byte_order):
    contents = encode(smooth(np.random.default_rng(4), (14, 9)), "PNG", orientation, byte_order)
    with Image.open(io.BytesIO(contents)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(decode(contents), expected)
    np.testing.assert_array_equal(with_pillow(contents), expected)
    size, found = header(contents)
    assert (size.numpy().tolist(), int(found)) == ([9, 14], orientation)


def with_exif(exif):
    """The header of a JPEG with such EXIF data, after another segment."""
    return b"\xff\xd8\xff\xe0\0\x04ab\xff\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + b"\xff\xda\0\0"


def tiff(order, *entries, magic=None, directory=8, count=None):
    head = magic or {"<": b"II*\0", ">": b"MM\0*"}[order]
    body = b"".join(struct.pack(f"{order}HHIHxx", *entry) for entry in entries)
    return b"Exif\0\0" + head + struct.pack(f"{order}IH", directory, len(entries) if count is None else count) + body


SIX = (0x0112, 3, 1, 6)


@pytest.mark.parametrize(
    "exif, orientation",
    [
        (tiff("<", SIX), 6),
        (tiff(">", (0x010F, 2, 1, 9), SIX), 6),
        (tiff(">", (0x0112, 3, 1, 9), (0x0112, 3, 1, 8)), 8),
        (tiff("<", (0x0112, 3, 1, 0)), 1),
        (tiff("<", (0x0112, 4, 1, 6)), 1),  # no SHORT
        (tiff("<", (0x0112, 3, 2, 6)), 1),
        (tiff("<", SIX, count=60000), 6),
        (tiff("<", SIX, directory=2**32 - 1), 1),
        (tiff("<", SIX, directory=7), 1),
        (tiff(">", SIX, magic=b"II*\0"), 1),
        (tiff(">", SIX, magic=b"MM\0+"), 1),
        (tiff("<", SIX)[:-1], 1),
        (b"Exif\0\0II*\0", 1),
        (b"Exif\0\0", 1),
        (b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", 1),
        (tiff("<", SIX)[1:], 1),
    ],
)
def test_the_orientation_is_found_or_1(exif, orientation):
    assert int(header(with_exif(exif))[1]) == int(orientation_alone(with_exif(exif))) == orientation
    assert images.exif_orientation(exif) == orientation


def test_exif_data_counts_only_in_a_segment_of_its_own():
    comment = b"see " + tiff("<", SIX)
    contents = b"\xff\xd8\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + b"\xff\xda\0\0" + tiff("<", SIX)
    assert int(header(contents)[1]) == int(orientation_alone(contents)) == 1


def test_exif_data_end_with_their_segment():
    contents = with_exif(tiff("<", SIX))
    start = contents.index(b"Exif") - 2
    for length in (2, 4, 7, 8, 20):
        short = contents[:start] + struct.pack(">H", length) + contents[start + 2 :]
        assert int(header(short)[1]) == int(orientation_alone(short)) == 1


def test_damaged_headers_neither_fail_nor_disagree():
    rng = np.random.default_rng(5)
    image = smooth(rng, (40, 30))
    seeds = [encode(image, kind, 6, order) for kind in ("JPEG", "PNG") for order in "<>"]
    for trial in range(400):
        contents = bytearray(seeds[trial % 4])
        for position in rng.integers(2, 250, rng.integers(1, 6)):
            contents[position] = rng.integers(0, 256)
        size, orientation = header(bytes(contents[: rng.integers(0, len(contents)) if trial % 3 == 0 else None]))
        assert 1 <= int(orientation) <= 8 and (size.numpy() >= 0).all()
        assert int(orientation_alone(bytes(contents))) == int(header(bytes(contents))[1])
        exif = bytearray(tiff("<>"[trial % 2], (0x010F, 2, 1, 9), SIX))
        for position in rng.integers(6, len(exif), rng.integers(1, 4)):
            exif[position] = rng.integers(0, 256)
        assert int(header(with_exif(bytes(exif)))[1]) == images.exif_orientation(bytes(exif))


def test_decode_refuses_a_truncated_file():
    contents = encode(Image.effect_noise((64, 64), 50))
    with pytest.raises(tf.errors.InvalidArgumentError):
        images.decode(contents[: len(contents) // 2])
