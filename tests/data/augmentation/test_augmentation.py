import numpy as np
import pytest
import tensorflow as tf

from refinedet_tf.config import AugmentationConfig
from refinedet_tf.data.augmentation import augment
from refinedet_tf.data.augmentation.colors import photometric_distortion
from refinedet_tf.data.augmentation.windows import random_flip
from refinedet_tf.ops.resizing import Resizing
from tests.data.augmentation.helpers import crop, expand, random_objects, resize, seeds

MEAN = (123, 117, 104)
LETTERBOX = Resizing(64, 96, "letterbox")


@pytest.mark.parametrize("resize", ["warp", "letterbox"])
def test_pixels_and_boxes_move_together_through_all_steps(resize):
    image = np.zeros((150, 200, 3), np.uint8)
    image[..., 2] = 200  # blue, with a red rectangle
    image[40:100, 60:150] = (200, 0, 0)
    boxes = tf.constant([[60 / 200, 40 / 150, 150 / 200, 100 / 150]])
    config = AugmentationConfig(photometric=False)
    augmented = tf.function(
        lambda seed: augment(image, boxes, tf.constant([3]), config, Resizing(160, 192, resize), seed)
    )
    kept = 0
    for seed in seeds(80):
        result, moved, classes = (tensor.numpy() for tensor in augmented(seed))
        assert result.shape == (160, 192, 3) and result.dtype == np.float32
        if len(moved) == 0:
            continue
        red = result[..., 0] - result[..., 2] > 60  # more than the mean color's 19
        rows, columns = np.nonzero(red.any(axis=1))[0], np.nonzero(red.any(axis=0))[0]
        seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        # Half an output pixel from sampling, and as much from where the threshold lies on a soft edge.
        np.testing.assert_allclose(moved[0] * [192, 160, 192, 160], seen, atol=1.5)
        assert classes.tolist() == [3]
        kept += 1
    assert kept > 50


def test_a_letterbox_in_training_is_the_one_of_inference():
    image = np.random.default_rng(9).integers(0, 256, (50, 20, 3), dtype=np.uint8)
    boxes, classes = random_objects(np.random.default_rng(9), 4)
    nothing = AugmentationConfig(
        photometric=False, expand_max_ratio=1, random_crop=False, flip=False, random_interpolation=False
    )
    result, moved, _ = augment(image, boxes, classes, nothing, LETTERBOX, seeds(1)[0])
    np.testing.assert_array_equal(result, LETTERBOX.resize(image))
    np.testing.assert_array_equal(moved, LETTERBOX.boxes_to_input(boxes, (50, 20)))


@pytest.mark.parametrize("count", [0, 5])
def test_augmentation_follows_from_its_seed(count):
    rng = np.random.default_rng(6)
    image = rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)
    boxes, classes = random_objects(rng, count)
    augmented = tf.function(lambda seed: augment(image, boxes, classes, AugmentationConfig(), Resizing(64, 64), seed))
    first, again, other = (augmented(seed) for seed in (seeds(1)[0], seeds(1)[0], seeds(2)[1]))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first[0], other[0])
    assert first[1].shape[1:] == (4,)


def test_without_steps_the_image_is_only_resized():
    rng = np.random.default_rng(8)
    image = rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)
    boxes, classes = random_objects(rng, 4)
    nothing = AugmentationConfig(
        photometric=False, expand_max_ratio=1, random_crop=False, flip=False, random_interpolation=False
    )
    result = augment(image, boxes, classes, nothing, Resizing(64, 32), seeds(1)[0])
    np.testing.assert_array_equal(result[0], tf.image.resize(image, (64, 32)))
    np.testing.assert_array_equal(result[1], boxes)
    np.testing.assert_array_equal(result[2], classes)


def test_all_steps_at_once_are_the_steps_one_after_the_other():
    config = AugmentationConfig()
    rng = np.random.default_rng(8)
    together = tf.function(
        lambda *inputs: augment(*inputs[:3], config, Resizing(40, 50), inputs[3]), reduce_retracing=True
    )
    beside = 0
    for seed in seeds(60):
        image = tf.constant(rng.integers(0, 256, (31, 43, 3), dtype=np.uint8))
        boxes, classes = (tf.constant(part) for part in random_objects(rng, 3))
        parts = tf.unstack(tf.random.experimental.stateless_split(seed, 5))
        expected = photometric_distortion(image, parts[0])
        expected, moved = expand(expected, boxes, config.expand_max_ratio, parts[1])
        expected, moved, kept = crop(expected, moved, classes, parts[2])
        beside += bool((expected.numpy() == MEAN).all())
        expected = resize(expected, (40, 50), parts[3])
        expected, moved = random_flip(expected, moved, parts[4])
        for fast, slow in zip(together(image, boxes, classes, seed), (expected, moved, kept), strict=True):
            # Counted from elsewhere, the place of a pixel is another float32, by some hundred thousandths of a pixel.
            np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=0.01)
    assert beside  # among them crops that show nothing of the image
