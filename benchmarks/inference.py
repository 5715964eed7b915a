"""Time, size and memory of detection, in the model's stages and in each exported form.

python benchmarks/inference.py --work_dir=work/benchmark [--model=work/mine/best.keras ...] [--only=stages]

Every measurement runs in a process of its own, so that its peak memory is its own. Weights are random unless a trained
models are given: they change nothing in the network's time. What the time of suppression depends on is how many scores
pass the threshold, so that stage is timed on predictions that are drawn to be like a trained model's, and on random
ones, of which all pass. The exported forms of random weights are timed with all passing.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from absl import app, flags

from refinedet_tf.config import load_config
from refinedet_tf.inference.tflite_runner import TFLiteModel
from refinedet_tf.model import build_model
from refinedet_tf.ops.detections import decode_predictions, suppress
from refinedet_tf.serving.saved_model import export_saved_model
from refinedet_tf.serving.tflite import convert_tflite
from refinedet_tf.weights import load_model

FLAGS = flags.FLAGS
VGG = "configs/refinedet320_vgg16_voc07.yaml"
EDGE = "configs/refinedet128_mobilenet_shapes.yaml"


def median_seconds(function, runs):
    """Of `runs` calls after one that is not counted."""
    function()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def peak_mib():
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def open_model(name):
    """A trained model, or that of a recipe with random weights."""
    return load_model(name) if name.endswith(".keras") else build_model(load_config(name))


def label_of(name):
    """A recipe's name, or that of the folder in which a trained model lies."""
    return Path(name).parent.name if name.endswith(".keras") else Path(name).stem


def noise(shape, seed=0):
    """Random pixels."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def trained_like(model, batch, rng):
    """Predictions as trained models make them: a twentieth of the anchors may be objects, each of one class or two."""
    n, c = len(model.anchors), len(model.config.classes)
    is_object = rng.uniform(size=(batch, n)) < 0.05
    objectness = np.where(is_object, rng.normal(0, 2, (batch, n)), -8)
    logits = rng.normal(0, 1, (batch, n, 1 + c))
    logits[..., 0] += 8
    best = rng.integers(1, 1 + c, (batch, n))
    np.put_along_axis(logits, best[..., np.newaxis], rng.normal(6, 3, (batch, n, 1)), axis=-1)
    offsets = {name: rng.normal(0, 0.5, (batch, n, 4)) for name in ("arm_offsets", "odm_offsets")}
    predictions = {"arm_objectness": np.stack([0 * objectness, objectness], -1), "odm_classes": logits, **offsets}
    return {name: tf.constant(value, tf.float32) for name, value in predictions.items()}


def stages(name, work_dir):
    """The network, and what comes behind it."""
    model = open_model(name)
    settings = vars(model.config.detection)
    network = tf.function(lambda images: model(images, training=False))

    @tf.function
    def detect(predictions):
        boxes, scores = decode_predictions(predictions, model.anchors, model.config.objectness_threshold)
        return suppress(boxes, scores, **settings)

    results = {}
    for batch in (1, 8):
        images = tf.constant(noise((batch, *model.config.input_size, 3)), tf.float32)
        likely = trained_like(model, batch, np.random.default_rng(0))
        uniform = network(images)
        forward = median_seconds(lambda images=images: network(images), 5)
        behind = median_seconds(lambda p=likely: detect(p)["boxes"].numpy(), 20)
        worst = median_seconds(lambda p=uniform: detect(p)["boxes"].numpy(), 5)
        results[f"batch {batch}"] = {
            "network_ms": forward * 1e3,
            "behind_ms": behind * 1e3,
            "share": behind / forward,
            "detections": int(np.mean(detect(likely)["num_detections"])),
            "behind_when_all_scores_pass_ms": worst * 1e3,
        }
    return results


def serving_bytes(name, work_dir):
    """From JPEG files of 500 x 375 to detections."""
    path = Path(work_dir) / f"{label_of(name)}_saved_model"
    if not path.exists():
        export_saved_model(open_model(name), str(path))
        return None  # the export would count as memory
    loaded = tf.saved_model.load(str(path))
    serve = loaded.signatures["serving_bytes"]
    photo = tf.io.encode_jpeg(np.repeat(np.repeat(noise((25, 20, 3)), 15, 0), 25, 1)).numpy()
    results = {"megabytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6}
    for batch in (1, 8, 32):
        files = tf.constant([photo] * batch)
        seconds = median_seconds(lambda files=files: serve(image_bytes=files)["num_detections"].numpy(), 3)
        results[f"batch {batch}"] = {"images_per_second": batch / seconds}
    return results


def tflite(name, work_dir, quantize):
    """One image of the input's size, on two threads."""
    path = Path(work_dir) / f"{label_of(name)}_{quantize}.tflite"
    if not path.exists():
        model = open_model(name)
        images = [noise((*model.config.input_size, 3), seed) for seed in range(8)]
        path.write_bytes(convert_tflite(model, quantize=quantize, calibration_images=images))
        return None
    served = TFLiteModel(path, num_threads=2)
    image = served.prepare(noise((64, 64, 3)))
    return {"megabytes": path.stat().st_size / 1e6, "ms": median_seconds(lambda: served.run(image), 10) * 1e3}


def measurements(models):
    """Name of each measurement, and the call."""
    for name in (VGG, EDGE, *models):
        label = label_of(name)
        yield f"stages {label}", lambda work_dir, name=name: stages(name, work_dir)
        yield f"serving_bytes {label}", lambda work_dir, name=name: serving_bytes(name, work_dir)
        for quantize in ("none", "int8"):
            yield f"tflite_{quantize} {label}", lambda work_dir, name=name, q=quantize: tflite(name, work_dir, q)


def main(argv):
    """Measures and prints a line for each measurement."""
    del argv
    Path(FLAGS.work_dir).mkdir(parents=True, exist_ok=True)
    for key, measure in measurements(FLAGS.model):
        if FLAGS.child:
            if key == FLAGS.only:
                result = measure(FLAGS.work_dir)
                print("RESULT", json.dumps(result and {**result, "process_peak_mib": peak_mib()}))
        elif FLAGS.only in key:
            print(key, json.dumps(in_child(key)), flush=True)
    if not FLAGS.child:
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, TensorFlow {tf.__version__}")


def in_child(key):
    """The result of a measurement in a process of its own; one that only makes the file is followed by another."""
    command = [sys.executable, __file__, f"--work_dir={FLAGS.work_dir}", f"--only={key}", "--child"]
    command += [f"--model={model}" for model in FLAGS.model]
    for _ in range(2):
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        result = json.loads(output.rsplit("RESULT ", 1)[1])
        if result:
            return result
    raise RuntimeError(f"{key} gave no result")


if __name__ == "__main__":
    flags.DEFINE_string("work_dir", "work/benchmark", "Where exported files are kept.")
    flags.DEFINE_multi_string("model", [], "A trained model to measure, too; repeatable.")
    flags.DEFINE_string("only", "", "Measure only what has this in its name.")
    flags.DEFINE_bool("child", False, "Set by the program itself.")
    app.run(main)
