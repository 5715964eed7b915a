"""The commands as a user runs them, in processes of their own."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from refinedet_tf.visualization import class_color
from tests.conftest import PROJECT


def run(*arguments):
    """Runs Python in the project's folder; returns exit code, output and the last line of the errors."""
    result = subprocess.run([sys.executable, *map(str, arguments)], cwd=PROJECT, capture_output=True, text=True)
    return result.returncode, result.stdout, (result.stderr.strip().splitlines() or [""])[-1]


@pytest.fixture(scope="module")
def saved_model(finished_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "1"
    code, _, error = run("export/savedmodel.py", f"--model={finished_run / 'model.keras'}", f"--output_dir={path}")
    assert code == 0, error
    return path


def test_evaluate_prints_the_same_figures_for_the_model_and_its_export(finished_run, saved_model, shapes_dir, tmp_path):
    figures = []
    for number, model in enumerate([finished_run / "model.keras", saved_model]):
        file = tmp_path / f"{number}.json"
        code, output, error = run("-m", "refinedet_tf", "evaluate", f"--model={model}", f"--data_dir={shapes_dir}",
                                  "--splits=val", f"--json={file}")  # fmt: skip
        assert code == 0, error
        assert all(name in output for name in ("circle", "square", "triangle", "star", "mean", "COCO"))
        figures.append(json.loads(file.read_text()))
    trained = json.loads((finished_run / "evaluations.json").read_text())[-1]
    assert figures[0]["voc"]["mean_ap_11_point"] == pytest.approx(trained["val_ap"])
    for name, row in figures[0]["voc"]["classes"].items():
        assert figures[1]["voc"]["classes"][name]["ap_area"] == pytest.approx(row["ap_area"], abs=1e-3)


def test_detect_draws_what_it_writes_and_skips_what_it_cannot_read(finished_run, shapes_dir, tmp_path):
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for path in sorted((shapes_dir / "JPEGImages").glob("*.jpg"))[:2]:
        shutil.copy(path, photos / f"{path.stem}.png")  # a JPEG under another name is still readable
    (photos / "broken.jpg").write_bytes(b"no image")
    code, printed, error = run("-m", "refinedet_tf", "detect", f"--model={finished_run / 'model.keras'}",
                               f"--input={photos}", f"--output_dir={output}", "--score_threshold=0.01",
                               f"--gallery={tmp_path / 'gallery.png'}")  # fmt: skip
    assert code == 0, error
    report = json.loads((output / "detections.json").read_text())
    assert [entry["file"] for entry in report["skipped"]] == [str(photos / "broken.jpg")]
    assert "broken.jpg" in printed
    assert len(report["images"]) == 2
    for entry in report["images"]:
        before = np.asarray(Image.open(entry["file"]).convert("RGB")).astype(int)
        after = np.asarray(Image.open(output / entry["file"].rsplit("/", 1)[-1])).astype(int)
        assert entry["detections"], "an untrained model finds something above 0.01"
        for found in entry["detections"]:
            xmin, ymin, xmax, ymax = found["box"]
            assert 0 <= xmin < xmax <= entry["width"] and 0 <= ymin < ymax <= entry["height"]
        best = max(entry["detections"], key=lambda found: found["score"])
        color = class_color(["circle", "square", "triangle", "star"].index(best["class"]))
        assert (np.abs(after - color).sum(axis=-1) == 0).any()
        assert (after != before).any()
    assert np.asarray(Image.open(tmp_path / "gallery.png")).shape[1] > 2 * 360


def test_an_export_never_overwrites(finished_run, saved_model):
    before = sorted(path.name for path in saved_model.iterdir())
    code, _, error = run("export/savedmodel.py", f"--model={finished_run / 'model.keras'}",
                         f"--output_dir={saved_model}")  # fmt: skip
    assert code == 1 and "not empty" in error
    assert sorted(path.name for path in saved_model.iterdir()) == before
    assert (saved_model / "assets" / "labels.txt").read_text() == "circle\nsquare\ntriangle\nstar\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train.py", "--config=configs/nowhere.yaml", "--data_dir=d", "--work_dir=w"], "configs/nowhere.yaml"),
        (["train.py", "--config=RECIPE", "--data_dir=d", "--work_dir=w", "--set=train.epoch=3"], "'epochs'"),
        (["train.py", "--config=RECIPE", "--data_dir=/nowhere", "--work_dir=w"], "/nowhere"),
        (["-m", "refinedet_tf", "detect", "--model=nowhere.keras", "--input=setup.cfg", "--output_dir=o"], "nowhere"),
        (["-m", "refinedet_tf", "detect", "--model=m", "--input=configs", "--output_dir=o"], "holds no image"),
        (["-m", "refinedet_tf", "evaluate", "--model=RECIPE", "--data_dir=d"], "no model that can be opened"),
        (["export/savedmodel.py", "--model=RECIPE", "--output_dir=o"], "no model that can be opened"),
    ],
)
def test_mistakes_are_one_line_that_names_them(tiny_recipe, arguments, message):
    code, _, error = run(*[str(argument).replace("RECIPE", str(tiny_recipe)) for argument in arguments])
    assert code == 1
    assert error.startswith("error: ") and message in error
    assert not any((PROJECT / name).exists() for name in "wo")
