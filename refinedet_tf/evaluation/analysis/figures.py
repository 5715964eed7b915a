"""The diagrams and pictures of the report, as text that an HTML page holds."""

import base64
import io

import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from refinedet_tf.evaluation.analysis.analysis import Analysis
from refinedet_tf.evaluation.analysis.errors import CORRECT, IGNORED, KINDS, MISSED
from refinedet_tf.evaluation.analysis.labels import KIND_NAMES
from refinedet_tf.visualization.drawing import class_color
from refinedet_tf.visualization.labels import draw_label, label_size, place_labels

KIND_COLORS = {
    "classification": (204, 121, 167),
    "localization": (230, 159, 0),
    "both": (150, 60, 105),
    "duplicate": (86, 180, 233),
    "background": (213, 94, 0),
    MISSED: (0, 114, 178),
}
CORRECT_COLOR = (0, 158, 115)
MAX_CLASSES = 20  # of a diagram
PICTURE_SIDE = 480


def cost_figure(analysis: Analysis) -> str:
    """Draws the cost of each kind of error, over all objects and by size, as SVG."""
    figure, panel = _figure(7.5, 3.4)
    names = [*KINDS, MISSED]
    groups = {"all": analysis.cost, **analysis.size_costs}
    groups = {name: cost for name, cost in groups.items() if cost.objects}
    shades = dict(zip(("all", "small", "medium", "large"), ("#1f3a5f", "#86b6d9", "#4f8fc0", "#2c6496"), strict=True))
    height = 0.8 / len(groups)
    for number, (group, cost) in enumerate(groups.items()):
        places = np.arange(len(names)) + number * height
        values = [100 * cost.gain[name] for name in names]
        panel.barh(places, values, height, color=shades[group], label=f"{group} ({cost.objects} objects)")
    panel.set_yticks(np.arange(len(names)) + 0.4 - height / 2, names)
    panel.invert_yaxis()
    panel.set_xlabel("AP50 lost, in points of 100")
    panel.legend(frameon=False, fontsize=9)
    return _svg(figure)


def precision_recall_figure(analysis: Analysis) -> str:
    """Draws precision over recall of the classes with most objects, as SVG; dots mark the best thresholds."""
    figure, panel = _figure(7.5, 4.2)
    for index in _largest_classes(analysis):
        curve, name = analysis.curves[index], analysis.classes[index]
        color = np.array(class_color(index)) / 255
        panel.plot(curve.recall, curve.precision, color=color, linewidth=1.6, label=name)
        if name in analysis.score_thresholds:
            precision, recall, _ = curve.at(analysis.score_thresholds[name])
            panel.plot([recall], [precision], "o", color=color, markersize=6)
    panel.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    _legend_beside(panel)
    return _svg(figure)


def threshold_figure(analysis: Analysis) -> str:
    """Draws F1 over score thresholds, as SVG."""
    figure, panel = _figure(7.5, 4.2)
    grid = np.linspace(0.01, 0.99, 99)
    for index in _largest_classes(analysis):
        values = [analysis.curves[index].at(threshold)[2] for threshold in grid]
        color = np.array(class_color(index)) / 255
        panel.plot(grid, values, color=color, linewidth=1.6, label=analysis.classes[index])
    panel.set(xlabel="score threshold", ylabel="F1", xlim=(0, 1), ylim=(0, 1.02))
    _legend_beside(panel)
    return _svg(figure)


