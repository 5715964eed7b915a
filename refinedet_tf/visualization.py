"""Pictures: boxes drawn on images, galleries of images, and the curves of a training run."""

import colorsys
import csv
import math
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

# The palette of Okabe and Ito, which colour-blind people tell apart, without its black, as boxes must show on dark
# photos. Then 13 colours, each as far from those before as it can be, seen with and without red-green blindness.
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
GALLERY_HEIGHT = 360
GALLERY_GAP = 12
TITLE_HEIGHT = 28

# Columns of the training log, their names in the legend, and their colours: blue for the ARM, red for the ODM.
LOSSES = {
    "loss": ("total", "#222222"),
    "arm_objectness_loss": ("ARM objectness", "#0072b2"),
    "arm_box_loss": ("ARM boxes", "#56b4e9"),
    "odm_class_loss": ("ODM classes", "#d55e00"),
    "odm_box_loss": ("ODM boxes", "#e69f00"),
}
AP_COLUMN = "val_ap"


def class_color(index: int) -> Color:
    """The colour of a class, the same in every picture: (red, green, blue), 0 to 255."""
    if index < len(CLASS_COLORS):
        return CLASS_COLORS[index]
    # Steps of the golden ratio around the hue circle never come back to a hue; three tones set neighbours apart.
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
) -> np.ndarray:
    """Draws boxes with their class names, and scores if there are any, on a copy of an image.

    Lines and letters grow with the image. Better detections lie on top of worse ones. The part of a box outside the
    image is cut off, and its label is moved inside.

    Args:
        image: uint8 [h, w, 3], RGB.
        boxes: [k, 4], relative (xmin, ymin, xmax, ymax); without the padding of a batch.
        classes: int [k], 0-based.
        scores: [k].
        class_names: the names of the classes, by index.

    Returns:
        uint8 [h, w, 3].

    Raises:
        ValueError: the image is no uint8 RGB image, the number of boxes differs from that of classes or scores, or a
            class has no name.
    """
    boxes, classes = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(classes).astype(int)
    order = np.arange(len(boxes)) if scores is None else np.argsort(scores, kind="stable")
    _check_drawable(image, boxes, classes, scores, len(class_names))
    picture = Image.fromarray(image)
    canvas = ImageDraw.Draw(picture)
    short_side = min(picture.size)
    line_width = max(2, round(short_side / 140))
    font = ImageFont.load_default(size=max(12, round(short_side / 28)))

    visible = []
    for index in order:
        pixels = _visible_pixels(boxes[index], picture.width, picture.height)
        if pixels is not None:
            visible.append((index, pixels))
            canvas.rectangle(pixels, outline=class_color(classes[index]), width=line_width)
    # Labels come after all boxes, so that no line crosses a name.
    for index, pixels in visible:
        text = class_names[classes[index]] if scores is None else f"{class_names[classes[index]]} {scores[index]:.2f}"
        _draw_label(canvas, picture.size, pixels[:2], text, class_color(classes[index]), font)
    return np.asarray(picture).copy()


def save_gallery(
    images: Sequence[np.ndarray], path: str | os.PathLike, columns: int = 4, titles: Sequence[str] | None = None
) -> None:
    """Saves images side by side as one PNG, all scaled to a height of 360 pixels.

    KerasCV's `plot_image_gallery` takes images of one size only, in full rows and without titles.

    Args:
        images: uint8 [h, w, 3] each; their sizes may differ.
        path: the PNG file.
        columns: images in a row.
        titles: a line above each image; shortened where it is wider than the image.

    Raises:
        ValueError: there is no image, no column, or not one title for each image.
    """
    if not len(images):
        raise ValueError("There is no image for a gallery.")
    if columns < 1:
        raise ValueError(f"columns = {columns}; a gallery needs at least one.")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"{len(titles)} titles for {len(images)} images; give one for each.")
    pictures = [_scaled_to_height(Image.fromarray(np.asarray(image)), GALLERY_HEIGHT) for image in images]
    rows = [range(start, min(start + columns, len(pictures))) for start in range(0, len(pictures), columns)]
    title_height = 0 if titles is None else TITLE_HEIGHT
    row_height = title_height + GALLERY_HEIGHT + GALLERY_GAP
    width = max(sum(pictures[index].width + GALLERY_GAP for index in row) for row in rows) + GALLERY_GAP
    gallery = Image.new("RGB", (width, len(rows) * row_height + GALLERY_GAP), "white")
    canvas = ImageDraw.Draw(gallery)
    font = ImageFont.load_default(size=20)
    top = GALLERY_GAP
    for row in rows:
        left = GALLERY_GAP
        for index in row:
            if titles is not None:
                title = _shortened(titles[index], font, pictures[index].width)
                canvas.text((left, top), title, fill=(40, 40, 40), font=font)
            gallery.paste(pictures[index], (left, top + title_height))
            left += pictures[index].width + GALLERY_GAP
        top += row_height
    gallery.save(path, format="PNG")


