import math
from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf

from refinedet_tf.ops.resizing import Resizing


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
    resized = Resizing(*size).resize(image)
    assert resized.dtype == tf.float32
    expected = slow_bilinear(image.astype(float), *size)
    np.testing.assert_allclose(resized, expected, atol=5e-4)  # float32 weights of values up to 255


def test_resize_treats_the_images_of_a_batch_alike():
    batch = np.random.default_rng(1).uniform(0, 255, (3, 10, 8, 3)).astype(np.float32)
    resized = Resizing(6, 6).resize(batch)
    np.testing.assert_array_equal(resized, tf.stack([Resizing(6, 6).resize(image) for image in batch]))


SIZES = [(30, 40), (40, 30), (97, 13), (13, 97), (64, 96), (1, 500), (500, 1), (3, 2)]
INPUT = (64, 96)
LETTERBOX = Resizing(*INPUT, "letterbox")


def slow_letterbox(image):
    """The larger scale at which the image fits, in fractions; the image in the middle of a plain canvas."""
    scale = min(Fraction(INPUT[0], image.shape[0]), Fraction(INPUT[1], image.shape[1]))
    height, width = (max(1, math.floor(side * scale + Fraction(1, 2))) for side in image.shape[:2])
    top, left = (INPUT[0] - height) // 2, (INPUT[1] - width) // 2
    canvas = np.empty((*INPUT, 3))
    canvas[:] = (123, 117, 104)
    canvas[top : top + height, left : left + width] = slow_bilinear(image.astype(float), height, width)
    return canvas, (left, top, left + width, top + height)


@pytest.mark.parametrize("image_size", SIZES)
def test_a_letterbox_keeps_the_aspect_ratio_on_a_plain_canvas(image_size):
    image = np.random.default_rng(3).integers(0, 256, (*image_size, 3), dtype=np.uint8)
    expected, (left, top, right, bottom) = slow_letterbox(image)
    resized = LETTERBOX.resize(image)
    assert resized.shape == (*INPUT, 3)
    np.testing.assert_allclose(resized, expected, atol=0.01)  # float32 positions of up to 500
    whole = np.float32([[0, 0, 1, 1]])
    shown = LETTERBOX.boxes_to_input(whole, image_size)
    np.testing.assert_allclose(shown, [[left / 96, top / 64, right / 96, bottom / 64]], atol=1e-6)
    np.testing.assert_array_equal(LETTERBOX.resize(np.stack([image] * 2)), tf.stack([resized] * 2))


def test_boxes_go_to_the_input_and_back_each_with_its_own_image():
    rng = np.random.default_rng(4)
    boxes = rng.uniform(0, 1, (len(SIZES), 5, 4)).astype(np.float32)
    moved = LETTERBOX.boxes_to_input(boxes, SIZES)
    for box, size, expected in zip(boxes, SIZES, moved, strict=True):
        np.testing.assert_array_equal(LETTERBOX.boxes_to_input(box, size), expected)
    back = LETTERBOX.boxes_to_image(moved, SIZES)
    np.testing.assert_allclose(back, boxes, atol=1e-4)  # the narrowest image is a pixel wide
    for move in (Resizing(*INPUT).boxes_to_input, Resizing(*INPUT).boxes_to_image):
        np.testing.assert_array_equal(move(boxes, SIZES), boxes)


def test_an_image_of_the_inputs_aspect_ratio_fills_it_in_both_modes():
    image = np.random.default_rng(5).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    np.testing.assert_array_equal(LETTERBOX.resize(image), Resizing(*INPUT).resize(image))
