import numpy as np
import pytest

from refinedet_tf.ops.anchors import generate_anchors

SIZES = (32, 64, 128, 256)


def slow_anchors(height, width, sizes):
    """One anchor at a time, in pixels until the end."""
    anchors = []
    for stride, size in zip((8, 16, 32, 64), sizes, strict=True):
        for i in range(height // stride):
            for j in range(width // stride):
                x, y = (j + 0.5) * stride, (i + 0.5) * stride
                for w, h in ((size, size), (size * 2**0.5, size / 2**0.5), (size / 2**0.5, size * 2**0.5)):
                    anchors.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return np.array(anchors) / [width, height, width, height]


@pytest.mark.parametrize(
    ("size", "index", "box"),
    [
        (320, 0, (-0.0375, -0.0375, 0.0625, 0.0625)),
        (320, 1, (-0.058211, -0.022855, 0.083211, 0.047855)),
        (320, 2, (-0.022855, -0.058211, 0.047855, 0.083211)),
        (320, 3, (-0.0125, -0.0375, 0.0875, 0.0625)),
        (320, 4800, (-0.075, -0.075, 0.125, 0.125)),
        (320, 6373, (0.334315, 0.617157, 1.465685, 1.182843)),
        (512, 0, (-0.023438, -0.023438, 0.039062, 0.039062)),
        (512, 12288, (-0.046875, -0.046875, 0.078125, 0.078125)),
        (512, 16319, (0.760723, 0.583947, 1.114277, 1.291053)),
    ],
)
def test_anchors_are_those_of_the_original(size, index, box):
    anchors = generate_anchors((size, size), SIZES)
    assert anchors.dtype == np.float32
    np.testing.assert_allclose(anchors[index], box, atol=6e-7)  # the golden values have six decimals


@pytest.mark.parametrize(
    ("size", "count", "total", "mean_area", "crossing"),
    [(320, 6375, 12750.0, 0.0301176, 1634), (512, 16320, 32640.0, 0.0117647, 2720)],
)
def test_counts_sums_areas_and_anchors_that_cross_the_border(size, count, total, mean_area, crossing):
    anchors = generate_anchors((size, size), SIZES).astype(np.float64)
    assert anchors.shape == (count, 4)
    np.testing.assert_allclose(anchors.sum(), total, rtol=1e-6)
    areas = (anchors[:, 2] - anchors[:, 0]) * (anchors[:, 3] - anchors[:, 1])
    np.testing.assert_allclose(areas.mean(), mean_area, atol=5e-8)
    # Corners that lie on the border to the last bit of float32 do not cross it.
    outside = (anchors < -1e-6) | (anchors > 1 + 1e-6)
    assert outside.any(axis=1).sum() == crossing


@pytest.mark.parametrize("size", [(64, 128), (192, 64), (320, 320), (256, 448)])
@pytest.mark.parametrize("sizes", [SIZES, (24, 50, 96.5, 192)])
def test_every_size_equals_a_loop_over_levels_rows_columns_and_ratios(size, sizes):
    np.testing.assert_allclose(generate_anchors(size, sizes), slow_anchors(*size, sizes), atol=1e-6)


def test_four_sizes_are_needed():
    with pytest.raises(ValueError, match="zip"):
        generate_anchors((64, 64), (32, 64, 128))