def save_loss_curves(csv_path: str | os.PathLike, path: str | os.PathLike) -> None:
    """Draws a training run: the losses over the epochs, and below them the average precision where it was measured.

    Args:
        csv_path: the file of Keras's `CSVLogger`: `epoch`, `loss` and the parts of the loss, their `val_` versions
            (drawn dashed), and `val_ap` between 0 and 1. Missing columns and values are left out.
        path: the PNG file.

    Raises:
        ValueError: the file is no training log or holds no finished epoch.
    """
    with open(csv_path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"epoch", "loss"} <= rows[0].keys():
        raise ValueError(
            f"{os.fspath(csv_path)} is no training log with a finished epoch: "
            "it needs the columns epoch and loss, as Keras's CSVLogger writes them."
        )
    epochs, precision = _column(rows, AP_COLUMN)
    figure = Figure(figsize=(9, 7.5) if len(epochs) else (9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    heights = [1.7, 1] if len(epochs) else [1]
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    _plot_losses(panels[0], rows)
    if len(epochs):
        panels[1].plot(epochs, precision, color="#009e73", linewidth=2, marker="o", markersize=4)
        best = int(np.argmax(precision))
        panels[1].set_title(f"best {100 * precision[best]:.1f} % after epoch {epochs[best]}", loc="left", fontsize=10)
        panels[1].set_ylim(bottom=0)
        panels[1].yaxis.set_major_formatter(PercentFormatter(1.0))
        panels[1].set_ylabel("average precision (validation)")
    for panel in panels:
        panel.grid(True, color="#e4e4e4", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    panels[-1].set_xlabel("epoch")
    figure.savefig(path, format="png", dpi=120)


def _plot_losses(panel: Axes, rows: list[dict[str, str]]) -> None:
    """Training losses as lines, validation losses as dashes of the same colour, on a logarithmic axis."""
    handles, validated = [], False
    for column, (name, color) in LOSSES.items():
        width = 2.2 if column == "loss" else 1.4
        epochs, values = _column(rows, column)
        if len(epochs):
            marker = "o" if len(epochs) == 1 else None  # one point makes no line
            handles += panel.plot(epochs, values, color=color, linewidth=width, marker=marker, label=name)
        epochs, values = _column(rows, "val_" + column)
        if len(epochs):
            panel.plot(epochs, values, "--", color=color, linewidth=width, marker="o", markersize=3)
            validated = True
    if validated:
        handles.append(Line2D([], [], linestyle="--", color="#808080", marker="o", markersize=3, label="validation"))
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_ylabel("loss (logarithmic)")
    panel.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)


def _column(rows: list[dict[str, str]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The epochs, counted from 1, at which a column has a finite number, and the numbers."""
    pairs = []
    for row in rows:
        text = row.get(name) or "NA"  # CSVLogger writes NA for what an epoch did not measure
        value = math.nan if text == "NA" else float(text)
        if math.isfinite(value):
            pairs.append((int(row["epoch"]) + 1, value))
    return np.array([epoch for epoch, _ in pairs], int), np.array([value for _, value in pairs])


def _check_drawable(
    image: np.ndarray, boxes: np.ndarray, classes: np.ndarray, scores: np.ndarray | None, class_count: int
) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"The image is {image.dtype} {list(image.shape)}; it must be uint8 [h, w, 3], RGB 0 to 255.")
    for name, values in (("classes", classes), ("scores", scores)):
        if values is not None and len(values) != len(boxes):
            raise ValueError(f"{len(values)} {name} for {len(boxes)} boxes; give one for each.")
    unknown = classes[(classes < 0) | (classes >= class_count)]
    if len(unknown):
        raise ValueError(
            f"Class {unknown[0]} has no name: class_names has {class_count} (0 to {class_count - 1}). "
            "Cut padding off at num_detections, and use the names the model was trained with."
        )


def _visible_pixels(box: np.ndarray, width: int, height: int) -> tuple[int, int, int, int] | None:
    """First and last column and row of a relative box inside an image, as (left, top, right, bottom), or None."""
    left, top, right, bottom = box * (width, height, width, height)
    if not (left < width and right > 0 and top < height and bottom > 0 and left <= right and top <= bottom):
        return None  # also where a coordinate is nan
    left, top = min(round(max(left, 0)), width - 1), min(round(max(top, 0)), height - 1)
    right, bottom = round(min(right, width)) - 1, round(min(bottom, height)) - 1
    return left, top, max(left, right), max(top, bottom)


def _draw_label(
    canvas: ImageDraw.ImageDraw,
    image_size: tuple[int, int],
    corner: tuple[int, int],
    text: str,
    color: Color,
    font: ImageFont.FreeTypeFont,
) -> None:
    """Writes on a filled tag above a box's upper left corner, or inside the box where the image ends above it."""
    margin = max(2, round(font.size / 5))
    ascent, descent = font.getmetrics()
    width, height = math.ceil(font.getlength(text)) + 2 * margin, ascent + descent + margin
    left = max(0, min(corner[0], image_size[0] - width))
    top = corner[1] - height if corner[1] >= height else corner[1]
    top = max(0, min(top, image_size[1] - height))
    canvas.rectangle((left, top, left + width - 1, top + height - 1), fill=color)
    canvas.text((left + margin, top + margin // 2), text, fill=_contrasting(color), font=font)


def _contrasting(color: Color) -> Color:
    """Black or white, whichever contrasts more by the definition of WCAG 2 (relative luminance 0.179 is the middle)."""
    channels = np.array(color) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return (0, 0, 0) if linear @ (0.2126, 0.7152, 0.0722) > 0.179 else (255, 255, 255)


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, its end replaced by dots if it is wider than so many pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _scaled_to_height(picture: Image.Image, height: int) -> Image.Image:
    width = max(1, round(picture.width * height / picture.height))
    return picture.resize((width, height), Image.Resampling.LANCZOS)
