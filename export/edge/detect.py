"""Detects objects on a device with NumPy, Pillow and ai-edge-litert, without TensorFlow.

    python detect.py --model=model.tflite photo.jpg folder/ --score_threshold=0.5
    python detect.py --model=model.tflite --camera=0

Prints one line of JSON for each image or frame, with boxes in pixels. Cameras and videos need OpenCV. A file that was
exported with --postprocess=none needs `decode_detections.py` beside it, where the export has put it.
"""

import argparse
import contextlib
import io
import json
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, ImageOps

MEAN_COLOR = (123, 117, 104)  # RGB, around an image whose aspect ratio is kept
MAX_PIXELS = 36_000_000  # a file of a few kilobytes can claim gigabytes of pixels
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")


class Detector:
    """A TFLite file of this project.

    Attributes:
        classes: class names by index.
    """

    def __init__(self, path: Path, num_threads: int):
        """Opens a file.

        Raises:
            ValueError: the file does not exist or is not an export of this project.
        """
        try:
            # Labels, settings and anchors are a ZIP archive at the end of the file.
            with zipfile.ZipFile(path) as archive:
                self.classes = archive.read("labels.txt").decode().splitlines()
                self._settings = json.loads(archive.read("detector.json"))
                if self._settings["postprocess"] == "none":
                    self._anchors = np.load(io.BytesIO(archive.read("anchors.npy")))
                    sys.path.insert(0, str(path.parent))
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} cannot be opened as an exported model: {error}") from error
        self._interpreter = Interpreter(str(path), num_threads=num_threads)
        self._run = self._interpreter.get_signature_runner("serving_default")

    def detect(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Detects in one image.

        Args:
            image: uint8 RGB `[h, w, 3]` of any size.

        Returns:
            `boxes` `[k, 4]` (xmin, ymin, xmax, ymax), relative to the image and clipped to it; `scores` and `classes`
            `[k]`. Best first.
        """
        form = self._settings["input"]
        # The part of the input that shows the image: all of it, or its middle if the aspect ratio is kept.
        top, left, height, width = 0, 0, form["height"], form["width"]
        if form["resize"] == "letterbox":
            height, width = fitted_size(*image.shape[:2], height, width)
            top, left = (form["height"] - height) // 2, (form["width"] - width) // 2
        pixels = np.full((form["height"], form["width"], 3), MEAN_COLOR, np.float32)
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

    def describe(self, image: np.ndarray, score_threshold: float) -> list[dict]:
        """Detects in one image and returns class name, score and box in pixels of each object."""
        found, (height, width) = self.detect(image), image.shape[:2]
        return [
            {
                "class": self.classes[label],
                "score": round(float(score), 4),
                "box": [round(float(value), 1) for value in box * (width, height, width, height)],
            }
            for box, score, label in zip(found["boxes"], found["scores"], found["classes"], strict=True)
            if score >= score_threshold
        ]


def fitted_size(height: int, width: int, max_height: int, max_width: int) -> tuple[int, int]:
    """Returns height and width of an image that is made as large as fits."""
    fitted_height = (2 * height * max_width + width) // (2 * width)
    fitted_width = (2 * width * max_height + height) // (2 * height)
    return max(1, min(fitted_height, max_height)), max(1, min(fitted_width, max_width))


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes bilinearly with half-pixel centers and without antialiasing, as in training; Pillow's filters average."""

    def neighbors(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        position = (np.arange(new, dtype=np.float32) + 0.5) * (old / new) - 0.5
        low = np.floor(position).astype(int)
        return low.clip(0, old - 1), (low + 1).clip(0, old - 1), (position - low).astype(np.float32)

    top, bottom, down = neighbors(image.shape[0], height)
    left, right, across = neighbors(image.shape[1], width)
    rows = image[top] + (image[bottom].astype(np.float32) - image[top]) * down[:, np.newaxis, np.newaxis]
    return rows[:, left] + (rows[:, right] - rows[:, left]) * across[:, np.newaxis]


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads an image file as people see it: upright, uint8 RGB `[h, w, 3]`.

    Raises:
        ValueError: the file is not a complete image, or has more than `max_pixels` pixels.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > max_pixels:
                raise ValueError(f"{image.width} x {image.height} pixels are more than --max_pixels={max_pixels}")
            image.load()
            image.info.pop("xmp", None)  # the orientation of the EXIF data counts, not that of XMP
            with contextlib.suppress(Exception):  # Pillow raises errors of many kinds for damaged EXIF data
                image = ImageOps.exif_transpose(image)
            if image.mode == "CMYK":
                ink = 255 - np.asarray(image, np.uint16)
                return (ink[..., :3] * ink[..., 3:] // 255).astype(np.uint8)  # rounded down, as TensorFlow does
            return np.asarray(image.convert("RGB"))
    # Damaged files raise errors of many kinds; Pillow's own limit is one of them.
    except Exception as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def find_images(paths: list[Path]) -> Iterator[Path]:
    """Yields the files, and in place of each folder the images in it, sorted by name."""
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.iterdir() if file.suffix.lower() in EXTENSIONS)
        else:
            yield path


def read_frames(source: str) -> Iterator[np.ndarray]:
    """Yields the frames of a camera, by its number, or of a video file or stream, uint8 RGB.

    Raises:
        ValueError: OpenCV is not installed or cannot open the source.
    """
    try:
        import cv2
    except ImportError as error:
        raise ValueError("--camera needs OpenCV: pip install opencv-python-headless") from error
    capture = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not capture.isOpened():
        raise ValueError(f"{source} cannot be opened as a camera or video")
    try:
        while True:
            is_read, frame = capture.read()
            if not is_read:
                return
            yield np.ascontiguousarray(frame[:, :, ::-1])
    finally:
        capture.release()


def detect_frames(detector: Detector, source: str, score_threshold: float) -> int:
    """Prints the objects in every frame until the source ends; returns 0."""
    for number, frame in enumerate(read_frames(source)):
        start = time.perf_counter()
        found = detector.describe(frame, score_threshold)
        milliseconds = round((time.perf_counter() - start) * 1000, 1)
        print(json.dumps({"frame": number, "ms": milliseconds, "detections": found}), flush=True)
    return 0


def detect_files(detector: Detector, paths: list[Path], score_threshold: float, max_pixels: int) -> int:
    """Prints the objects in every image; returns 1 if any file could not be read."""
    result = 0
    for path in find_images(paths):
        try:
            image = read_image(path, max_pixels)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            result = 1
            continue
        print(json.dumps({"file": str(path), "detections": detector.describe(image, score_threshold)}), flush=True)
    return result


def main() -> int:
    """Detects in images or frames; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", type=Path, help="image files and folders of images")
    parser.add_argument("--camera", help="a camera's number, a video file or a stream's address, instead of images")
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--score_threshold", type=float, default=0.5)
    parser.add_argument("--num_threads", type=int, default=2, help="at most 16")
    parser.add_argument("--max_pixels", type=int, default=MAX_PIXELS, help="larger images are reported and skipped")
    arguments = parser.parse_args()
    if bool(arguments.images) == bool(arguments.camera):
        parser.error("name images or --camera")
    try:
        detector = Detector(arguments.model, arguments.num_threads)
        if arguments.camera:
            return detect_frames(detector, arguments.camera, arguments.score_threshold)
        return detect_files(detector, arguments.images, arguments.score_threshold, arguments.max_pixels)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
