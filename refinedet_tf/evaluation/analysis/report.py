"""Writes an analysis as one self-contained HTML page and as JSON."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from refinedet_tf.data.examples import ExampleSet
from refinedet_tf.data.pipeline import image_pipeline
from refinedet_tf.evaluation.analysis import figures
from refinedet_tf.evaluation.analysis.analysis import Analysis
from refinedet_tf.evaluation.analysis.errors import DESCRIPTIONS
from refinedet_tf.evaluation.coco import METRICS
from refinedet_tf.evaluation.robustness import RobustnessRow
from refinedet_tf.evaluation.tables import decimals

SHOWN_SUSPICIONS = 24


def write_report(
    analysis: Analysis,
    data: ExampleSet,
    folder: str | os.PathLike,
    *,
    title: str = "Evaluation",
    robustness: Sequence = (),
) -> Path:
    """Writes `evaluation.html` and `evaluation.json`.

    Args:
        analysis: of these images.
        data: the labeled images, whose files are read for the gallery.
        folder: is made if missing; an older report in it is replaced.
        title: of the page, such as the model's path.
        robustness: results of `evaluate_robustness`.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"title": title, **analysis.as_dict(), "robustness": [row.as_dict() for row in robustness]}
    (folder / "evaluation.json").write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
    page = folder / "evaluation.html"
    page.write_text(_render(analysis, data, title, robustness), encoding="utf-8")
    return page


def template_environment(package: str) -> Environment:
    """Returns an environment for the HTML templates of a package; what a page lacks is an error."""
    environment = Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["decimals"] = lambda value: "-" if value is None else decimals(value)
    return environment


def _render(analysis: Analysis, data: ExampleSet, title: str, robustness: Sequence[RobustnessRow]) -> str:
    environment = template_environment("refinedet_tf.evaluation.analysis")
    doubted = [each for each in analysis.suspicions if each.score is not None][:SHOWN_SUSPICIONS]
    unfound = [each for each in analysis.suspicions if each.score is None][:SHOWN_SUSPICIONS]
    images = _read_images(data, [each.image for each in [*analysis.worst, *doubted, *unfound]])
    return environment.get_template("report.html").render(
        title=title,
        analysis=analysis,
        image_count=len(data),
        descriptions=DESCRIPTIONS,
        colors={name: f"rgb{color}" for name, color in figures.KIND_COLORS.items()},
        metrics=[(name, analysis.result.coco.metrics[name]) for name in METRICS],
        rows=_class_rows(analysis),
        cost=figures.cost_figure(analysis),
        precision_recall=figures.precision_recall_figure(analysis),
        thresholds=figures.threshold_figure(analysis),
        calibration=figures.calibration_figure(analysis),
        confusion=figures.confusion_figure(analysis),
        counts=analysis.shown.counts(),
        worst=[(each, figures.error_picture(images[each.image], analysis, each.image)) for each in analysis.worst],
        doubted=[(each, figures.suspicion_picture(images[each.image], each.box, is_label=False)) for each in doubted],
        unfound=[(each, figures.suspicion_picture(images[each.image], each.box, is_label=True)) for each in unfound],
        robustness=robustness,
    )


def _class_rows(analysis: Analysis) -> list[dict]:
    rows = []
    for index, name in enumerate(analysis.classes):
        threshold = analysis.score_thresholds.get(name)
        rates = analysis.curves[index].at(threshold) if threshold is not None else (None, None, None)
        voc = analysis.result.voc.rows[index]
        cost = analysis.class_costs[index]
        rows.append(
            {
                "name": name,
                "objects": cost.objects,
                "figures": [voc.ap_11_point, voc.ap_area, analysis.result.coco.classes[name]["AP"]],
                "threshold": threshold,
                "rates": rates,
                "gain": [cost.gain[kind] for kind in DESCRIPTIONS],
            }
        )
    return rows


def _read_images(data: ExampleSet, indices: Sequence[int]) -> dict[int, np.ndarray]:
    """Reads the images of some examples as the evaluation sees them, uint8 `[h, w, 3]`, by index."""
    wanted = sorted(set(indices))
    if not wanted:
        return {}
    batches = image_pipeline([data.examples[index] for index in wanted])
    return {index: batch[0].numpy() for index, batch in zip(wanted, batches, strict=True)}
