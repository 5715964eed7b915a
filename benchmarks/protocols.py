"""Evaluates a split of a VOC folder by every protocol for 320 models, with the time for an image.

python benchmarks/protocols.py MODEL DATA_DIR [SPLIT [IMAGES]]

The split is `test` by default. With IMAGES only that many are evaluated, the first of the split.
"""

import dataclasses
import sys
import time

import refinedet_tf as rd
from refinedet_tf.data.pipeline import image_pipeline
from refinedet_tf.evaluation.evaluator import comparison_table
from refinedet_tf.evaluation.prediction import ProtocolDetector
from refinedet_tf.evaluation.protocols import PROTOCOLS


def main() -> None:
    """Prints the seconds for an image, loading and compiling left out, and the figures of each protocol."""
    model = rd.load_model(sys.argv[1])
    split, count = [*sys.argv[3:], "test"][0], int(sys.argv[4]) if len(sys.argv) > 4 else None
    data = rd.read_data("voc", sys.argv[2], [split], model.config.classes)
    data = dataclasses.replace(data, examples=data.examples[:count])
    images = [batch[0] for batch in image_pipeline(data.examples)]
    shapes = {image.shape: image for image in images}
    results = {}
    for name, protocol in PROTOCOLS.items():
        if name.endswith("512"):
            continue
        detector = ProtocolDetector(model, protocol)
        for image in shapes.values():  # compiles what this size needs
            detector.detect(image)
        wall, processor = time.perf_counter(), time.process_time()
        detections = [detector.detect(image) for image in images]
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        print(f"{name}: {wall / len(images):.3f} s for an image, {processor / len(images):.3f} s of processor time")
        results[name] = rd.evaluate(detections, data)
    print(comparison_table(results))


if __name__ == "__main__":
    main()
