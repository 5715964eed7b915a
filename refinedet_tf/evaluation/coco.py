"""Average precision as COCO defines it, by pycocotools, without files."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from refinedet_tf.evaluation.voc import ImageDetections, ImageTruth, check_images

# In the order of COCOeval's own list of statistics.
METRICS = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR1",
    "AR10",
    "AR100",
    "AR_small",
    "AR_medium",
    "AR_large",
)


def coco_average_precision(
    detections: Sequence[ImageDetections], truths: Sequence[ImageTruth], classes: Sequence[str]
) -> dict[str, float]:
    """COCO's average precision and recall, over the classes that have ground truth.

    Boxes are taken as they are: xmax - xmin wide, without VOC's extra pixel. An object's size is the area of its box
    (small: below 32 x 32 pixels, large: above 96 x 96), as there are no masks. Difficult objects count as crowds:
    detections that lie mostly inside them are ignored. COCO looks at 100 detections of an image and class.

    Args:
        detections: the detections of each image.
        truths: the objects of each image, in the same order.
        classes: the names of the classes, by index.

    Returns:
        `AP` (mean over IoU 0.5, 0.55, ..., 0.95), `AP50`, `AP75`, `AP_small`, `AP_medium`, `AP_large`, and the average
        recall `AR1`, `AR10`, `AR100` (detections per image), `AR_small`, `AR_medium`, `AR_large`; 0 to 1, and nan where
        no object is to be found.

    Raises:
        ValueError: as `check_images`.
    """
    check_images(detections, truths, len(classes))
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports each of its steps
        evaluation = COCOeval(
            _dataset(truths, classes, "iscrowd", [truth.difficult for truth in truths]),
            _dataset(detections, classes, "score", [found.scores for found in detections]),
            "bbox",
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # COCOeval marks what cannot be computed by -1.
    return {
        name: float(value) if value >= 0 else float("nan")
        for name, value in zip(METRICS, evaluation.stats, strict=True)
    }


def _dataset(
    images: Sequence[ImageDetections | ImageTruth], classes: Sequence[str], key: str, values: Sequence[np.ndarray]
) -> COCO:
    """The boxes of all images as pycocotools indexes them, each with its value under one more key."""
    annotations = []
    for image_id, image in enumerate(images):
        boxes = np.asarray(image.boxes, np.float64)
        sides = boxes[:, 2:] - boxes[:, :2]
        for index, side in enumerate(sides):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # 0 would mean "unmatched" to COCOeval
                    "image_id": image_id,
                    "category_id": int(image.classes[index]),
                    "bbox": [*boxes[index, :2].tolist(), *side.tolist()],
                    "area": float(side.prod()),
                    key: float(values[image_id][index]),
                }
            )
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image_id} for image_id in range(len(images))],
        "categories": [{"id": index, "name": name} for index, name in enumerate(classes)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
