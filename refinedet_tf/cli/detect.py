"""Detects objects in images and writes pictures with labeled boxes and one JSON file.

refinedet detect --model=saved_model/1 --input=photos --output_dir=detections
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from refinedet_tf.errors import DataError

if TYPE_CHECKING:
    from refinedet_tf.inference.detector import Detections

FLAGS = flags.FLAGS

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
GALLERY_SIZE = 12


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("model", None, "A .keras file, a SavedModel folder or a .tflite file.", required=True)
    flags.DEFINE_multi_string("input", None, "An image or a folder of images. Repeatable.", required=True)
    flags.DEFINE_string("output_dir", None, "The folder for the pictures and detections.json.", required=True)
    flags.DEFINE_float("score_threshold", 0.5, "The lowest score to report.", 0.0, 1.0)
    flags.DEFINE_string("gallery", None, f"A PNG file for the first {GALLERY_SIZE} pictures side by side.")


def main() -> None:
    """Detects in every image and writes the results."""
    from PIL import Image
    from tqdm import tqdm

    from refinedet_tf.inference.detector import Detector, read_image
    from refinedet_tf.visualization import draw_detections, save_gallery

    output_dir = Path(FLAGS.output_dir)
    paths = find_images([Path(name) for name in FLAGS.input], output_dir)
    detector = Detector.load(FLAGS.model)
    output_dir.mkdir(parents=True, exist_ok=True)

    images, skipped, pictures = [], [], []
    for path in tqdm(paths, unit="image", disable=None):
        try:
            image = read_image(path)
        except DataError as error:
            skipped.append({"file": str(path), "reason": str(error)})
            continue
        found = detector.detect(image, FLAGS.score_threshold)
        picture = draw_detections(image, found.boxes, found.classes, found.scores, class_names=detector.classes)
        Image.fromarray(picture).save(output_dir / path.name)
        images.append(describe(path, image.shape, found, detector.classes))
        if len(pictures) < GALLERY_SIZE:
            pictures.append(picture)

    report = {"model": FLAGS.model, "score_threshold": FLAGS.score_threshold, "images": images, "skipped": skipped}
    (output_dir / "detections.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    for entry in skipped:
        print(f"skipped: {entry['reason']}")
    if not images:
        raise DataError(f"None of the {len(paths)} images could be read.")
    if FLAGS.gallery:
        save_gallery(pictures, FLAGS.gallery)
    objects = sum(len(entry["detections"]) for entry in images)
    print(f"{objects} objects in {len(images)} images ({len(skipped)} skipped): {output_dir}")


def find_images(inputs: list[Path], output_dir: Path) -> list[Path]:
    """The image files among the inputs, those of a folder sorted by name.

    Raises:
        DataError: an input is missing or holds no image, two files have one name, or a result would overwrite one.
    """
    paths = []
    for path in inputs:
        if path.is_dir():
            found = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in EXTENSIONS)
            if not found:
                raise DataError(f"{path} holds no image ({', '.join(EXTENSIONS)}).")
            paths += found
        elif path.is_file():
            paths.append(path)
        else:
            raise DataError(f"There is no image or folder {str(path)!r}.")
    for path in paths:
        if path.parent.resolve() == output_dir.resolve():
            raise DataError(f"--output_dir={output_dir} is where {path.name} lies, which would be overwritten.")
    names = [path.name for path in paths]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"Several inputs are named {', '.join(repeated)}; detect in one folder at a time.")
    return paths


def describe(path: Path, shape: tuple[int, ...], found: Detections, classes: list[str]) -> dict:
    """One image's detections for the JSON file, boxes in pixels."""
    height, width = shape[:2]
    return {
        "file": str(path),
        "width": width,
        "height": height,
        "detections": [
            {
                "class": classes[label],
                "score": round(float(score), 4),
                "box": [round(float(value), 1) for value in box * (width, height, width, height)],
            }
            for box, score, label in zip(found.boxes, found.scores, found.classes, strict=True)
        ],
    }
