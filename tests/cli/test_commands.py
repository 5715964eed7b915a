"""The commands as a user runs them: each that succeeds once in a process of its own, mistakes in this one."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from refinedet_tf.visualization import class_color
from refinedet_tf.weights import load_model
from tests.commands import refinedet
from tests.conftest import PROJECT


def run(*arguments):
    """Runs Python in the project's folder; returns exit code, output and the last line of the errors."""
    result = subprocess.run([sys.executable, *map(str, arguments)], cwd=PROJECT, capture_output=True, text=True)
    return result.returncode, result.stdout, (result.stderr.strip().splitlines() or [""])[-1]


@pytest.fixture(scope="module")
def saved_model(finished_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "1"
    model = finished_run / "model.keras"
    code, _, error = run("export/savedmodel.py", f"--model={model}", f"--output_dir={path}", "--noverify")
    assert code == 0, error
    return path


def test_evaluate_prints_and_writes_the_same_figures_for_every_form(finished_run, saved_model, shapes_dir, tmp_path):
    model = tmp_path / "model.keras"
    shutil.copy(finished_run / "model.keras", model)
    arguments = ["evaluate", f"--data_dir={shapes_dir}", "--splits=val"]
    code, output, error = run("-m", "refinedet_tf", *arguments, f"--model={model}", f"--json={tmp_path / 'one.json'}",
                              f"--report={tmp_path / 'report'}", f"--coco_results={tmp_path / 'coco.json'}",
                              f"--voc_results={tmp_path / 'voc'}", "--save_thresholds")  # fmt: skip
    assert code == 0, error
    assert all(name in output for name in ("circle", "square", "triangle", "star", "mean", "COCO", "AR_large"))
    figures = json.loads((tmp_path / "one.json").read_text())
    trained = json.loads((finished_run / "evaluations.json").read_text())[-1]
    assert figures["ap_11_point"] == pytest.approx(trained["val_ap"])
    report = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert {name: report[name] for name in figures} == figures
    assert report["title"] == str(model) and (tmp_path / "report" / "evaluation.html").is_file()
    assert load_model(model).config.score_thresholds == report["score_thresholds"]
    assert sorted(path.name for path in (tmp_path / "voc").iterdir()) == [
        f"comp4_det_test_{name}.txt" for name in ("circle", "square", "star", "triangle")]  # fmt: skip

    # The detections, once made, are as good as the model; the export differs by rounding.
    found = tmp_path / "coco.json"
    code, output, error = refinedet(
        *arguments, f"--model={saved_model}", f"--detections={found}", f"--json={tmp_path / 'two.json'}"
    )
    assert code == 0, error
    exported, again = (json.loads((tmp_path / "two.json").read_text())[str(name)] for name in (saved_model, found))
    for name, row in figures["voc"]["classes"].items():
        assert exported["voc"]["classes"][name]["ap_area"] == pytest.approx(row["ap_area"], abs=1e-3)
        assert again["voc"]["classes"][name]["ap_area"] == pytest.approx(row["ap_area"], abs=1e-3)
    comparison = [line.split()[0] for line in output.splitlines()[-2:]]
    assert comparison == [str(saved_model), str(found)]


def test_evaluate_names_what_does_not_go_together(finished_run, shapes_dir):
    model = f"--model={finished_run / 'model.keras'}"
    for arguments, message in (
        ([], "Give --model or --detections"),
        ([model, model, "--report=out"], "--report is for one model; 2 are given"),
        (["--detections=x.json", "--save_thresholds"], "needs a .keras --model"),
        ([model, "--protocol=paper", "--robustness"], "--robustness needs a --model and no --protocol"),
    ):
        code, _, error = refinedet("evaluate", f"--data_dir={shapes_dir}", *arguments)
        assert code == 1 and message in error


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
    model = finished_run / "model.keras"
    code, _, error = refinedet("export-savedmodel", f"--model={model}", f"--output_dir={saved_model}")
    assert code == 1 and "not empty" in error
    assert sorted(path.name for path in saved_model.iterdir()) == before
    assert (saved_model / "assets" / "labels.txt").read_text() == "circle\nsquare\ntriangle\nstar\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "--config=configs/nowhere.yaml", "--data_dir=d", "--work_dir=w"], "configs/nowhere.yaml"),
        (["train", "--config=RECIPE", "--data_dir=d", "--work_dir=w", "--set=train.epoch=3"], "'epochs'"),
        (["train", "--config=RECIPE", "--data_dir=/nowhere", "--work_dir=w"], "/nowhere"),
        (["detect", "--model=nowhere.keras", "--input=setup.cfg", "--output_dir=o"], "nowhere"),
        (["detect", "--model=m", "--input=configs", "--output_dir=o"], "holds no image"),
        (["evaluate", "--model=RECIPE", "--data_dir=d"], "not a model that can be opened"),
        (["export-savedmodel", "--model=RECIPE", "--output_dir=o"], "not a model that can be opened"),
    ],
)
def test_mistakes_are_one_line_that_names_them(tiny_recipe, monkeypatch, arguments, message):
    monkeypatch.chdir(PROJECT)
    code, _, error = refinedet(*[argument.replace("RECIPE", str(tiny_recipe)) for argument in arguments])
    assert code == 1
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not any((PROJECT / name).exists() for name in "wo")


def test_a_mistake_ends_a_process_with_its_line_and_exit_code():
    code, _, error = run("train.py", "--config=configs/nowhere.yaml", "--data_dir=d", "--work_dir=w")
    assert code == 1 and error.startswith("error: ") and "configs/nowhere.yaml" in error
    assert not (PROJECT / "w").exists()
