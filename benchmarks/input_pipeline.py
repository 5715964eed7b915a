"""Images per second of the input pipeline, and its memory over many images.

python benchmarks/input_pipeline.py --data_dir=VOCdevkit/VOC2007 --splits=train
python benchmarks/input_pipeline.py --data_dir=VOCdevkit/VOC2007 --splits=train --memory=20000

Each figure is the best of --repeats passes, since other programs on the machine only ever slow one down. Chains are
measured in turns, so that a slow minute hits all of them. The projection goes by processor time for each image, which
depends less on what else runs.
"""

import os
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from absl import app, flags

from refinedet_tf.config import DATA_FORMATS, AugmentationConfig
from refinedet_tf.data.pipeline import evaluation_pipeline, image_pipeline, training_pipeline
from refinedet_tf.data.readers import read_data
from refinedet_tf.data.readers.tfrecords import read_tfrecords
from refinedet_tf.data.record_writer import write_tfrecords
from refinedet_tf.ops.resizing import Resizing

FLAGS = flags.FLAGS
BATCH = 32
TARGET_RATE = 500  # images per second of a fast trainer
HOST_CORES = 16


def main(argv):
    """Measures the chains on files and on records, or the memory."""
    del argv
    found = read_data(FLAGS.format, FLAGS.data_dir, FLAGS.splits, None)
    if FLAGS.memory:
        memory(found.examples, FLAGS.memory)
        return
    print(f"{len(found)} images, {os.cpu_count()} cores, TensorFlow {tf.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        write_tfrecords(found, folder, "records", 8)
        records = read_tfrecords(folder, ["records"], None)
        for name, examples in (("files", found.examples), ("records", records.examples)):
            rates = measure({f"{name}: {chain}": pipeline for chain, pipeline in chains(examples).items()})
            for size in (320, 512):
                plain, full = rates[f"{name}: decode + resize {size}"], rates[f"{name}: full augmentation {size}"]
                print(
                    f"{name}, {size}: the full chain keeps {full[0] / plain[0]:.0%} of the decode + resize rate "
                    f"({plain[1] / full[1]:.0%} by processor time); {HOST_CORES} cores at {full[1] * 1e3:.2f} ms an "
                    f"image would give {HOST_CORES / full[1]:.0f} images/s, wanted are {TARGET_RATE}"
                )


def chains(examples):
    """Datasets by name, each with the number of images of its elements."""
    full = AugmentationConfig()
    result = {"decode": (image_pipeline(examples), 1)}
    for size in (320, 512):
        result[f"decode + resize {size}"] = evaluation_pipeline(examples, Resizing(size, size), BATCH), BATCH
        result[f"full augmentation {size}"] = (
            training_pipeline(examples, Resizing(size, size), BATCH, full, 100, 0),
            BATCH,
        )
    return result


def measure(pipelines):
    """Images per second and processor seconds an image, of each chain over --images images after a warm-up."""
    best = {name: (0.0, float("inf")) for name in pipelines}
    for _ in range(FLAGS.repeats):
        for name, (dataset, images) in pipelines.items():
            steps, warm_up = FLAGS.images // images, FLAGS.images // images // 10
            elements = iter(dataset.repeat().take(steps + warm_up))
            for _ in range(warm_up):
                next(elements)
            start, processor = time.perf_counter(), time.process_time()
            for _ in elements:
                pass
            rate = steps * images / (time.perf_counter() - start)
            seconds = (time.process_time() - processor) / (steps * images)
            best[name] = max(best[name][0], rate), min(best[name][1], seconds)
    for name, (rate, seconds) in best.items():
        print(f"{name}: {rate:.0f} images/s, {seconds * 1e3:.2f} ms of processor time an image", flush=True)
    return best


def memory(examples, images):
    """Resident memory every 2000 images of the full chain at 320; epochs follow each other as in a training."""
    dataset = training_pipeline(examples, Resizing(320, 320), BATCH, AugmentationConfig(), 100, 0)
    seen, shown = 0, 0
    while seen < images:
        for _ in dataset:
            seen += BATCH
            if seen >= shown:
                print(f"{seen} images: {resident_mib():.0f} MiB", flush=True)
                shown += 2000


def resident_mib():
    """Memory of this process that is in RAM."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    flags.DEFINE_enum("format", "voc", DATA_FORMATS, "The format of the data set.")
    flags.DEFINE_string("data_dir", None, "The data set.", required=True)
    flags.DEFINE_list("splits", ["train"], "What to read, separated by commas.")
    flags.DEFINE_integer("images", 2048, "Images of a pass.")
    flags.DEFINE_integer("repeats", 3, "Passes over each chain.")
    flags.DEFINE_integer("memory", 0, "Watch the memory over so many images instead.")
    app.run(main)
