import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from refinedet_tf.ops import gif


def animated(count, size=(30, 20), **options):
    """A GIF of random frames, and its first frame."""
    rng = np.random.default_rng(count)
    frames = [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for _ in range(count)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=count > 1, append_images=frames[1:], **options)
    file.seek(0)
    return file.getvalue(), np.asarray(Image.open(file).convert("RGB"))


first_frame = tf.function(gif.first_frame, input_signature=[tf.TensorSpec([], tf.string)])


@pytest.mark.parametrize("count, options", [(1, {}), (3, {}), (3, {"comment": b"x" * 600, "loop": 0})])
def test_the_first_frame_remains_and_decodes_alone(count, options):
    content, expected = animated(count, **options)
    assert gif.is_gif(tf.constant(content)) and not gif.is_gif(tf.constant(b"GIF"))
    shortened, pixels = first_frame(content)
    assert pixels == 600
    assert len(shortened.numpy()) == len(content) if count == 1 else len(shortened.numpy()) < len(content) / 2
    np.testing.assert_array_equal(tf.io.decode_gif(shortened), expected[np.newaxis])


def test_a_frame_may_have_a_palette_of_its_own():
    content, expected = animated(3)
    flags, place = content[10], content.index(b"\x2c\x00\x00\x00\x00" + struct.pack("<HH", 20, 30))
    end = 13 + 3 * 2 ** (flags % 8 + 1)  # of the palette of all frames
    moved = content[:10] + bytes([flags & 0x7F]) + content[11:13] + content[end : place + 9]
    moved += bytes([0x80 | flags % 8]) + content[13:end] + content[place + 10 :]
    shortened, pixels = first_frame(moved)
    assert pixels == 600 and len(shortened.numpy()) < len(content) / 2
    np.testing.assert_array_equal(tf.io.decode_gif(shortened), expected[np.newaxis])


def test_the_frame_counts_and_not_the_screen():
    content, _ = animated(1)
    place = content.index(b"\x2c\x00\x00\x00\x00" + struct.pack("<HH", 20, 30))
    huge = content[: place + 5] + struct.pack("<HH", 60_000, 50_000) + content[place + 9 :]
    assert first_frame(huge)[1] == 60_000 * 50_000


def test_damaged_files_end():
    content, _ = animated(2)
    rng = np.random.default_rng(0)
    for length in (4, 6, 10, 13, 14, 20, 100, len(content) - 1):
        first_frame(content[:length])
    for _ in range(100):
        changed = bytearray(content)
        for place in rng.integers(4, len(content), 4):
            changed[place] = rng.integers(256)
        shortened, pixels = first_frame(bytes(changed))
        assert len(shortened.numpy()) <= len(content) + 1 and 0 <= pixels < 2**32
