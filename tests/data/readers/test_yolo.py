from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refinedet_tf.data.readers.yolo import read_yolo
from refinedet_tf.errors import DataError


def add(root, name, lines=None, size=(50, 40)):
    """Writes an image, and its label file unless `lines` is None."""
    path = root / f"{name}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 30).convert("RGB").save(path)
    if lines is not None:
        parts = ["labels" if part == "images" else part for part in Path(name).parts]
        label = root.joinpath(*parts).with_suffix(".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("\n".join(lines))
    return path


BOX = "1 0.5 0.5 0.4 0.2"
EXPECTED = [[0.3, 0.4, 0.7, 0.6]]


@pytest.mark.parametrize(
    "folder, split, yaml",
    [
        ("images/train", "train", "names: [cat, dog]\ntrain: images/train\nval: images/val\npath: ../datasets/pets"),
        ("images/train", "train", "names: {0: cat, 1: dog}\ntrain: /home/me/pets/images/train"),
        ("train/images", "train", "names: [cat, dog]\nnc: 2\ntrain: ../train/images"),  # Roboflow's
        ("valid/images", "val", "names: [cat, dog]"),
        ("images/val", "val", "names: [cat, dog]\nval: [images/val]"),
        ("train", "train", None),  # labelImg's: text files beside the photos
        ("pictures", "train", "names: [cat, dog]\ntrain: list.txt"),
    ],
)
def test_the_layouts_of_all_tools_are_understood(tmp_path, folder, split, yaml):
    add(tmp_path, f"{folder}/a", [BOX])
    add(tmp_path, f"{folder}/sub/b", ["0 0.25 0.5 0.5 1"])
    if yaml is None:
        (tmp_path / "classes.txt").write_text("cat\ndog\n")
    else:
        (tmp_path / "data.yaml").write_text(yaml)
    (tmp_path / "list.txt").write_text(f"./{folder}/a.jpg\n{folder}/sub/b.jpg\n../outside.jpg\n")
    found = read_yolo(tmp_path, [split], ["dog", "cat"])
    assert [example.image_id for example in found.examples] == [f"{folder}/a", f"{folder}/sub/b"]
    np.testing.assert_allclose(found.examples[0].boxes, EXPECTED, atol=1e-6)
    np.testing.assert_allclose(found.examples[1].boxes, [[0, 0, 0.5, 1]], atol=1e-6)
    assert [example.classes.tolist() for example in found.examples] == [[0], [1]]
    assert not found.defects and not found.notes


def test_without_splits_all_images_are_read(tmp_path):
    add(tmp_path, "images/a", [BOX])
    add(tmp_path, "images/b")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    found = read_yolo(tmp_path, None, None)
    assert found.classes == ["cat", "dog"] and [len(example.boxes) for example in found.examples] == [1, 0]
    assert [note.what for note in found.notes] == ["image without a label file, taken as one without objects"]


def test_polygons_become_their_bounding_boxes(tmp_path):
    add(tmp_path, "images/a", ["0 0.3 0.4 0.7 0.5 0.5 0.6", "1 0.1 0.1 0.2 0.1 0.2 0.3 0.1 0.3"])
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (example,) = read_yolo(tmp_path, None, None).examples
    np.testing.assert_allclose(example.boxes, [[0.3, 0.4, 0.7, 0.6], [0.1, 0.1, 0.2, 0.3]], atol=1e-6)


def test_every_defect_is_named_and_the_rest_survives(tmp_path):
    lines = [BOX, "", "2 0.5 0.5 0.1 0.1", "cat 0.5 0.5 0.1 0.1", "0.5 0.5 0.5 0.1 0.1", "0 0.5 0.5 0.1",
             "0 0.5 0.5 0.1 0.1 0.9", "0 nan 0.5 0.1 0.1", "0 0.5 0.5 0 0.1", "0 0.5 0.5 -0.1 0.1", "0 1.5 0.5 0.1 0.1",
             "0 0.1 0.5 0.4 0.1", "0 0.3 0.4 0.7 inf 0.5 0.6"]  # fmt: skip
    add(tmp_path, "images/a", lines)
    cut = add(tmp_path, "images/b", [BOX])
    cut.write_bytes(cut.read_bytes()[:-100])
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    found = read_yolo(tmp_path, None, None)
    assert [defect.what.split(":")[0] for defect in found.defects] == [
        "class without a name, object dropped",
        "class without a name, object dropped",
        "class without a name, object dropped",
        "neither box nor polygon, object dropped",
        "neither box nor polygon, object dropped",
        "unreadable box, dropped",
        "box without area, dropped",
        "inverted box, dropped",
        "box outside the image, dropped",
        "box partly outside the image, clipped",
        "unreadable box, dropped",
        "unreadable image, skipped",
    ]
    assert "a.txt, line 3" in found.defects[0].where
    (example,) = found.examples
    np.testing.assert_allclose(example.boxes, [*EXPECTED, [0, 0.45, 0.3, 0.55]], atol=1e-6)


@pytest.mark.parametrize(
    "yaml, message",
    [
        ("names: [", "data.yaml is not readable YAML"),
        ("- 1", "lists no class names"),
        ("names: {0: cat, 2: dog}", "without gaps"),
        ("names: [[cat]]", "lists no class names"),
        ("names: [cat, cat]", "several classes of one name"),
        ("names: [cat]", r"no split train.*Folders there: other\. Without splits, set data\.split"),
        ("[" * 3000, "data.yaml is not readable YAML"),
        ("names: [cat]\ntrain: &a [x, x]\nval: [*a, *a]", "data.yaml is not readable YAML: aliases are not supported"),
    ],
)
def test_what_is_no_data_set_is_named(tmp_path, yaml, message):
    (tmp_path / "other").mkdir()
    (tmp_path / "data.yaml").write_text(yaml)
    with pytest.raises(DataError, match=message):
        read_yolo(tmp_path, ["train"], None)


def test_missing_class_names_are_named(tmp_path):
    add(tmp_path, "images/a", [BOX])
    with pytest.raises(DataError, match=r"no class names: it needs data\.yaml or .*classes\.txt"):
        read_yolo(tmp_path, None, None)
    with pytest.raises(DataError, match="There is no folder"):
        read_yolo(tmp_path / "none", None, None)
