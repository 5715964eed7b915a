"""Time of the parts of a training step, side by side in one run, its peak memory, and the cost of evaluations.

python benchmarks/train_step.py [--config=refinedet320_vgg16_voc07] [--batch_size=4] [--runs=5]

Images and boxes are random: what they show changes nothing in the network's time, and little in that of the losses.
Each number of boxes is measured in a process of its own, so that its peak memory is its own. "backward" is the time of
all gradients without that of "forward" and "losses"; "losses" includes their gradients with respect to the predictions.
"evaluation" is the time for a batch, from files to average precision. With random weights every image has as many
detections as there can be, so a trained model's evaluation takes less.
"""

import dataclasses
import functools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from absl import app, flags

from refinedet_tf.config import load_config
from refinedet_tf.data.pipeline import training_pipeline
from refinedet_tf.data.readers import read_data
from refinedet_tf.data.shapes import SHAPES, draw_shapes
from refinedet_tf.evaluation.evaluator import evaluate
from refinedet_tf.losses import ODM_IOU
from refinedet_tf.model import build_model
from refinedet_tf.ops.detections import refine_anchors
from refinedet_tf.ops.matching import match, mine_hard_negatives
from refinedet_tf.ops.resizing import Resizing
from refinedet_tf.training.optimizers import build_optimizer

FLAGS = flags.FLAGS
TRAINED, EVALUATED = 16551, 4952  # images of VOC 2007 and 2012 trainval, and of VOC 2007 test


def median_ms(function):
    """The median of `--runs` calls after one that is not counted."""
    function()
    times = []
    for _ in range(FLAGS.runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def random_targets(rng, batch_size, num_boxes, num_classes):
    """Boxes of a twentieth to three fifths of the image's sides."""
    sizes, centers = rng.uniform(0.05, 0.6, (batch_size, num_boxes, 2)), rng.uniform(0, 1, (batch_size, num_boxes, 2))
    return {
        "boxes": tf.constant(np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=-1), tf.float32),
        "classes": tf.constant(rng.integers(0, num_classes, (batch_size, num_boxes)), tf.int32),
    }


