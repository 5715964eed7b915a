import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from refinedet_tf.ops import images


def slow_bilinear(image, height, width):
    """Each output pixel's centre, looked up between the four input pixels around it."""
    result = np.zeros((height, width, 3))
    for row in range(height):
        for column in range(width):
            y = np.clip((row + 0.5) * image.shape[0] / height - 0.5, 0, image.shape[0] - 1)
            x = np.clip((column + 0.5) * image.shape[1] / width - 0.5, 0, image.shape[1] - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
            upper = image[top, left] * (1 - x + left) + image[top, right] * (x - left)
            lower = image[bottom, left] * (1 - x + left) + image[bottom, right] * (x - left)
            result[row, column] = upper * (1 - y + top) + lower * (y - top)
    return result


@pytest.mark.parametrize("size", [(5, 12), (20, 6), (9, 7)])
def test_resize_is_bilinear_between_pixel_centres(size):
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    resized = images.resize(image, size)
    assert resized.dtype == tf.float32
    expected = slow_bilinear(image.astype(float), *size)
    np.testing.assert_allclose(resized, expected, atol=5e-4)  # float32 weights of values up to 255


def test_resize_treats_the_images_of_a_batch_alike():
    batch = np.random.default_rng(1).uniform(0, 255, (3, 10, 8, 3)).astype(np.float32)
    resized = images.resize(batch, (6, 6))
    np.testing.assert_array_equal(resized, tf.stack([images.resize(image, (6, 6)) for image in batch]))


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
