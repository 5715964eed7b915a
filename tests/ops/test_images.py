import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from refinedet_tf.ops import images


def encoded(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_decode_gives_rgb_for_every_png(mode):
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (6, 4, 3), dtype=np.uint8)).convert(mode)
    np.testing.assert_array_equal(images.decode(encoded(image, "PNG")), np.asarray(image.convert("RGB")))


def test_decode_gives_stored_pixels_whatever_the_exif_orientation():
    image = Image.new("RGB", (40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    assert images.decode(encoded(image, "JPEG", exif=exif)).shape == (20, 40, 3)


def test_decode_refuses_a_file_cut_short():
    contents = encoded(Image.effect_noise((64, 64), 50), "JPEG")
    with pytest.raises(tf.errors.InvalidArgumentError):
        images.decode(contents[: len(contents) // 2])
