import numpy as np
import pytest
import tensorflow as tf

from refinedet_tf.data.augmentation.resampling import _lanczos
from refinedet_tf.data.augmentation.windows import fill, visible_part
from tests.data.augmentation.helpers import resize, seeds


def test_every_interpolation_is_used_and_stays_within_the_range_of_colors():
    image = np.random.default_rng(4).integers(0, 2, (40, 30, 3)).astype(np.uint8) * 255
    methods = {
        method: tf.clip_by_value(tf.cast(tf.image.resize(image, (25, 50), method), tf.float32), 0, 255).numpy()
        for method in ("bilinear", "area", "nearest", "bicubic", "lanczos3")
    }
    used = []
    for seed in seeds(40):
        resized = resize(image, (25, 50), seed).numpy()
        assert resized.dtype == np.float32 and resized.min() >= 0 and resized.max() <= 255
        used += [name for name, expected in methods.items() if np.allclose(resized, expected, rtol=0, atol=1e-4)]
    assert len(used) == 40 and set(used) == set(methods)


@pytest.mark.parametrize("size", [(160, 200), (61, 83), (9, 7)])
def test_lanczos_beside_a_margin_is_that_of_the_whole_canvas(size):
    image = tf.constant(np.random.default_rng(5).integers(0, 2, (14, 11, 3)) * 255, tf.uint8)
    size = tf.constant(size)
    for window in ([-7, -9, 20, 19], [-13, 2, 5, 31], [3, -8, 30, 8], [0, 0, 11, 14]):
        visible = visible_part(image, tf.constant(window))
        part = image[visible[1] : visible[3], visible[0] : visible[2]]
        canvas = fill(part, visible, tf.constant(window))
        expected = tf.image.resize(tf.cast(canvas, tf.float32), size, "lanczos3")
        resized = _lanczos(tf.cast(part, tf.float32), visible, tf.constant(window), size)
        np.testing.assert_allclose(resized, expected, atol=0.05)
