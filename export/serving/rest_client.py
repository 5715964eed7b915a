"""Detects in image files through TensorFlow Serving's REST interface. Needs nothing but Python.

python rest_client.py --server=http://localhost:8501 --model=refinedet photo1.jpg photo2.png
"""

import argparse
import base64
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path


def make_request(files: list[bytes]) -> dict:
    """Returns the body of a request to `serving_bytes`: one instance for each image file."""
    return {
        "signature_name": "serving_bytes",
        "instances": [{"image_bytes": {"b64": base64.b64encode(content).decode()}} for content in files],
    }


def read_response(response: dict, score_threshold: float) -> list[list[dict] | None]:
    """Returns the detections of each image, best first; None for a file that the server did not decode.

    Boxes are (ymin, xmin, ymax, xmax), relative to the image.
    """
    return [
        [
            {"class": name, "score": score, "box": box}
            for name, score, box in zip(
                image["detection_class_names"], image["detection_scores"], image["detection_boxes"], strict=True
            )
            if name and score >= score_threshold
        ]
        if image["image_is_valid"]
        else None
        for image in response["predictions"]
    ]


def detect(server: str, model: str, files: list[bytes], score_threshold: float) -> list[list[dict] | None]:
    """Sends image files to a server and returns what `read_response` returns."""
    url = f"{server}/v1/models/{model}:predict"
    body = json.dumps(make_request(files)).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return read_response(json.load(response), score_threshold)


def main() -> int:
    """Prints one line of JSON for each file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--server", default="http://localhost:8501")
    parser.add_argument("--model", default="refinedet")
    parser.add_argument("--score_threshold", type=float, default=0.5)
    arguments = parser.parse_args()
    try:
        contents = [Path(name).read_bytes() for name in arguments.files]
        found = detect(arguments.server, arguments.model, contents, arguments.score_threshold)
    except urllib.error.HTTPError as error:
        message = " ".join(error.read(1000).decode(errors="replace").split())
        print(f"error: {arguments.server} answers {error.code}: {message}", file=sys.stderr)
        return 1
    except urllib.error.URLError as error:
        print(f"error: {arguments.server} does not answer: {error.reason}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, detections in zip(arguments.files, found, strict=True):
        print(json.dumps({"file": name, "detections": detections}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
