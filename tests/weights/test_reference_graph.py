"""The functions of the reference network against Caffe's definitions, written as loops."""

import numpy as np
import pytest

from tests.weights.reference_graph import conv, deconv, flatten, max_pool

RANDOM = np.random.default_rng(5)


@pytest.mark.parametrize(
    "size, stride, pad, dilation", [(3, 1, 1, 1), (3, 1, 3, 3), (3, 2, 1, 1), (7, 2, 3, 1), (1, 2, 0, 1)]
)
def test_convolution_is_the_sum_over_inputs_and_kernel(size, stride, pad, dilation):
    x = RANDOM.normal(size=(2, 8, 10)).astype(np.float32)
    weights = RANDOM.normal(size=(3, 2, size, size)).astype(np.float32)
    bias = RANDOM.normal(size=3).astype(np.float32)
    result = conv(x, [weights, bias], stride, pad, dilation)
    reach = dilation * (size - 1) + 1
    assert result.shape == (3, (8 + 2 * pad - reach) // stride + 1, (10 + 2 * pad - reach) // stride + 1)
    for o, y, z in np.ndindex(result.shape):
        total = bias[o]
        for i, u, v in np.ndindex(2, size, size):
            row, column = y * stride - pad + u * dilation, z * stride - pad + v * dilation
            if 0 <= row < 8 and 0 <= column < 10:
                total += x[i, row, column] * weights[o, i, u, v]
        assert result[o, y, z] == pytest.approx(total, abs=1e-4)


def test_deconvolution_spreads_each_value_over_four():
    x = RANDOM.normal(size=(3, 4, 5)).astype(np.float32)
    weights = RANDOM.normal(size=(3, 2, 2, 2)).astype(np.float32)
    result = np.zeros((2, 8, 10))
    for i, o, y, z, u, v in np.ndindex(3, 2, 4, 5, 2, 2):
        result[o, 2 * y + u, 2 * z + v] += x[i, y, z] * weights[i, o, u, v]
    np.testing.assert_allclose(deconv(x, [weights]), result, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_pooling_rounds_the_size_up(size):
    x = -RANDOM.uniform(1, 2, (1, 8, 6)).astype(np.float32)
    result = max_pool(x, size)
    assert result.shape == (1, 4, 3)
    for y, z in np.ndindex(4, 3):
        assert result[0, y, z] == x[0, 2 * y : 2 * y + size, 2 * z : 2 * z + size].max()


def test_flattening_goes_over_rows_columns_anchors_and_values():
    maps = [RANDOM.normal(size=(12, 2, 3)), RANDOM.normal(size=(12, 1, 2))]
    rows = [
        [one[4 * anchor + value, y, z] for value in range(4)]
        for one in maps
        for y, z, anchor in np.ndindex(one.shape[1], one.shape[2], 3)
    ]
    np.testing.assert_array_equal(flatten(maps, 4), rows)
