"""The report of a run, one self-contained HTML page, and the pictures in it."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refinedet_tf.config import Config
from refinedet_tf.data.examples import ExampleSet
from refinedet_tf.data.pipeline import image_pipeline
from refinedet_tf.evaluation.analysis import figures
from refinedet_tf.evaluation.analysis.analysis import analyze
from refinedet_tf.evaluation.analysis.report import template_environment
from refinedet_tf.evaluation.evaluator import EvaluationResult
from refinedet_tf.training.checkpoints import Progress
from refinedet_tf.training.files import replace_text
from refinedet_tf.visualization import draw_detections

SHOWN_IMAGES = 8
MIN_SCORE = 0.3  # of a detection without a threshold of its class
LARGEST_SIDE = 640  # pixels of a picture


def write_report(
    folder: Path, config: Config, progress: Progress, result: EvaluationResult, train_images: int, val_set: ExampleSet
) -> None:
    """Writes `report.html`: curves, tables of average precision, precision and recall, pictures and the recipe.

    Args:
        folder: of the run, with `curves.png` and `recipe.yaml`.
        config: the recipe.
        progress: of the finished run.
        result: of the last evaluation.
        train_images: number of training images.
        val_set: the validation images.
    """
    environment = template_environment("refinedet_tf.training")
    analysis = analyze(result, val_set)
    names = [example.image_id for example in val_set.examples[:SHOWN_IMAGES]]
    pictures = draw_comparisons(result, val_set, analysis.score_thresholds)
    page = environment.get_template("report.html").render(
        title=f"Training run {folder.name}",
        epochs=progress.epoch,
        train_images=train_images,
        val_images=len(val_set),
        metric=config.train.best_metric,
        best=best_evaluation(progress.evaluations),
        curves=_data_url((folder / "curves.png").read_bytes(), "png"),
        evaluations=progress.evaluations,
        rows=_class_rows(result, val_set.classes),
        precision_recall=figures.precision_recall_figure(analysis),
        pictures=[{"name": name, "url": _jpeg_url(image)} for name, image in zip(names, pictures, strict=True)],
        recipe=(folder / "recipe.yaml").read_text(encoding="utf-8"),
    )
    replace_text(folder / "report.html", page)


def best_evaluation(evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the entry with the highest AP, the earliest of equals; None, without any ground truth, is the lowest."""
    return max(evaluations, key=lambda entry: -1.0 if entry["val_ap"] is None else entry["val_ap"])


def draw_comparisons(
    result: EvaluationResult, data: ExampleSet, score_thresholds: dict[str, float], count: int = SHOWN_IMAGES
) -> list[np.ndarray]:
    """Draws the first images twice: with their ground truth on the left, with their detections on the right.

    Args:
        result: of the evaluation of `data`.
        data: labeled images.
        score_thresholds: by class name, the scores from which detections are shown; 0.3 where there is none.
        count: the number of images.

    Returns:
        uint8 `[h, w, 3]` each.
    """
    limits = np.array([score_thresholds.get(name, MIN_SCORE) for name in data.classes])
    examples = data.examples[:count]
    pictures = []
    for example, found, batch in zip(examples, result.detections, image_pipeline(examples), strict=False):
        image = batch[0].numpy()
        height, width = image.shape[:2]
        shown = found.scores >= limits[found.classes]
        boxes = found.boxes[shown] / (width, height, width, height)
        classes, scores = found.classes[shown], found.scores[shown]
        truth = draw_detections(image, example.boxes, example.classes, class_names=data.classes)
        detected = draw_detections(image, boxes, classes, scores, class_names=data.classes)
        pictures.append(np.concatenate([truth, detected], axis=1))
    return pictures


def _class_rows(result: EvaluationResult, classes: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "objects": row.ground_truths,
            "ap_11_point": row.ap_11_point,
            "ap_area": row.ap_area,
            "coco_ap": result.coco.classes[name]["AP"],
        }
        for name, row in zip(classes, result.voc.rows, strict=True)
    ]


def _jpeg_url(image: np.ndarray) -> str:
    picture, content = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((2 * LARGEST_SIDE, LARGEST_SIDE))
    picture.save(content, "JPEG", quality=85)
    return _data_url(content.getvalue(), "jpeg")


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
