import colorsys

import numpy as np
import pytest
import tensorflow as tf

from refinedet_tf.data.augmentation import colors as color_ops
from refinedet_tf.data.augmentation.colors import photometric_distortion
from tests.data.augmentation.helpers import over_many_seeds, seeds


def changed_by_hsv(image, change):
    result = np.empty(image.shape)
    for index in np.ndindex(image.shape[:2]):
        result[index] = np.multiply(colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*image[index] / 255))), 255)
    return result


def slow_photometric(image, coins, brightness, contrast, saturation, hue):
    """The five steps one after another, on 8-bit colors."""
    steps = [
        (coins[0], lambda x: x + brightness),
        (coins[1] and coins[4], lambda x: x * contrast),
        (coins[2], lambda x: changed_by_hsv(x, lambda h, s, v: (h, min(s * saturation, 1), v))),
        (coins[3], lambda x: changed_by_hsv(x, lambda h, s, v: ((h + hue) % 1, s, v))),
        (coins[1] and not coins[4], lambda x: x * contrast),
    ]
    image = image.astype(float)
    for coin, change in steps:
        if coin:
            image = np.round(np.clip(change(image), 0, 255))
    return image


def test_colors_change_as_in_a_slow_implementation_on_the_same_numbers():
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    distort = tf.function(photometric_distortion)
    taken = []
    for seed in seeds(60):
        coins_seed, amounts_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        coins = tf.random.stateless_uniform([5], coins_seed).numpy() < 0.5
        amounts = tf.random.stateless_uniform([4], amounts_seed).numpy()
        amounts = amounts * [64, 1, 1, 0.2] + [-32, 0.5, 0.5, -0.1]
        difference = np.abs(distort(image, seed).numpy() - slow_photometric(image, coins, *amounts))
        # Where a value lies halfway, float32 may round to the other side, and later steps enlarge that.
        assert difference.max() <= 3 and (difference > 0).mean() < 0.05
        taken.append(coins)
    assert (np.mean(taken, axis=0) > 0.3).all() and (np.mean(taken, axis=0) < 0.7).all()


@pytest.mark.parametrize("factor", [0.5, 0.83, 1.0, 1.21, 1.5])
def test_saturation_is_that_of_tensorflow(factor):
    image = np.random.default_rng(2).integers(0, 256, (200, 201, 3)).astype(np.float32)
    image[:20, :, 1:] = image[:20, :, :1]  # grays
    image[20:40, :, 1] = 0  # fully saturated
    image[40], image[41] = 0, 255
    difference = np.abs(
        color_ops._saturate(tf.constant(image), factor) - np.round(tf.image.adjust_saturation(image, factor))
    )
    # With factors of 1/2 and 3/2, one of thirty values lies halfway between two whole numbers.
    assert difference.max() <= 1 and (difference > 0).mean() < (0.03 if factor % 1 == 0.5 else 0.01)


def distorted_colors(color):
    image = tf.constant([[color]], tf.uint8)
    return over_many_seeds(lambda seed: tf.cast(photometric_distortion(image, seed)[0, 0], tf.float32))


def test_colors_change_as_often_and_as_far_as_the_authors_let_them():
    # Black becomes lighter by brightness alone, up to 32, which contrast makes 48.
    black = distorted_colors([0, 0, 0])[:, 0]
    assert abs((black > 0).mean() - 0.25 * 63 / 64) < 0.02 and 44 <= black.max() <= 48
    # White becomes darker than 255 - 32 by contrast alone: with every second factor below 191 / 255, or where
    # brightness has taken up to 32 before, below 0.8 on the average.
    white = distorted_colors([255, 255, 255])[:, 0]
    assert abs((white < 191).mean() - 0.5 * (0.75 * 0.249 + 0.25 * 0.3)) < 0.02 and 111 <= white.min() < 120
    # Where nothing is clipped, brightness and contrast leave the hue of red, with green and blue equal.
    colors = distorted_colors([120, 40, 40]).astype(float)
    hue, saturation, _ = np.array([colorsys.rgb_to_hsv(*color / 255) for color in colors]).T
    degrees = ((hue * 360 + 180) % 360 - 180)[np.ptp(colors, axis=1) > 50]  # in grayer ones rounding blurs it
    changed = degrees[np.abs(degrees) > 1.0]
    assert abs(len(changed) / len(degrees) - 0.5 * 35 / 36) < 0.03 and 34.5 < np.abs(degrees).max() < 37.5
    np.testing.assert_allclose(np.quantile(changed, [0.25, 0.5, 0.75]), [-18, 0, 18], atol=3)
    plain = (saturation > 0.64) & (saturation < 0.69)  # 2/3 as it was: a quarter, and what is changed by little
    assert 0.2 < plain.mean() < 0.35 and saturation.max() > 0.97 and saturation.min() < 0.34
