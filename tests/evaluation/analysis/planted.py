"""Detections made from the truth, with errors planted in known numbers."""

import numpy as np

from refinedet_tf.data.examples import Example, ExampleSet
from refinedet_tf.evaluation.images import ImageDetections

CLASSES = ["cat", "dog", "cow"]
SIZE = 400
PLANTED = {"localization": 10, "classification": 5, "duplicate": 7, "missed": 3, "background": 4, "both": 6}


def planted(images=30):
    """Four objects of 40 to 90 pixels in each image, far apart; every error in an image of its own turn.

    Returns:
        The labeled images, the detections, and for each planted error its kind, image and object.
    """
    rng = np.random.default_rng(3)
    examples, detections, log = [], [], []
    errors = [kind for kind, count in PLANTED.items() for _ in range(count)]
    slots = iter(rng.permutation(images * 4)[: len(errors)].tolist())
    plan = {slot: kind for kind, slot in zip(errors, slots, strict=False)}
    for image in range(images):
        corners = np.array([[20, 20], [220, 20], [20, 220], [220, 220]], float) + rng.uniform(0, 60, (4, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(40, 90, (4, 2))], axis=1)
        classes = rng.integers(0, 3, 4)
        rows = []
        for number, (box, label) in enumerate(zip(boxes, classes, strict=True)):
            score = rng.uniform(0.6, 1.0)
            kind = plan.get(image * 4 + number)
            if kind:
                log.append((kind, image, number))
            width = box[2] - box[0]
            shifted = box + np.array([0.55 * width, 0, 0.55 * width, 0])  # IoU 0.45 / 1.55 = 0.29
            if kind == "localization":
                rows.append((shifted, score, label))
            elif kind == "classification":
                rows.append((box, score, (label + 1) % 3))
            elif kind == "both":
                # The object itself is found, too: only the extra detection is an error.
                rows += [(shifted, rng.uniform(0.3, 0.5), (label + 1) % 3), (box, score, label)]
            elif kind == "duplicate":
                rows += [(box + 2, rng.uniform(0.3, 0.5), label), (box, score, label)]
            elif kind == "background":
                rows += [([180, 180, 200, 200], rng.uniform(0.3, 0.5), label), (box, score, label)]
            elif kind != "missed":
                rows.append((box, score, label))
        flags = np.zeros(4, bool)
        relative = (boxes / SIZE).astype(np.float32)
        examples.append(Example(f"image{image}", f"{image}.png", SIZE, SIZE, relative, classes, flags, flags))
        detections.append(ImageDetections(*(np.array([row[column] for row in rows]) for column in range(3))))
    return ExampleSet(examples, CLASSES, []), detections, log
