"""Galleries of images."""

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GALLERY_HEIGHT = 360
GALLERY_GAP = 12
TITLE_HEIGHT = 28


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