def parts(config, num_boxes):
    """Milliseconds of each part of a step, by name."""
    rng, batch_size = np.random.default_rng(0), FLAGS.batch_size
    model = build_model(config)
    model.compile(build_optimizer(config.train, 100))
    model.optimizer.build(model.trainable_variables)
    images = tf.constant(rng.uniform(0, 255, (batch_size, *config.model.input_size, 3)), tf.float32)
    targets = random_targets(rng, batch_size, num_boxes, len(config.model.classes))
    anchors, loss, variables = model.anchors, model.loss_function, model.trainable_variables
    valid = targets["classes"] >= 0

    # Everything goes in as an argument and comes out as a result, or TensorFlow would leave it out.
    forward = tf.function(functools.partial(model, training=True))
    predictions = forward(images)

    @tf.function
    def matching(targets, offsets):
        halves = {"positive_iou": ODM_IOU, "negative_iou": ODM_IOU}
        first = match(anchors, targets["boxes"], valid, **halves)
        return first, match(refine_anchors(offsets, anchors), targets["boxes"], valid, **halves)

    @tf.function
    def mining(losses, candidates, counts):
        return mine_hard_negatives(losses, candidates, counts), mine_hard_negatives(-losses, candidates, counts)

    @tf.function
    def losses(targets, predictions):
        with tf.GradientTape() as tape:
            tape.watch(predictions)
            total = tf.add_n([value for name, value in loss(targets, predictions, anchors).items() if "loss" in name])
        return tape.gradient(total, predictions)

    @tf.function
    def gradients(images, targets):
        with tf.GradientTape() as tape:
            total = model.compute_losses(images, targets, training=True)["loss"]
        return tape.gradient(total, variables)

    @tf.function
    def optimizer(gradients):
        model.optimizer.apply_gradients(list(zip(gradients, variables, strict=True)))

    step = tf.function(model.train_step)
    values = [tf.ones_like(variable) * 1e-9 for variable in variables]
    scores = tf.constant(rng.uniform(0, 5, (batch_size, len(anchors))), tf.float32)
    result = {
        "forward": median_ms(lambda: forward(images)),
        "losses": median_ms(lambda: losses(targets, predictions)),
        "  of which matching": median_ms(lambda: matching(targets, predictions["arm_offsets"])),
        "  of which mining": median_ms(lambda: mining(scores, scores > 1, tf.fill([batch_size], 60))),
        "optimizer": median_ms(lambda: optimizer(values)),
    }
    all_gradients = median_ms(lambda: gradients(images, targets))
    result["backward"] = all_gradients - result["forward"] - result["losses"]
    result["whole step"] = median_ms(lambda: step((images, targets))["loss"].numpy())
    result["peak MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with tempfile.TemporaryDirectory() as folder:
        draw_shapes(folder, {"train": 16 * batch_size, "val": 8 * batch_size}, image_size=(375, 500))
        return {**result, "input": read_ms(config, folder), "evaluation": evaluation_ms(model, folder)}


def evaluation_ms(model, folder):
    """Milliseconds of an evaluation for a batch of JPEGs of 500 x 375."""
    data = read_data("voc", folder, ["val"], list(SHAPES))
    classes = list(model.config.classes)
    examples = [dataclasses.replace(one, classes=one.classes % len(classes)) for one in data.examples]
    data = dataclasses.replace(data, classes=classes, examples=examples)
    evaluate(model, dataclasses.replace(data, examples=examples[: FLAGS.batch_size]), batch_size=FLAGS.batch_size)
    start = time.perf_counter()
    evaluate(model, data, batch_size=FLAGS.batch_size)
    return 1e3 * (time.perf_counter() - start) / (len(examples) / FLAGS.batch_size)


def read_ms(config, folder):
    """Milliseconds of the training pipeline for a batch of JPEGs of 500 x 375, with the recipe's augmentation."""
    examples, data = read_data("voc", folder, ["train"], list(SHAPES)).examples, config.data
    batches = training_pipeline(
        examples,
        Resizing(*config.model.input_size, config.model.resize),
        FLAGS.batch_size,
        data.augmentation,
        data.max_boxes,
        config.train.seed,
    )
    start, count = time.perf_counter(), sum(1 for _ in batches)
    return 1e3 * (time.perf_counter() - start) / count


def main(argv):
    """Prints a table with a column for each number of boxes."""
    del argv
    if FLAGS.child:
        print("RESULT", json.dumps(parts(load_config(FLAGS.config), FLAGS.child)))
        return
    columns = {}
    for count in (5, 100):
        command = [sys.executable, __file__, f"--config={FLAGS.config}", f"--batch_size={FLAGS.batch_size}"]
        command += [f"--runs={FLAGS.runs}", f"--child={count}"]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        columns[count] = json.loads(output.rsplit("RESULT ", 1)[1])
    print(f"{FLAGS.config}, batch {FLAGS.batch_size}; ms and share of the whole step")
    print(f"{'':20}" + "".join(f"{f'{count} boxes an image':>24}" for count in columns))
    for name in columns[5]:
        cells = []
        for values in columns.values():
            share = f"{values[name] / values['whole step']:8.2%}" if "MiB" not in name else " " * 8
            cells.append(f"{values[name]:14.1f}{share:>10}")
        print(f"{name:20}" + "".join(cells))
    for count, values in columns.items():
        print(f"{count} boxes: whole step / forward = {values['whole step'] / values['forward']:.2f}")
    every = load_config(FLAGS.config).train.evaluate_every
    training, evaluation = values["whole step"] * every * TRAINED, values["evaluation"] * EVALUATED
    print(
        f"Evaluation of {EVALUATED} images after every {every} epochs of {TRAINED}: "
        f"{evaluation / (training + evaluation):.1%} of the time"
    )
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, TensorFlow {tf.__version__}")


if __name__ == "__main__":
    flags.DEFINE_string("config", "refinedet320_vgg16_voc07", "The recipe, by name or path.")
    flags.DEFINE_integer("batch_size", 4, "Images of a step.", 1)
    flags.DEFINE_integer("runs", 5, "Calls of which the median is taken.", 1)
    flags.DEFINE_integer("child", 0, "Set by the program itself: the number of boxes of an image.")
    app.run(main)
