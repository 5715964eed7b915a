"""Images per second of decoding: what pixels that equal Pillow's and the EXIF orientation cost.

python benchmarks/decoding.py --images=VOCdevkit/VOC2007/JPEGImages

The ways to decode take turns in one process, and the best of --repeats passes counts. --orient=6 writes an EXIF
orientation into copies of the files first.
"""

import io
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from absl import app, flags
from PIL import Image

from refinedet_tf.ops.images import decode

FLAGS = flags.FLAGS


def main(argv):
    """Prints images per second and processor time of each way to decode."""
    del argv
    contents = [path.read_bytes() for path in sorted(Path(FLAGS.images).glob("*.jpg"))[: FLAGS.count]]
    if FLAGS.orient:
        contents = [oriented(each) for each in contents]
    files = tf.constant(contents)
    ways = {
        "decode_image": lambda each: tf.io.decode_image(each, channels=3, expand_animations=False),
        "decode_jpeg, INTEGER_ACCURATE": lambda each: tf.io.decode_jpeg(each, 3, dct_method="INTEGER_ACCURATE"),
        "decode of this project": decode,
    }
    best = dict.fromkeys(ways, (float("inf"), float("inf")))
    for _ in range(FLAGS.repeats + 1):  # the first pass warms up
        for name, way in ways.items():
            options = tf.data.Options()
            options.threading.max_intra_op_parallelism = 1
            dataset = tf.data.Dataset.from_tensor_slices(files).map(
                lambda each, way=way: tf.shape(way(each)), num_parallel_calls=os.cpu_count()
            )
            start, processor = time.perf_counter(), time.process_time()
            for _ in dataset.batch(64).with_options(options):
                pass
            seconds = time.perf_counter() - start, time.process_time() - processor
            best[name] = min(best[name][0], seconds[0]), min(best[name][1], seconds[1])
    for name, (wall, processor) in best.items():
        count = len(contents)
        print(f"{name}: {count / wall:.0f} images/s, {processor / count * 1e3:.2f} ms of processor time an image")


def oriented(contents):
    """The same picture stored once more, with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = FLAGS.orient
    file = io.BytesIO()
    Image.open(io.BytesIO(contents)).save(file, "JPEG", quality=90, exif=exif)
    return file.getvalue()


if __name__ == "__main__":
    flags.DEFINE_string("images", None, "A folder of JPEGs.", required=True)
    flags.DEFINE_integer("count", 500, "Images of a pass.")
    flags.DEFINE_integer("repeats", 3, "Passes over each way.")
    flags.DEFINE_integer("orient", 0, "An EXIF orientation for all images.")
    app.run(main)
