"""Detects in an image on a device: NumPy, Pillow and ai-edge-litert, no TensorFlow.

python detect.py --model=model.tflite photo.jpg

A file that was exported with --postprocess=none needs `decode_detections.py` beside it, where the export put it.
"""

import argparse
import contextlib
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, ImageOps

MEAN_COLOUR = (123, 117, 104)  # RGB, around an image whose aspect ratio is kept


class Detector:
    """A TFLite file of this project.

    Attributes:
        classes: class names by index.
    """

    def __init__(self, path: Path, num_threads: int):
        # Labels, thresholds and the form of the input are a ZIP archive at the end of the file.
        with zipfile.ZipFile(path) as archive:
            self.classes = archive.read("labels.txt").decode().splitlines()
            self._settings = json.loads(archive.read("detector.json"))
            if self._settings["postprocess"] == "none":
                self._anchors = np.load(io.BytesIO(archive.read("anchors.npy")))
                sys.path.insert(0, str(path.parent))
        self._interpreter = Interpreter(str(path), num_threads=num_threads)
        self._run = self._interpreter.get_signature_runner("serving_default")

    def detect(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Boxes (xmin, ymin, xmax, ymax), relative to the image, scores and classes of RGB uint8 `[h, w, 3]`."""
        form = self._settings["input"]
        # The part of the input that shows the image: all of it, or with its aspect ratio in the middle.
        top, left, height, width = 0, 0, form["height"], form["width"]
        if form["resize"] == "letterbox":
            height, width = fitted_size(*image.shape[:2], height, width)
            top, left = (form["height"] - height) // 2, (form["width"] - width) // 2
        pixels = np.full((form["height"], form["width"], 3), MEAN_COLOUR, np.float32)
        pixels[top : top + height, left : left + width] = resize(image, height, width)
        pixels = np.rint(pixels) if form["type"] == "uint8" else pixels
        outputs = self._run(images=pixels.astype(form["type"])[np.newaxis])
        if self._settings["postprocess"] == "none":
            from decode_detections import decode_detections

            found = decode_detections(outputs, self._anchors, self._settings)
        else:
            count = int(outputs["num_detections"][0])
            found = {
                "boxes": outputs["detection_boxes"][0, :count][:, [1, 0, 3, 2]],
                "scores": outputs["detection_scores"][0, :count],
                "classes": outputs["detection_classes"][0, :count].astype(np.int32),
            }
        boxes = found["boxes"] * ((form["width"], form["height"]) * 2)
        boxes = (boxes - (left, top, left, top)) / (width, height, width, height)
        return {**found, "boxes": np.clip(boxes, 0, 1)}


def fitted_size(height: int, width: int, max_height: int, max_width: int) -> tuple[int, int]:
    """Height and width of an image that is made as large as fits."""
    fitted_height = (2 * height * max_width + width) // (2 * width)
    fitted_width = (2 * width * max_height + height) // (2 * height)
    return max(1, min(fitted_height, max_height)), max(1, min(fitted_width, max_width))


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, half-pixel centres, no antialiasing, as the model was trained; Pillow's filters average."""

    def neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        position = (np.arange(new, dtype=np.float32) + 0.5) * (old / new) - 0.5
        low = np.floor(position).astype(int)
        return low.clip(0, old - 1), (low + 1).clip(0, old - 1), (position - low).astype(np.float32)

    top, bottom, down = neighbours(image.shape[0], height)
    left, right, across = neighbours(image.shape[1], width)
    rows = image[top] + (image[bottom].astype(np.float32) - image[top]) * down[:, np.newaxis, np.newaxis]
    return rows[:, left] + (rows[:, right] - rows[:, left]) * across[:, np.newaxis]


def read_image(path: str) -> np.ndarray:
    """Reads a photo upright, uint8 RGB `[h, w, 3]`, with the pixels that the model was trained on."""
    with Image.open(path) as image:
        image.load()
        image.info.pop("xmp", None)  # the orientation of the EXIF data counts, not that of XMP
        with contextlib.suppress(Exception):  # Pillow raises errors of many kinds for damaged EXIF data
            image = ImageOps.exif_transpose(image)
        if image.mode == "CMYK":
            ink = 255 - np.asarray(image, np.uint16)
            return (ink[..., :3] * ink[..., 3:] // 255).astype(np.uint8)  # rounded down, as TensorFlow does
        return np.asarray(image.convert("RGB"))


def main() -> None:
    """Prints one line of JSON for each detection, boxes in pixels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image")
    parser.add_argument("--model", required=True)
    parser.add_argument("--score_threshold", type=float, default=0.5)
    parser.add_argument("--num_threads", type=int, default=2, help="at most 16")
    arguments = parser.parse_args()
    detector = Detector(Path(arguments.model), arguments.num_threads)
    image = read_image(arguments.image)
    found = detector.detect(image)
    height, width = image.shape[:2]
    for box, score, label in zip(found["boxes"], found["scores"], found["classes"], strict=True):
        if score >= arguments.score_threshold:
            pixels = [round(float(value), 1) for value in box * (width, height, width, height)]
            print(json.dumps({"class": detector.classes[label], "score": round(float(score), 4), "box": pixels}))


if __name__ == "__main__":
    main()
