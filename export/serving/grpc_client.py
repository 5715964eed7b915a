"""Detects in image files through TensorFlow Serving's gRPC interface. Needs tensorflow-serving-api.

python grpc_client.py --server=localhost:8500 --model=refinedet photo1.jpg photo2.png
"""

import argparse
import json
import sys
from pathlib import Path

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


def make_request(model: str, files: list[bytes]) -> predict_pb2.PredictRequest:
    """Returns a request to `serving_bytes`."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = "serving_bytes"
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(files, tf.string, [len(files)]))
    return request


def read_response(response: predict_pb2.PredictResponse, score_threshold: float) -> list[list[dict] | None]:
    """Returns the detections of each image, best first; None for a file that the server did not decode.

    Boxes are (ymin, xmin, ymax, xmax), relative to the image.
    """
    outputs = {name: tf.make_ndarray(value) for name, value in response.outputs.items()}
    columns = ("detection_class_names", "detection_scores", "detection_boxes", "num_detections", "image_is_valid")
    return [
        [
            {"class": name.decode(), "score": float(score), "box": box.tolist()}
            for name, score, box in list(zip(names, scores, boxes, strict=True))[:count]
            if score >= score_threshold
        ]
        if is_valid
        else None
        for names, scores, boxes, count, is_valid in zip(*(outputs[name] for name in columns), strict=True)
    ]


def detect(server: str, model: str, files: list[bytes], score_threshold: float) -> list[list[dict] | None]:
    """Sends image files to a server and returns what `read_response` returns."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server, options) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        return read_response(stub.Predict(make_request(model, files), timeout=60), score_threshold)


def main() -> int:
    """Prints one line of JSON for each file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--server", default="localhost:8500")
    parser.add_argument("--model", default="refinedet")
    parser.add_argument("--score_threshold", type=float, default=0.5)
    arguments = parser.parse_args()
    try:
        contents = [Path(name).read_bytes() for name in arguments.files]
        found = detect(arguments.server, arguments.model, contents, arguments.score_threshold)
    except grpc.RpcError as error:
        message = " ".join(error.details().split())
        print(f"error: {arguments.server} answers {error.code().name}: {message}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, detections in zip(arguments.files, found, strict=True):
        print(json.dumps({"file": name, "detections": detections}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
