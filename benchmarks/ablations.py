"""Trains the rows of the paper's ablation table under one small budget each and prints their average precision.

python benchmarks/ablations.py --data_dir=VOCdevkit/VOC2007 [--work_dir=work/ablations] [--set=train.epochs=10]

The paper leaves out one part after the other: the negative anchor filter, the two-step regression, the transfer
connection blocks. Here every row sees the same quarter of the training images for the same number of epochs, at 192
pixels; the full detector is trained with a second seed too, to show by how much two equal runs differ. Rows are trained
one after the other in WORK_DIR/ROW. The same command goes on after an interruption and skips rows that are finished.
"""

import dataclasses
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

import refinedet_tf as rd
from refinedet_tf.data.splitting import write_list
from refinedet_tf.evaluation.tables import decimals, text_table

FLAGS = flags.FLAGS
RECIPE = "refinedet320_lite0_voc_small"
BUDGET = [
    "model.input_size=[192,192]",
    "model.anchor_sizes=[20,40,80,150]",
    "train.epochs=10",
    "train.warmup_steps=100",
    "train.evaluate_every=10",
    "train.checkpoint_steps=50",
]
SHARE = 4  # every fourth training image
NO_FILTER = ["model.objectness_threshold=0.0"]
NO_TWO_STEPS = [*NO_FILTER, "model.two_step_regression=false"]
NO_TCB = [*NO_TWO_STEPS, "model.transfer_connection=false"]
ROWS = {
    "full": [],
    "no_filter": NO_FILTER,
    "no_two_steps": NO_TWO_STEPS,
    "no_tcb": NO_TCB,
    "full_second_seed": ["train.seed=1"],
}
PAPER = {"full": "80.0", "no_filter": "79.5", "no_two_steps": "77.3", "no_tcb": "76.2"}  # VOC 2007 test, VGG-16 at 320


def write_subset(config: rd.Config, data_dir: str | os.PathLike, path: Path) -> None:
    """Writes the image ids of every `SHARE`-th training image, unless the list exists."""
    if not path.is_file():
        data = rd.read_data(config, data_dir, config.data.train_splits)
        write_list(path, dataclasses.replace(data, examples=data.examples[::SHARE]))


def final_figures(config: rd.Config, folder: Path) -> dict | None:
    """Returns the figures of a finished run of a recipe, or None."""
    recipe, evaluations = folder / "recipe.yaml", folder / "evaluations.json"
    if not (recipe.is_file() and evaluations.is_file()) or rd.load_config(recipe) != config:
        return None
    figures = json.loads(evaluations.read_text())
    return figures[-1] if figures and figures[-1]["epoch"] == config.train.epochs else None


def table(figures: dict[str, dict]) -> str:
    """Returns the table of all rows and what two seeds differ by."""
    lines = [("", "filter", "two steps", "TCB", "seed", "AP 11-point", "AP area", "COCO AP", "paper's mAP")]
    for row, found in figures.items():
        without = [change in ROWS[row] for change in (NO_FILTER[-1], NO_TWO_STEPS[-1], NO_TCB[-1])]
        parts = ["no" if left_out else "yes" for left_out in without]
        seed = "1" if row == "full_second_seed" else "0"
        precisions = [decimals(found[key]) for key in ("ap_11_point", "ap_area", "coco_ap")]
        lines.append((row, *parts, seed, *precisions, PAPER.get(row, "-")))
    first, second = (figures[row]["ap_area"] for row in ("full", "full_second_seed"))
    return f"{text_table(lines, mean_row=False)}\nThe two seeds differ by {abs(first - second):.3f} (area)."


def train_rows(
    recipe: str | os.PathLike, changes: list[str], data_dir: str | os.PathLike, work_dir: str | os.PathLike
) -> dict[str, dict]:
    """Trains the rows that are not finished and returns the figures of all."""
    folder = Path(work_dir).resolve()
    subset = folder / "train.txt"
    write_subset(rd.load_config(recipe, changes), data_dir, subset)
    figures = {}
    for row, left_out in ROWS.items():
        split = f"data.train_splits=[{json.dumps(str(subset))}]"
        config = rd.load_config(recipe, [*BUDGET, *changes, *left_out, split])
        if final_figures(config, folder / row) is None:
            print(f"Training {row}: {len(subset.read_text().split())} images, {config.train.epochs} epochs")
            rd.train(config, data_dir, folder / row)
        figures[row] = final_figures(config, folder / row)
    return figures


def main(argv: list[str]) -> None:
    """Trains what is not finished and prints the table."""
    del argv
    print(table(train_rows(FLAGS.config, FLAGS.set, FLAGS.data_dir, FLAGS.work_dir)))


if __name__ == "__main__":
    flags.DEFINE_string("config", RECIPE, "The recipe, by name or path.")
    flags.DEFINE_string("data_dir", None, "The data set, in the recipe's data.format.", required=True)
    flags.DEFINE_string("work_dir", "work/ablations", "The folder of the runs.")
    flags.DEFINE_multi_string("set", [], "Changes a value of the recipe for all rows; repeatable.")
    app.run(main)
