"""Anchors: three boxes on every cell of the four feature maps."""

from collections.abc import Sequence

import numpy as np

STRIDES = (8, 16, 32, 64)
ASPECT_RATIOS = (1.0, 2.0, 0.5)


def generate_anchors(input_size: Sequence[int], sizes: Sequence[float]) -> np.ndarray:
    """Returns the anchors of an input size, in the order of the network's predictions.

    On level `l`, the anchors of the cell in row `i` and column `j` are centered at `((j + 0.5) s, (i + 0.5) s)` pixels,
    `s = STRIDES[l]`. Their sides are `(m sqrt(r), m / sqrt(r))` for each ratio `r` of `ASPECT_RATIOS`, `m = sizes[l]`.
    The paper has `m = 4 s` for every input size (section 3.2).

    Args:
        input_size: height and width of the network's input in pixels, multiples of 64.
        sizes: side in pixels of the square anchor at each level.

    Returns:
        float32 `[n, 4]`, `(xmin, ymin, xmax, ymax)`, relative to the input and not clipped to it: level by level from
        stride 8 to 64, row by row, with ratios 1, 2, 1/2 in each cell. 6375 at 320 x 320, 16320 at 512 x 512.
    """
    height, width = input_size
    levels = []
    for stride, size in zip(STRIDES, sizes, strict=True):
        rows, columns = np.mgrid[: height // stride, : width // stride]
        centers = (np.stack([columns, rows], axis=-1) + 0.5) * stride
        roots = np.sqrt(ASPECT_RATIOS)
        half_sides = np.stack([size * roots, size / roots], axis=-1) / 2
        centers = centers[:, :, np.newaxis, :]
        levels.append(np.concatenate([centers - half_sides, centers + half_sides], axis=-1).reshape(-1, 4))
    return (np.concatenate(levels) / [width, height, width, height]).astype(np.float32)
