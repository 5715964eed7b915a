"""Trains RefineDet and KerasCV's RetinaNet alike, for the same time, and compares their average precision.

python benchmarks/retinanet.py DATA_DIR WORK_DIR [--config=refinedet320_lite0_bccd] [--set train.epochs=20 ...]

Both have the recipe's images, augmentation, input size, batch size, optimizer and schedule, and a backbone of
EfficientNet-Lite0 with the same ImageNet weights. RefineDet trains for the recipe's epochs; RetinaNet trains for as
many as fit into the same time. Run it on a machine that does nothing else. The same command takes a finished RefineDet
from WORK_DIR.
"""

import functools
import sys
import time
from pathlib import Path

import keras_cv
import numpy as np
import tensorflow as tf
from absl import app, flags
from tensorflow import keras

import refinedet_tf as rd
from refinedet_tf.backbones.efficientnet_lite import build_kerascv_network
from refinedet_tf.data.examples import ExampleSet
from refinedet_tf.evaluation.evaluator import comparison_table, evaluate
from refinedet_tf.model import RefineDet
from refinedet_tf.ops.resizing import Resizing
from refinedet_tf.training.optimizers import build_optimizer
from refinedet_tf.weights import load_weights

FLAGS = flags.FLAGS
IMAGENET_WEIGHTS = "train.weights=efficientnet_lite0"  # not a detector's: no part of RetinaNet could start from it


class RetinaNetDetector:
    """RetinaNet as `rd.evaluate` takes it: from images of any size to boxes relative to them."""

    def __init__(self, model: keras.Model, config: rd.Config):
        """Takes a trained RetinaNet whose boxes are in pixels of the recipe's input."""
        self.model, self.classes = model, list(config.model.classes)
        self.resizing = Resizing(*config.model.input_size, config.model.resize)

    def predict(self, images: tf.data.Dataset) -> dict[str, np.ndarray]:
        """Returns `boxes`, `scores`, `classes` and `num_detections` of all images."""
        height, width = self.resizing.size
        batches = images.map(lambda image: scale(self.resizing.resize(image)))
        found = self.model.predict(batches, verbose=0)
        return {
            "boxes": found["boxes"] / np.array([width, height, width, height], np.float32),
            "scores": found["confidence"],
            "classes": found["classes"],
            "num_detections": found["num_detections"],
        }


def scale(images: tf.Tensor) -> tf.Tensor:
    """Scales RGB as EfficientNet-Lite's weights expect it."""
    return (images - 127.0) / 128.0


def build_retinanet(config: rd.Config, steps_per_epoch: int) -> keras.Model:
    """Returns a compiled RetinaNet whose backbone has the initial weights of the recipe's RefineDet."""
    refinedet = RefineDet(config.model)
    load_weights(refinedet, config.train.weights)
    backbone = build_kerascv_network(keras.Input((*config.model.input_size, 3)), config.model.backbone.name)
    copied = {layer.name for layer in refinedet.layers} & {layer.name for layer in backbone.layers if layer.weights}
    for name in copied:
        backbone.get_layer(name).set_weights(refinedet.get_layer(name).get_weights())
    print(f"RetinaNet's backbone has the ImageNet weights of {len(copied)} layers.")
    model = keras_cv.models.RetinaNet(
        backbone=backbone, num_classes=len(config.model.classes), bounding_box_format="xyxy"
    )
    model.compile(
        box_loss="smoothl1", classification_loss="focal", optimizer=build_optimizer(config.train, steps_per_epoch)
    )
    return model


def train_refinedet(config: rd.Config, data_dir: str, work_dir: Path) -> tuple[keras.Model, float]:
    """Trains the recipe, unless WORK_DIR has it trained; returns the model and the seconds, evaluations included.

    Raises:
        SystemExit: If an earlier run was interrupted, so that its time is not known.
    """
    run, time_file = work_dir / "refinedet", work_dir / "refinedet_seconds.txt"
    if run.exists() and not time_file.exists():
        raise SystemExit(f"{run} was interrupted, so its time is not known; remove it or name another WORK_DIR.")
    start = time.perf_counter()
    model = rd.train(config, data_dir, run)
    if not time_file.exists():
        time_file.write_text(f"{time.perf_counter() - start}\n")
    return model, float(time_file.read_text())


def train_retinanet(config: rd.Config, data: ExampleSet, seconds: float) -> tuple[keras.Model, int, float]:
    """Trains for as many epochs as fit into a time; returns the model, the epochs and the seconds."""
    height, width = config.model.input_size
    batches = rd.build_dataset(config, data, training=True)

    def in_pixels(images: tf.Tensor, targets: dict[str, tf.Tensor]) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        is_real = targets["classes"][..., tf.newaxis] >= 0
        boxes = tf.where(is_real, targets["boxes"] * tf.constant([width, height, width, height], tf.float32), -1.0)
        return scale(images), {"boxes": boxes, "classes": tf.cast(targets["classes"], tf.float32)}

    batches = batches.map(in_pixels)
    trial = build_retinanet(config, len(batches))
    trial.fit(batches.take(2), verbose=0)  # builds the graph
    start = time.perf_counter()
    trial.fit(batches, verbose=2)
    config.train.epochs = max(1, round(seconds / (time.perf_counter() - start)))
    model = build_retinanet(config, len(batches))
    start = time.perf_counter()
    model.fit(batches, epochs=config.train.epochs, verbose=2)
    return model, config.train.epochs, time.perf_counter() - start


def main(argv: list[str]) -> None:
    """Prints both results in one table."""
    data_dir, work_dir = argv[1], Path(argv[2])
    load = functools.partial(rd.load_config, FLAGS.config, overrides=[IMAGENET_WEIGHTS, *FLAGS.set])
    config = load()
    refinedet, seconds = train_refinedet(config, data_dir, work_dir)
    classes = config.model.classes
    train_set = rd.read_data(config.data, data_dir, config.data.train_splits, classes)
    val_set = rd.read_data(config.data, data_dir, config.data.val_splits, classes)
    retinanet, epochs, retinanet_seconds = train_retinanet(load(), train_set, seconds)
    retinanet.save_weights(work_dir / "retinanet.weights.h5")
    print(f"RefineDet: {config.train.epochs} epochs in {seconds / 60:.1f} minutes, evaluations included")
    print(f"RetinaNet: {epochs} epochs in {retinanet_seconds / 60:.1f} minutes")
    results = {
        "RefineDet": evaluate(refinedet, val_set),
        "RetinaNet": evaluate(RetinaNetDetector(retinanet, config), val_set),
    }
    print(comparison_table(results))


if __name__ == "__main__":
    flags.DEFINE_string("config", "refinedet320_lite0_bccd", "A recipe with EfficientNet-Lite0, by name or path.")
    flags.DEFINE_multi_string("set", [], "Changes a value of the recipe; repeatable.")
    app.run(main, sys.argv)
