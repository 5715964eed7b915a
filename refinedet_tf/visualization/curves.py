"""Pictures of a training run."""

import csv
import math
import os

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

# Columns of the training log, their names in the legend, and their colors: blue for the ARM, red for the ODM.
LOSSES = {
    "loss": ("total", "#222222"),
    "arm_objectness_loss": ("ARM objectness", "#0072b2"),
    "arm_box_loss": ("ARM boxes", "#56b4e9"),
    "odm_class_loss": ("ODM classes", "#d55e00"),
    "odm_box_loss": ("ODM boxes", "#e69f00"),
}
AP_COLUMN = "val_ap"


def save_loss_curves(csv_path: str | os.PathLike, path: str | os.PathLike) -> None:
    """Draws a training run: the losses over the epochs, and below them the average precision where it was measured.

    Args:
        csv_path: the file of Keras's `CSVLogger`: `epoch`, `loss` and the parts of the loss, their `val_` versions
            (drawn dashed), and `val_ap` between 0 and 1. Missing columns and values are left out.
        path: the PNG file.

    Raises:
        ValueError: the file is no training log or holds no finished epoch.
    """
    with open(csv_path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"epoch", "loss"} <= rows[0].keys():
        raise ValueError(
            f"{os.fspath(csv_path)} is no training log with a finished epoch: "
            "it needs the columns epoch and loss, as Keras's CSVLogger writes them."
        )
    epochs, precision = _column(rows, AP_COLUMN)
    figure = Figure(figsize=(9, 7.5) if len(epochs) else (9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    heights = [1.7, 1] if len(epochs) else [1]
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    _plot_losses(panels[0], rows)
    if len(epochs):
        panels[1].plot(epochs, precision, color="#009e73", linewidth=2, marker="o", markersize=4)
        best = int(np.argmax(precision))
        panels[1].set_title(f"best {100 * precision[best]:.1f} % after epoch {epochs[best]}", loc="left", fontsize=10)
        panels[1].set_ylim(0, 1)
        panels[1].yaxis.set_major_formatter(PercentFormatter(1.0))
        panels[1].set_ylabel("average precision (validation)")
    for panel in panels:
        panel.grid(True, color="#e4e4e4", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    panels[-1].set_xlabel("epoch")
    figure.savefig(path, format="png", dpi=120)


def _plot_losses(panel: Axes, rows: list[dict[str, str]]) -> None:
    """Training losses as lines, validation losses as dashes of the same color, on a logarithmic axis."""
    handles, validated = [], False
    for column, (name, color) in LOSSES.items():
        width = 2.2 if column == "loss" else 1.4
        epochs, values = _column(rows, column)
        if len(epochs):
            marker = "o" if len(epochs) == 1 else None  # one point makes no line
            handles += panel.plot(epochs, values, color=color, linewidth=width, marker=marker, label=name)
        epochs, values = _column(rows, "val_" + column)
        if len(epochs):
            panel.plot(epochs, values, "--", color=color, linewidth=width, marker="o", markersize=3)
            validated = True
    if validated:
        handles.append(Line2D([], [], linestyle="--", color="#808080", marker="o", markersize=3, label="validation"))
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_ylabel("loss (logarithmic)")
    panel.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)


def _column(rows: list[dict[str, str]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The epochs, counted from 1, at which a column has a finite number, and the numbers."""
    pairs = []
    for row in rows:
        text = row.get(name) or "NA"  # CSVLogger writes NA for what an epoch did not measure
        value = math.nan if text == "NA" else float(text)
        if math.isfinite(value):
            pairs.append((int(row["epoch"]) + 1, value))
    return np.array([epoch for epoch, _ in pairs], int), np.array([value for _, value in pairs])
