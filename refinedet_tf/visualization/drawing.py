"""Boxes with labels drawn on images."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from refinedet_tf.errors import DataError
from refinedet_tf.visualization.labels import Color, draw_label, label_size, place_labels

# The palette of Okabe and Ito, which color-blind people can tell apart, without black, which would not show on dark
# photos; then 13 colors, each as far as possible from those before it, with and without red-green blindness.
CLASS_COLORS: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (213, 94, 0),
    (204, 121, 167),
    (240, 228, 66),
    (0, 114, 178),
    (255, 195, 255),
    (105, 0, 255),
    (210, 45, 255),
    (150, 60, 105),
    (0, 225, 165),
    (120, 105, 0),
    (165, 255, 210),
    (210, 0, 165),
    (255, 75, 105),
    (255, 135, 225),
    (255, 195, 135),
    (135, 135, 210),
    (0, 105, 15),
)


def class_color(index: int) -> Color:
    """Returns the color of a class, the same in every picture: (red, green, blue), 0..255."""
    if index < len(CLASS_COLORS):
        return CLASS_COLORS[index]
    # Steps of the golden ratio around the hue circle never return to a hue; three tones tell neighbors apart.
    hue = (index * 0.618034) % 1.0
    saturation, value = ((0.75, 0.95), (0.45, 1.0), (0.65, 0.75))[index % 3]
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray | None = None,
    *,
    class_names: Sequence[str],
    labels: bool = True,
) -> np.ndarray:
    """Draws boxes, with their class names and any scores, on a copy of an image.

    Lines and letters grow with the image. Better detections are drawn over worse ones. A box is cut off at the border
    of the image. Labels stay inside the image, touch their boxes, and avoid each other where there is room.

    Args:
        image: uint8 `[h, w, 3]`, RGB.
        boxes: `[k, 4]`, relative (xmin, ymin, xmax, ymax), without the padding of a batch.
        classes: int `[k]`, 0-based.
        scores: `[k]`.
        class_names: the names of the classes, by index.
        labels: whether to write names and scores.

    Returns:
        uint8 `[h, w, 3]`.

    Raises:
        DataError: the image is not a uint8 RGB image, the number of boxes differs from that of classes or scores, or
            a class has no name.
    """
    boxes, classes = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(classes).astype(int)
    _check_drawable(image, boxes, classes, scores, len(class_names))
    picture = Image.fromarray(image)
    canvas = ImageDraw.Draw(picture)
    short_side = min(picture.size)
    line_width = max(2, round(short_side / 140))

    order = np.arange(len(boxes)) if scores is None else np.argsort(scores, kind="stable")
    visible = {index: _visible_pixels(boxes[index], picture.width, picture.height) for index in order}
    visible = {index: pixels for index, pixels in visible.items() if pixels is not None}
    for index, pixels in visible.items():
        canvas.rectangle(pixels, outline=class_color(classes[index]), width=line_width)
    if not labels:
        return np.asarray(picture).copy()

    # Labels come after all boxes, so that no line crosses a name. The best detection chooses its place first.
    best_first = list(reversed(visible))
    texts = [class_names[classes[index]] for index in best_first]
    if scores is not None:
        texts = [f"{text} {scores[index]:.2f}" for text, index in zip(texts, best_first, strict=True)]
    font = ImageFont.load_default(size=max(12, round(short_side / 28)))
    sizes = [label_size(text, font) for text in texts]
    places = place_labels([visible[index] for index in best_first], sizes, picture.size)
    for index, text, place in reversed(list(zip(best_first, texts, places, strict=True))):
        draw_label(canvas, place, text, class_color(classes[index]), font)
    return np.asarray(picture).copy()


def _check_drawable(
    image: np.ndarray, boxes: np.ndarray, classes: np.ndarray, scores: np.ndarray | None, class_count: int
) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"The image is {image.dtype} {list(image.shape)}; it must be uint8 [h, w, 3], RGB, 0 to 255.")
    for name, values in (("classes", classes), ("scores", scores)):
        if values is not None and len(values) != len(boxes):
            raise DataError(f"{len(values)} {name} for {len(boxes)} boxes; give one for each.")
    unknown = classes[(classes < 0) | (classes >= class_count)]
    if len(unknown):
        raise DataError(
            f"Class {unknown[0]} has no name: class_names has {class_count} (0 to {class_count - 1}). "
            "Cut padding off at num_detections, and use the names the model was trained with."
        )


def _visible_pixels(box: np.ndarray, width: int, height: int) -> tuple[int, int, int, int] | None:
    """First and last column and row of a relative box inside an image, as (left, top, right, bottom), or None."""
    left, top, right, bottom = box * (width, height, width, height)
    if not (left < width and right > 0 and top < height and bottom > 0 and left <= right and top <= bottom):
        return None  # also where a coordinate is NaN
    left, top = min(round(max(left, 0)), width - 1), min(round(max(top, 0)), height - 1)
    right, bottom = round(min(right, width)) - 1, round(min(bottom, height)) - 1
    return left, top, max(left, right), max(top, bottom)
