"""Detects in an image on a device: NumPy, Pillow and ai-edge-litert, no TensorFlow.

python detect.py --model=model.tflite photo.jpg

A file that was exported with --postprocess=none needs `decode_detections.py` beside it, where the export put it.
"""

import argparse
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image


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
        resized = resize(image, form["height"], form["width"])
        pixels = np.rint(resized) if form["type"] == "uint8" else resized
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
        return {**found, "boxes": np.clip(found["boxes"], 0, 1)}


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


def main() -> None:
    """Prints one line of JSON for each detection, boxes in pixels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image")
    parser.add_argument("--model", required=True)
    parser.add_argument("--score_threshold", type=float, default=0.5)
    parser.add_argument("--num_threads", type=int, default=2, help="at most 16")
    arguments = parser.parse_args()
    detector = Detector(Path(arguments.model), arguments.num_threads)
    image = np.asarray(Image.open(arguments.image).convert("RGB"))
    found = detector.detect(image)
    height, width = image.shape[:2]
    for box, score, label in zip(found["boxes"], found["scores"], found["classes"], strict=True):
        if score >= arguments.score_threshold:
            pixels = [round(float(value), 1) for value in box * (width, height, width, height)]
            print(json.dumps({"class": detector.classes[label], "score": round(float(score), 4), "box": pixels}))


if __name__ == "__main__":
    main()
