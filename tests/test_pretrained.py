"""Detectors that come with the package."""

import zipfile

import h5py
import numpy as np
import pytest
import yaml
from PIL import Image

import refinedet_tf as rd
from refinedet_tf.weights import pretrained
from refinedet_tf.weights.packing import pack_model
from tests.commands import refinedet
from tests.conftest import PROJECT, coarse_noise

NAMES = list(rd.pretrained_models())
ENTRY = {
    "description": "MobileNet 0.25",
    "data": "drawn shapes",
    "ap_11_point": 0.5,
    "ap_area": 0.5,
    "card": "docs/models/tiny.md",
}


@pytest.fixture
def shipped(tiny_model, tmp_path, monkeypatch):
    """A package whose only pretrained model is the tiny one."""
    folder = tmp_path / "pretrained"
    folder.mkdir()
    (folder / "models.yaml").write_text(yaml.safe_dump({"tiny-64": ENTRY}))
    tiny_model.save(tmp_path / "model.keras")
    pack_model(tmp_path / "model.keras", folder / "tiny-64.keras")
    monkeypatch.setattr(pretrained, "_FOLDER", folder)
    return folder / "tiny-64.keras"


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(coarse_noise(np.random.default_rng(2), 1)[0].astype(np.uint8)).save(path)
    return path


def test_a_name_opens_the_file_that_comes_with_the_package(shipped, photo, tmp_path):
    assert rd.pretrained_models() == {"tiny-64": rd.PretrainedModel(name="tiny-64", path=shipped, **ENTRY)}
    expected = rd.Detector.load(shipped).detect(photo)
    assert len(expected) > 0
    for detector in (rd.Detector.load("tiny-64"), rd.Detector.from_model(rd.load_model("tiny-64"))):
        np.testing.assert_array_equal(detector.detect(photo).boxes, expected.boxes)
    code, output, errors = refinedet(
        "detect", "--model=tiny-64", f"--input={photo}", f"--output_dir={tmp_path / 'found'}", "--score_threshold=0"
    )
    assert code == 0, errors
    assert f"{len(expected)} objects in 1 images" in output


def test_an_unknown_name_is_answered_with_the_nearest_one(shipped):
    with pytest.raises(rd.WeightFileError, match=r"no model file 'tiny64' \(did you mean 'tiny-64'\?\)"):
        rd.load_model("tiny64")


def test_training_starts_from_it_with_other_classes(shipped, shapes_dir, tiny_recipe, tmp_path):
    shape = ["--set=model.input_size=[64,128]", "--set=model.separable=true", "--set=model.batch_norm=true"]
    code, _, errors = refinedet(
        "train", f"--config={tiny_recipe}", f"--data_dir={shapes_dir}", f"--work_dir={tmp_path / 'run'}", *shape,
        "--weights=tiny-64", "--set=train.epochs=1", "--set=train.learning_rate=1e-9",
    )  # fmt: skip
    assert code == 0, errors
    trained, start = rd.load_model(tmp_path / "run/model.keras"), rd.load_model(shipped)
    assert len(trained.config.classes) == 4
    kernel, old = (model.get_layer("P4_pointwise").kernel.numpy() for model in (trained, start))
    np.testing.assert_allclose(kernel, old, atol=1e-6)
    # Circle is the first class of both, behind the background, and the box heads know no classes.
    kernel, old = (model.get_layer("odm5_classes_pointwise").kernel.numpy() for model in (trained, start))
    np.testing.assert_allclose(kernel[..., :2], old[..., :2], atol=1e-6)
    assert yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["train"]["weights"] == "tiny-64"


@pytest.mark.parametrize("name", NAMES)
def test_what_ships_is_small_described_and_in_half_precision(name):
    model = rd.pretrained_models()[name]
    assert model.path.stat().st_size <= 16e6
    with zipfile.ZipFile(model.path) as archive, h5py.File(archive.open("model.weights.h5")) as file:
        kinds = set()
        file.visititems(lambda _, item: kinds.add(item.dtype) if isinstance(item, h5py.Dataset) else None)
    assert kinds == {np.dtype(np.float16)}
    card = (PROJECT / model.card).read_text(encoding="utf-8")
    assert name in card and f"{model.ap_11_point:.3f}" in card and f"{model.ap_area:.3f}" in card


def test_nothing_else_lies_in_the_folder():
    assert {path.stem for path in pretrained._FOLDER.glob("*.keras")} == set(NAMES)


@pytest.mark.parametrize(
    ("name", "folder", "split"),
    [("voc-lite0-320", "voc07_416/VOCdevkit/VOC2007", "val"), ("bccd-lite0-320", "bccd/BCCD", "test")],
)
def test_it_detects_as_well_as_its_card_says(name, folder, split):
    data_dir = PROJECT.parent / "shared/data" / folder
    if not data_dir.is_dir():
        pytest.skip(f"needs {data_dir}")
    model, detector = rd.pretrained_models()[name], rd.Detector.load(name)
    result = rd.evaluate(detector, rd.read_data("voc", data_dir, [split], detector.classes))
    # Another processor rounds otherwise, which may turn the order of two close scores.
    assert result.ap_11_point == pytest.approx(model.ap_11_point, abs=0.003)
    assert result.ap_area == pytest.approx(model.ap_area, abs=0.003)