def calibration_figure(analysis: Analysis) -> str:
    """Draws precision over score, and the number of detections below it, as SVG."""
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    FigureCanvasSVG(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.4, 1])
    result = analysis.calibration
    centers = (result.edges[1:] + result.edges[:-1]) / 2
    upper.plot([0, 1], [0, 1], "--", color="#909090", linewidth=1, label="scores that are probabilities")
    known = result.counts > 0
    upper.plot(result.mean_score[known], result.precision[known], "o-", color="#1f3a5f", label="this detector")
    upper.set(ylabel="share that is correct", ylim=(0, 1.02))
    upper.legend(frameon=False, fontsize=9)
    lower.bar(centers, result.counts, width=0.09, color="#86b6d9")
    lower.set(xlabel="score", ylabel="detections", xlim=(0, 1), yscale="symlog")
    for panel in (upper, lower):
        panel.grid(True, color="#e4e4e4", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def confusion_figure(analysis: Analysis) -> str:
    """Draws the confusion of the classes with most objects, rows scaled to their sum, as SVG."""
    chosen = _largest_classes(analysis)
    rows = [*chosen, len(analysis.classes)]
    counts = analysis.confusion[np.ix_(rows, rows)]
    names = [analysis.classes[index] for index in chosen]
    side = max(3.6, 0.42 * len(rows) + 1.6)
    figure, panel = _figure(side + 0.8, side)
    panel.grid(False)
    panel.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        if counts[row, column]:
            share = counts[row, column] / counts[row].sum()
            color = "white" if share > 0.55 else "#303030"
            panel.text(column, row, counts[row, column], ha="center", va="center", fontsize=8, color=color)
    panel.set_xticks(range(len(rows)), [*names, "not found"], rotation=45, ha="right")
    panel.set_yticks(range(len(rows)), [*names, "no object"])
    panel.set(xlabel="detected", ylabel="annotated")
    return _svg(figure)


def error_picture(image: np.ndarray, analysis: Analysis, index: int) -> str:
    """Draws the errors of an image, as a data URL: wrong detections solid, objects not found dashed, correct ones thin.

    Args:
        image: uint8 `[h, w, 3]`.
        analysis: the analysis.
        index: the image's index.
    """
    shown = analysis.shown
    boxes, texts, colors, dashed = [], [], [], []
    for row in np.flatnonzero(shown.image == index):
        kind = shown.kind[row]
        if kind == IGNORED:
            continue
        boxes.append(shown.box[row])
        name = KIND_NAMES.get(kind)
        colors.append(KIND_COLORS[name] if name else CORRECT_COLOR)
        label = f"{analysis.classes[shown.label[row]]} {shown.score[row]:.2f}"
        texts.append("" if kind == CORRECT else f"{name}: {label}")
        dashed.append(False)
    for row in np.flatnonzero((shown.object_image == index) & ~shown.found & ~shown.difficult):
        boxes.append(shown.object_box[row])
        colors.append(KIND_COLORS[MISSED])
        texts.append(f"not found: {analysis.classes[shown.object_label[row]]}")
        dashed.append(True)
    return _picture(image, boxes, texts, colors, dashed)


def suspicion_picture(image: np.ndarray, box: list[float], *, is_label: bool) -> str:
    """Draws one box of an image and what is around it, as a data URL; a label is dashed."""
    height, width = image.shape[:2]
    margin = max(box[2] - box[0], box[3] - box[1], 0.1 * max(height, width))
    left, top = max(0, int(box[0] - margin)), max(0, int(box[1] - margin))
    right, bottom = min(width, int(box[2] + margin) + 1), min(height, int(box[3] + margin) + 1)
    crop = image[top : max(bottom, top + 1), left : max(right, left + 1)]
    moved = np.array(box) - [left, top, left, top]
    color = KIND_COLORS[MISSED if is_label else "background"]
    return _picture(crop, [moved], [""], [color], [is_label], side=240)


def _picture(
    image: np.ndarray,
    boxes: list[np.ndarray],
    texts: list[str],
    colors: list[tuple[int, int, int]],
    dashed: list[bool],
    side: int = PICTURE_SIDE,
) -> str:
    picture = Image.fromarray(image)
    scale = side / max(picture.size)
    picture = picture.resize([max(1, round(each * scale)) for each in picture.size], Image.Resampling.LANCZOS)
    canvas = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=12)
    pixels = []
    for box in boxes:
        corners = np.clip(np.round(np.asarray(box) * scale), 0, (picture.width - 1, picture.height - 1) * 2)
        pixels.append(tuple(int(value) for value in corners))
    for corners, text, color, is_dashed in zip(pixels, texts, colors, dashed, strict=True):
        if is_dashed:
            _dashed_rectangle(canvas, corners, color)
        else:
            canvas.rectangle(corners, outline=color, width=2 if text else 1)
    labeled = [number for number, text in enumerate(texts) if text]
    sizes = [label_size(texts[number], font) for number in labeled]
    places = place_labels([pixels[number] for number in labeled], sizes, picture.size)
    for number, corner in zip(labeled, places, strict=True):
        draw_label(canvas, corner, texts[number], colors[number], font)
    encoded = io.BytesIO()
    picture.save(encoded, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()


def _dashed_rectangle(
    canvas: ImageDraw.ImageDraw, corners: tuple[int, int, int, int], color: tuple[int, int, int], dash: int = 6
) -> None:
    left, top, right, bottom = corners
    for x in range(left, right, 2 * dash):
        for y in (top, bottom):
            canvas.line((x, y, min(x + dash, right), y), fill=color, width=2)
    for y in range(top, bottom, 2 * dash):
        for x in (left, right):
            canvas.line((x, y, x, min(y + dash, bottom)), fill=color, width=2)


def _largest_classes(analysis: Analysis) -> list[int]:
    """Returns the classes with most objects, in the order of the classes."""
    counts = [cost.objects for cost in analysis.class_costs]
    largest = np.argsort([-count for count in counts], kind="stable")[:MAX_CLASSES]
    return sorted(int(index) for index in largest if counts[index])


def _figure(width: float, height: float) -> tuple:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    panel = figure.subplots()
    panel.grid(True, color="#e4e4e4", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    return figure, panel


def _legend_beside(panel: object) -> None:
    panel.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    content = text.getvalue()
    return content[content.index("<svg") :]
