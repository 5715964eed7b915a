"""Draws a data set: overlapping colored shapes on textured backgrounds, in VOC layout.

It needs no download and is learned in minutes, so it shows whether training works.
"""

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from refinedet_tf.errors import DataError

SHAPES = ["circle", "square", "triangle", "star"]

MIN_SIDE, MAX_SIDE = 40, 120  # pixels in an image of 256 pixels; in proportion for other sizes
MAX_SHAPES = 5
MIN_VISIBLE = 0.6  # part of a shape's area
MIN_CONTRAST = 70  # RGB distance between a shape and the mean of what it covers
SUPERSAMPLING = 4


def draw_shapes(
    output_dir: str | os.PathLike,
    counts: Mapping[str, int] | None = None,
    image_size: Sequence[int] = (256, 256),
    seed: int = 0,
) -> None:
    """Draws a detection data set with the classes `SHAPES`.

    Each image has one to five shapes, each at least 60 % visible. Boxes are tight around the whole shape, including its
    hidden part. The same seed draws the same images.

    Args:
        output_dir: the folder to create; it may exist if it is empty.
        counts: number of images by split; by default 400 in `train` and 100 in `val`.
        image_size: height and width in pixels.
        seed: random seed.

    Raises:
        DataError: `output_dir` is a file or a folder that is not empty; nothing is changed.
    """
    counts = {"train": 400, "val": 100} if counts is None else counts
    root = Path(output_dir)
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise DataError(f"{root} is not an empty folder; choose a new one.")
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    splits = [split for split, count in counts.items() for _ in range(count)]
    image_ids = {split: [] for split in counts}
    for index, split in enumerate(splits):
        image_ids[split].append(f"{index:06d}")

    def draw(index: int) -> None:
        image_id = f"{index:06d}"
        pixels, objects = draw_image(np.random.default_rng((seed, index)), image_size)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{image_id}.jpg", quality=90)
        (root / "Annotations" / f"{image_id}.xml").write_text(_xml(image_id, image_size, objects), encoding="utf-8")

    with ThreadPoolExecutor() as pool:
        drawn = pool.map(draw, range(len(splits)))
        for _ in tqdm(drawn, "Drawing shapes", len(splits), unit="image", delay=2, disable=None):
            pass
    for split, members in image_ids.items():
        text = "".join(f"{image_id}\n" for image_id in members)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(text, encoding="utf-8")


def draw_image(
    rng: np.random.Generator, image_size: Sequence[int]
) -> tuple[np.ndarray, list[tuple[str, tuple[int, int, int, int]]]]:
    """Draws one image.

    Args:
        rng: random number generator.
        image_size: height and width in pixels.

    Returns:
        pixels: RGB, uint8 `[height, width, 3]`.
        objects: class name and box of each shape; boxes are `(xmin, ymin, xmax, ymax)` in pixels, the maxima one past
            the last pixel that the shape touches.
    """
    height, width = image_size
    pixels = _background(rng, height, width)
    owner = np.zeros((height, width), np.int32)  # the visible shape at each pixel; 0 is the background
    areas, objects = {}, []
    wanted = int(rng.integers(1, MAX_SHAPES + 1))
    for _ in range(10 * wanted):  # the first shape always fits; ten trials each nearly always reach the wanted number
        if len(objects) == wanted:
            break
        name = SHAPES[rng.integers(len(SHAPES))]
        coverage = _coverage(rng, name, height, width)
        mask = coverage > 0.5
        visible = np.bincount(owner[~mask], minlength=len(objects) + 1)
        if any(visible[index] < MIN_VISIBLE * area for index, area in areas.items()):
            continue
        number = len(objects) + 1
        owner[mask], areas[number] = number, mask.sum()
        color = _contrasting_color(rng, pixels[mask].mean(axis=0))
        rows, columns = np.nonzero(coverage.any(axis=1))[0], np.nonzero(coverage.any(axis=0))[0]
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        inside = np.s_[box[1] : box[3], box[0] : box[2]]
        paint = color + 6 * rng.standard_normal((*coverage[inside].shape, 1), np.float32)
        pixels[inside] += coverage[inside][..., np.newaxis] * (paint - pixels[inside])
        objects.append((name, box))
    return pixels.clip(0, 255).round().astype(np.uint8), objects


def _coverage(rng: np.random.Generator, name: str, height: int, width: int) -> np.ndarray:
    """Draws a shape at a random place and returns its coverage of each pixel, 0..1, `[height, width]`."""
    side = rng.uniform(MIN_SIDE, MAX_SIDE) * min(height, width) / 256
    outline = _outline(name, rng)
    outline *= side / np.ptp(outline, axis=0).max()
    low, high = outline.min(axis=0), outline.max(axis=0)
    outline += rng.uniform(-low, (width, height) - high)
    canvas = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in outline * SUPERSAMPLING], fill=255)
    return np.asarray(canvas.reduce(SUPERSAMPLING)) / np.float32(255)


def _outline(name: str, rng: np.random.Generator) -> np.ndarray:
    """Returns the corners `[k, 2]`, (x, y), of a shape around the origin, in arbitrary size."""
    if name == "circle":
        angles, radii = np.linspace(0, 2 * math.pi, 64, endpoint=False), np.ones(64)
    elif name == "square":
        angles, radii = np.arange(4) * math.pi / 2 + math.pi / 4 + rng.uniform(-0.25, 0.25), np.ones(4)
    elif name == "triangle":
        angles, radii = np.arange(3) * 2 * math.pi / 3 + rng.uniform(0, 2 * math.pi), np.ones(3)
    else:
        angles, radii = np.arange(10) * math.pi / 5 + rng.uniform(0, 2 * math.pi), np.tile([1, 0.45], 5)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draws a gradient, stripes or smooth noise between two random colors, with grain: `[height, width, 3]`."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, math.pi)
    distance = x * math.cos(angle) + y * math.sin(angle)
    kind = rng.integers(3)
    if kind == 0:
        mix = (distance - distance.min()) / np.ptp(distance)
    elif kind == 1:
        mix = 0.5 + 0.5 * np.sin(distance * 2 * math.pi / rng.uniform(8, 60))
    else:
        coarse = rng.integers(0, 256, rng.integers(4, 24, size=2), dtype=np.uint8)
        mix = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)) / 255
    first, second = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    grain = 5 * rng.standard_normal((height, width, 3), np.float32)
    return first + mix.astype(np.float32)[..., np.newaxis] * (second - first) * np.float32(0.7) + grain


def _contrasting_color(rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    while True:
        color = rng.uniform(0, 255, 3)
        if np.linalg.norm(color - other) > MIN_CONTRAST:
            return color


def _xml(image_id: str, image_size: Sequence[int], objects: list[tuple[str, tuple[int, int, int, int]]]) -> str:
    height, width = image_size
    lines = [
        "<annotation>",
        f"  <filename>{image_id}.jpg</filename>",
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
    ]
    for name, (xmin, ymin, xmax, ymax) in objects:
        lines.append(
            f"  <object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{xmin}</xmin>"
            f"<ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox></object>"
        )
    return "\n".join([*lines, "</annotation>\n"])
