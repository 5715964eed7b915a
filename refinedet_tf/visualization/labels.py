"""Labels of boxes: where they go, and how they are written."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import ImageDraw, ImageFont

Color = tuple[int, int, int]


def label_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Returns width and height of a label in pixels."""
    ascent, descent = font.getmetrics()
    return math.ceil(font.getlength(text)) + 2 * _margin(font), ascent + descent + _margin(font)


def draw_label(
    canvas: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, color: Color, font: ImageFont.FreeTypeFont
) -> None:
    """Writes black or white text on a filled rectangle whose upper left corner is given."""
    left, top = corner
    width, height = label_size(text, font)
    canvas.rectangle((left, top, left + width - 1, top + height - 1), fill=color)
    canvas.text((left + _margin(font), top + _margin(font) // 2), text, fill=_contrasting(color), font=font)


def place_labels(
    boxes: Sequence[tuple[int, int, int, int]], sizes: Sequence[tuple[int, int]], image_size: tuple[int, int]
) -> list[tuple[int, int]]:
    """Finds a place for the label of each box.

    A label is above the left end of its box if that is inside the image and free; otherwise it takes the next free
    place along the border of the box, or the one that covers least of the labels before it if no place is free.

    Args:
        boxes: first and last column and row of each box, (left, top, right, bottom), in pixels inside the image. The
            first box chooses first.
        sizes: (width, height) of each label.
        image_size: (width, height).

    Returns:
        (left, top) of each label. A label that fits into the image lies inside it.
    """
    placed = np.zeros([0, 4])
    places = []
    for box, (width, height) in zip(boxes, sizes, strict=True):
        corners = np.array(_candidates(box, width, height))
        corners = np.maximum(np.minimum(corners, np.subtract(image_size, (width, height))), 0)
        rectangles = np.concatenate([corners, np.add(corners, (width, height))], axis=1)
        best = int(np.argmin(_covered_area(rectangles, placed)))
        places.append((int(corners[best, 0]), int(corners[best, 1])))
        placed = np.concatenate([placed, rectangles[best : best + 1]])
    return places


def _candidates(box: tuple[int, int, int, int], width: int, height: int) -> list[tuple[int, int]]:
    """Upper left corners of a label along the border of a box, the preferred ones first.

    Those outside the image are moved inside by the caller: a label above a box at the top of the image becomes one
    inside the box.
    """
    left, top, right, bottom = box
    columns = [left, *range(left + height, right - width + 1, height), right + 1 - width]
    rows = [top, *range(top + height, bottom - height + 1, height), bottom + 1 - height]
    above = [(x, top - height) for x in columns]
    inside_top = [(x, top) for x in columns]
    below = [(x, bottom + 1) for x in columns]
    inside_bottom = [(x, bottom + 1 - height) for x in columns]
    inside_sides = [(x, y) for y in rows for x in (left, right + 1 - width)]
    beside = [(x, y) for y in rows for x in (left - width, right + 1)]
    return above + inside_top + below + inside_bottom + inside_sides + beside


def _covered_area(rectangles: np.ndarray, placed: np.ndarray) -> np.ndarray:
    """Pixels of each of `[n, 4]` rectangles that `[m, 4]` others cover, counted once for each: `[n]`."""
    corners = np.minimum(rectangles[:, None, 2:], placed[:, 2:]) - np.maximum(rectangles[:, None, :2], placed[:, :2])
    return np.maximum(corners, 0).prod(axis=-1).sum(axis=1)


def _margin(font: ImageFont.FreeTypeFont) -> int:
    return max(2, round(font.size / 5))


def _contrasting(color: Color) -> Color:
    """Black or white, whichever contrasts more by the definition of WCAG 2 (relative luminance 0.179 is the middle)."""
    channels = np.array(color) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return (0, 0, 0) if linear @ (0.2126, 0.7152, 0.0722) > 0.179 else (255, 255, 255)
