"""The clients against servers that speak TensorFlow Serving's forms and run the exported signature in this process."""

import base64
import importlib.util
import json
import subprocess
import sys
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import PROJECT


def load(name):
    spec = importlib.util.spec_from_file_location(name, PROJECT / "export" / "serving" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def signatures(exported):
    loaded = tf.saved_model.load(str(exported))
    yield loaded.signatures


@pytest.fixture(scope="module")
def files():
    rng = np.random.default_rng(4)
    images = [rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(side, 0).repeat(12, 1) for side in (9, 14)]
    return [tf.io.encode_png(images[0]).numpy(), b"no image", tf.io.encode_jpeg(images[1]).numpy()]


@pytest.fixture(scope="module")
def expected(signatures, files):
    outputs = signatures["serving_bytes"](image_bytes=tf.constant(files))
    return {name: value.numpy() for name, value in outputs.items()}


def assert_answers(found, expected, threshold):
    assert [detections is not None for detections in found] == [True, False, True]
    for row in (0, 2):
        keep = expected["detection_scores"][row] >= threshold
        assert len(found[row]) == keep.sum() > 5
        names = [name.decode() for name in expected["detection_class_names"][row][keep]]
        assert [detection["class"] for detection in found[row]] == names
        scores = [detection["score"] for detection in found[row]]
        np.testing.assert_allclose(scores, expected["detection_scores"][row][keep], atol=1e-6)
        boxes = [detection["box"] for detection in found[row]]
        np.testing.assert_allclose(boxes, expected["detection_boxes"][row][keep], atol=1e-6)


@pytest.fixture(scope="module")
def rest_server(signatures):
    """Row form of https://www.tensorflow.org/tfx/serving/api_rest: instances in, predictions out."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/v1/models/refinedet:predict"
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert set(request) == {"signature_name", "instances"}
            rows = [base64.b64decode(row["image_bytes"]["b64"], validate=True) for row in request["instances"]]
            outputs = signatures[request["signature_name"]](image_bytes=tf.constant(rows))
            columns = {name: value.numpy() for name, value in outputs.items()}
            # The server refuses rows of outputs that do not all have the batch dimension.
            assert {len(column) for column in columns.values()} == {len(rows)}
            decode = np.vectorize(lambda name: name.decode(), otypes=[object])
            columns["detection_class_names"] = decode(columns["detection_class_names"])
            predictions = [{name: column[i].tolist() for name, column in columns.items()} for i in range(len(rows))]
            body = json.dumps({"predictions": predictions}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("localhost", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()


def test_the_rest_client_gets_what_the_signature_gives(rest_server, files, expected):
    found = load("rest_client").detect(rest_server, "refinedet", files, score_threshold=0.3)
    assert_answers(found, expected, 0.3)


@pytest.fixture(scope="module")
def grpc_server(signatures):
    grpc = pytest.importorskip("grpc")
    service = pytest.importorskip("tensorflow_serving.apis.prediction_service_pb2_grpc")
    predict_pb2 = pytest.importorskip("tensorflow_serving.apis.predict_pb2")

    class Servicer(service.PredictionServiceServicer):
        def Predict(self, request, context):
            assert request.model_spec.name == "refinedet"
            inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
            response = predict_pb2.PredictResponse(model_spec=request.model_spec)
            for name, value in signatures[request.model_spec.signature_name](**inputs).items():
                response.outputs[name].CopyFrom(tf.make_tensor_proto(value.numpy()))
            return response

    server = grpc.server(futures.ThreadPoolExecutor(1))
    service.add_PredictionServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    yield f"localhost:{port}"
    server.stop(0)


def test_the_grpc_client_gets_what_the_signature_gives(grpc_server, files, expected):
    found = load("grpc_client").detect(grpc_server, "refinedet", files, score_threshold=0.3)
    assert_answers(found, expected, 0.3)


@pytest.mark.parametrize("name", ["rest_client", "grpc_client"])
def test_without_a_server_a_client_says_so_in_one_line(name, tmp_path):
    pytest.importorskip("grpc")
    (tmp_path / "photo.jpg").write_bytes(b"photo")
    server = "http://localhost:9" if name == "rest_client" else "localhost:9"
    command = [sys.executable, PROJECT / "export" / "serving" / f"{name}.py", f"--server={server}"]
    for file, message in (("photo.jpg", "localhost:9"), ("missing.jpg", "No such file")):
        result = subprocess.run([*command, tmp_path / file], capture_output=True, text=True)
        assert result.returncode == 1 and result.stdout == ""
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert message in line and "Traceback" not in result.stderr


def test_the_servers_settings_are_protos_it_can_read():
    model_server_config_pb2 = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2")
    text_format = pytest.importorskip("google.protobuf.text_format")
    folder = PROJECT / "export" / "serving"
    config = text_format.Parse((folder / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    assert config.model_config_list.config[0].name == "refinedet"
    # The batching parameters' proto is not in tensorflow-serving-api; its fields are those of session_bundle_config.
    lines = [line for line in (folder / "batching.config").read_text().splitlines() if not line.startswith("#")]
    sizes = [int(line.split(":")[1]) for line in lines if line.startswith("allowed_batch_sizes")]
    assert sizes == sorted(sizes) and f"max_batch_size {{ value: {sizes[-1]} }}" in lines
