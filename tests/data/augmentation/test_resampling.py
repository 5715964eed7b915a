import numpy as np
import tensorflow as tf

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
