"""A drawn data set: overlapping coloured shapes on textured backgrounds, in VOC layout.

It needs no download and is learnt in minutes, so it shows whether training works at all.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from refinedet_tf.errors import DataError

SHAPES = ["circle", "square", "triangle", "star"]

MIN_SIDE, MAX_SIDE = 40, 120  # pixels in an image of 256; other sizes in proportion
MAX_SHAPES = 5
MIN_VISIBLE = 0.6  # of a shape's area
MIN_CONTRAST = 70  # RGB distance between a shape and the mean of what it covers
SUPERSAMPLING = 4


def draw_shapes(
    output_dir: str | os.PathLike,
    counts: Mapping[str, int] | None = None,
    image_size: Sequence[int] = (256, 256),
    seed: int = 0,
) -> None:
    """Draws a detection data set with the classes `SHAPES`.

    Each image has one to five shapes, of which at least 60 % stays visible; their boxes are tight around the whole
    shape, the hidden part included. The same seed draws the same images.

    Args:
        output_dir: folder to make in VOC layout; it may exist, if it is empty.
        counts: images of each split. By default 400 in `train` and 100 in `val`.
        image_size: height and width in pixels.
        seed: of everything random.

    Raises:
        DataError: `output_dir` is a file or a folder that is not empty; nothing is changed.
    """
    counts = {"train": 400, "val": 100} if counts is None else counts
    root = Path(output_dir)
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise DataError(f"{root} is not an empty folder; name a new one.")
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    splits = [split for split, count in counts.items() for _ in range(count)]
    image_ids = {split: [] for split in counts}
    for index, split in enumerate(tqdm(splits, desc="Drawing shapes", unit="image", delay=2)):
        image_id = f"{index:06d}"
        pixels, objects = draw_image(np.random.default_rng((seed, index)), image_size)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{image_id}.jpg", quality=90)
        (root / "Annotations" / f"{image_id}.xml").write_text(_xml(image_id, image_size, objects), encoding="utf-8")
        image_ids[split].append(image_id)
    for split, members in image_ids.items():
        text = "".join(f"{image_id}\n" for image_id in members)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(text, encoding="utf-8")


def draw_image(
    rng: np.random.Generator, image_size: Sequence[int]
) -> tuple[np.ndarray, list[tuple[str, tuple[int, int, int, int]]]]:
    """Draws one image.

    Args:
        rng: source of everything random.
        image_size: height and width in pixels.

    Returns:
        pixels: RGB, uint8 `[height, width, 3]`.
        objects: of each shape its class name and its box in pixels, `(xmin, ymin, xmax, ymax)`, where the
            maxima are one past the last pixel that the shape touches.
    """
    height, width = image_size
    pixels = _background(rng, height, width)
    owner = np.zeros((height, width), np.int32)  # which shape one sees at a pixel; 0 is the background
    areas, objects = {}, []
    wanted = int(rng.integers(1, MAX_SHAPES + 1))
    for _ in range(10 * wanted):  # the first shape always fits; ten trials each make the wanted number nearly sure
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
        colour = _contrasting_colour(rng, pixels[mask].mean(axis=0))
        paint = colour + rng.normal(0, 6, (height, width, 1))
        pixels += coverage[..., np.newaxis] * (paint - pixels)
        rows, columns = np.nonzero(coverage.any(axis=1))[0], np.nonzero(coverage.any(axis=0))[0]
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        objects.append((name, box))
    return pixels.clip(0, 255).round().astype(np.uint8), objects


def _coverage(rng: np.random.Generator, name: str, height: int, width: int) -> np.ndarray:
    """The part, 0..1, of each pixel `[height, width]` that a shape at a random place covers."""
    side = rng.uniform(MIN_SIDE, MAX_SIDE) * min(height, width) / 256
    outline = _outline(name, rng)
    outline *= side / np.ptp(outline, axis=0).max()
    low, high = outline.min(axis=0), outline.max(axis=0)
    outline += rng.uniform(-low, (width, height) - high)
    canvas = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in outline * SUPERSAMPLING], fill=255)
    return np.asarray(canvas.reduce(SUPERSAMPLING)) / 255


def _outline(name: str, rng: np.random.Generator) -> np.ndarray:
    """Corners `[k, 2]` (x, y) of a shape around the origin, in no particular size."""
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
    """A gradient, stripes or smooth noise between two random colours, with a little grain: `[height, width, 3]`."""
    y, x = np.mgrid[:height, :width]
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
    first, second = rng.uniform(0, 255, (2, 3))
    return first + mix[..., np.newaxis] * (second - first) * 0.7 + rng.normal(0, 5, (height, width, 3))


def _contrasting_colour(rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    while True:
        colour = rng.uniform(0, 255, 3)
        if np.linalg.norm(colour - other) > MIN_CONTRAST:
            return colour


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
