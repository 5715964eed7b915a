"""Commands that run a model on labeled images read them as the model's training run did."""

import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags

from refinedet_tf.cli import data_flags, evaluate, export_tflite, verify
from refinedet_tf.config import load_config, save_config
from refinedet_tf.errors import DataError
from tests.data.conftest import VocFolder, voc_object

CAR, VAN, DOG = (5, 5, 25, 25), (20, 10, 40, 30), (1, 2, 45, 38)
RECIPE = """
model: {classes: [car], input_size: [64, 64]}
data: {rename: {van: car}, other_classes: ignore, split: {val: 0.5}}
"""


class FindsEverything:
    """A detector that calls every object of the street a car."""

    classes = ("car",)

    def predict(self, images):
        boxes = np.stack([np.float32([DOG, VAN, CAR]) / np.float32([50, 40, 50, 40]) for _ in images])
        scores = np.tile(np.float32([0.9, 0.8, 0.7]), (len(boxes), 1))
        return {"boxes": boxes, "scores": scores, "classes": np.zeros([len(boxes), 3], int),
                "num_detections": np.full(len(boxes), 3)}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """The folder of a run with a model, its recipe and its split lists; `street` has four labeled photos."""
    street = VocFolder(tmp_path / "street")
    for name in "abcd":
        street.add(name, [voc_object("van", VAN), voc_object("dog", DOG), voc_object("car", CAR)])
    folder = tmp_path / "run"
    (folder / "splits").mkdir(parents=True)
    (tmp_path / "my.yaml").write_text(RECIPE)
    save_config(load_config(tmp_path / "my.yaml"), folder / "recipe.yaml")
    (folder / "splits/train.txt").write_text("a\nc\nd\n")
    (folder / "splits/val.txt").write_text("b\n")
    return folder


@pytest.fixture
def command(run, monkeypatch):
    """Parses the flags of a command; the street is the data set."""
    define = {name: getattr(flags, name) for name in vars(flags) if name.startswith("DEFINE_")}

    def parse(module, *arguments):
        values = flags.FlagValues()
        for name, original in define.items():
            monkeypatch.setattr(flags, name, functools.partial(original, flag_values=values))
        module.define_flags()
        assert values([module.__name__, f"--data_dir={run.parent / 'street'}", *map(str, arguments)])
        for each in (module, data_flags):
            monkeypatch.setattr(each, "FLAGS", values)
        return module

    return parse


def test_evaluate_reads_the_data_as_the_run_did(run, command, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("refinedet_tf.inference.detector.Detector.load", lambda path: FindsEverything())
    command(evaluate, f"--model={run / 'best.keras'}", f"--json={tmp_path / 'ap.json'}").main()
    figures = json.loads((tmp_path / "ap.json").read_text())
    assert figures["ap_area"] == 1.0 and figures["voc"]["classes"]["car"]["ground_truths"] == 2  # of photo b
    assert "objects of class 'dog' take no part" in capsys.readouterr().out


def test_a_recipe_or_a_format_can_be_given(run, command):
    elsewhere = run.parent / "model.tflite"
    command(evaluate, f"--model={elsewhere}")
    with pytest.raises(DataError, match="'van'"):
        data_flags.read_labeled_images(str(elsewhere), ["train"], ["car"])
    command(evaluate, f"--model={elsewhere}", f"--config={run.parent / 'my.yaml'}")
    found = data_flags.read_labeled_images(str(elsewhere), ["val"], None)
    assert found.classes == ["car"] and len(found) == 2  # half of the photos, not the list of a run
    command(evaluate, f"--model={run / 'best.keras'}", f"--config={run.parent / 'my.yaml'}")
    assert len(data_flags.read_labeled_images(str(run / "best.keras"), ["val"], None)) == 2
    command(evaluate, f"--model={run}", "--format=coco")
    with pytest.raises(DataError, match="annotations"):
        data_flags.read_labeled_images(str(run), ["val"], ["car"])


def test_verification_and_calibration_read_it_likewise(run, command, monkeypatch):
    model = SimpleNamespace(config=SimpleNamespace(classes=["car"]))
    monkeypatch.setattr("refinedet_tf.weights.load_model", lambda path: model)
    given = []
    monkeypatch.setattr("refinedet_tf.export.export_tflite", lambda *_, calibration, **__: given.append(calibration)
                        or SimpleNamespace(ranges=None))  # fmt: skip
    command(export_tflite, f"--model={run / 'best.keras'}", "--output=x.tflite", "--quantize=int8", "--noverify")
    monkeypatch.setattr(verify, "FLAGS", export_tflite.FLAGS)
    export_tflite.main()
    assert [example.image_id for example in given[0]] == ["a", "c", "d"]
    assert [len(example.ignored) for example in verify.labeled_examples(model)] == [1]
