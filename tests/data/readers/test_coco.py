import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refinedet_tf.config import load_config
from refinedet_tf.data.pipeline import count_dropped_boxes
from refinedet_tf.data.readers.coco import read_coco
from refinedet_tf.errors import DataError
from refinedet_tf.evaluation.coco import coco_average_precision
from refinedet_tf.evaluation.images import ImageDetections, examples_to_truths
from refinedet_tf.evaluation.voc import voc_average_precision
from tests.conftest import PROJECT

SHARED = PROJECT.parent / "shared/data/coco128"


class CocoFolder:
    """A data set that a test fills; category ids have gaps and are out of order."""

    def __init__(self, root, split="train"):
        self.root, self.split = root, split
        self.content = {
            "categories": [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 20, "name": "bird"}],
            "images": [],
            "annotations": [],
        }
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / split).mkdir()

    def add(self, image_id, objects=(), size=(50, 40), **stated):
        """Writes an image of noise; `objects` are (category id, [x, y, width, height], further keys)."""
        pixels = np.random.default_rng(image_id).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        path = self.root / self.split / f"{image_id:03}.jpg"
        Image.fromarray(pixels).save(path)
        image = {"id": image_id, "file_name": path.name, "width": size[0], "height": size[1], **stated}
        self.content["images"].append(image)
        for category_id, bbox, *more in objects:
            self.annotate(image_id=image_id, category_id=category_id, bbox=bbox, **(more[0] if more else {}))
        return path

    def annotate(self, **annotation):
        annotations = self.content["annotations"]
        annotations.append({"id": len(annotations) + 1, "iscrowd": 0, **annotation})

    def read(self, classes, splits=None):
        path = self.root / "annotations" / f"instances_{self.split}.json"
        path.write_text(json.dumps(self.content))
        return read_coco(self.root, splits or [self.split], classes)


@pytest.fixture
def coco_folder(tmp_path):
    return CocoFolder(tmp_path / "coco")


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data")
def test_coco128_is_read_without_loss():
    found = read_coco(SHARED, ["train2017"], None)
    content = json.loads((SHARED / "annotations/instances_train2017.json").read_text())
    assert len(found) == len(content["images"]) == 128
    assert len(found.classes) == 80 and (found.classes[0], found.classes[-1]) == ("person", "toothbrush")
    assert sum(len(example.boxes) for example in found.examples) == len(content["annotations"]) == 939
    assert sum(example.crowd.sum() for example in found.examples) == 10
    assert sum(len(example.boxes) == 0 for example in found.examples) == 2
    assert not found.defects
    names = {category["id"]: category["name"] for category in content["categories"]}
    expected = sorted((str(row["image_id"]), names[row["category_id"]]) for row in content["annotations"])
    read = [(example.image_id, found.classes[index]) for example in found.examples for index in example.classes]
    assert sorted(read) == expected
    recipe = load_config("refinedet320_lite0_coco128")
    assert recipe.model.classes == found.classes
    assert count_dropped_boxes(found.examples, recipe.data.max_boxes) == 0


def test_boxes_are_corners_relative_to_the_image_and_names_decide_the_class(coco_folder):
    coco_folder.add(7, [(9, [5, 4, 20, 10]), (3, [0, 0, 50, 40], {"iscrowd": 1})])
    coco_folder.add(8)
    found = coco_folder.read(["cat", "dog", "bird"])
    first, empty = found.examples
    np.testing.assert_array_equal(first.boxes, np.float32([[0.1, 0.1, 0.5, 0.35], [0, 0, 1, 1]]))
    assert (first.image_id, first.height, first.width) == ("7", 40, 50)
    assert first.classes.tolist() == [1, 0]
    assert first.crowd.tolist() == [False, True] and first.difficult.tolist() == [False, False]
    assert empty.boxes.shape == (0, 4) and not found.defects


def test_without_given_classes_categories_count_by_ascending_id(coco_folder):
    coco_folder.add(1, [(20, [1, 1, 5, 5]), (3, [1, 1, 5, 5])])
    found = coco_folder.read(None)
    assert found.classes == ["cat", "dog", "bird"]
    assert found.examples[0].classes.tolist() == [2, 0]


def test_classes_that_are_no_categories_are_answered_with_both_lists(coco_folder):
    coco_folder.add(1, [(9, [1, 1, 5, 5])])
    with pytest.raises(
        DataError,
        match=r"instances_train\.json has no class hund\. model\.classes has: cat, hund\. "
        r"The file has: cat, dog, bird",
    ):
        coco_folder.read(["cat", "hund"])
    with pytest.raises(DataError, match=r"'dog': 1 objects, the first in .*Listed are: cat, bird"):
        coco_folder.read(["cat", "bird"])
    assert coco_folder.read(["dog"]).classes == ["dog"]  # the others have no objects


def test_every_defect_is_named_and_the_rest_survives(coco_folder):
    coco_folder.add(
        1,
        [
            (3, [10, 10, 10, 10]),
            (3, [10, 10, 0, 10]),
            (3, [10, 10, -5, 10]),
            (3, [10, 10, "x", 10]),
            (3, []),
            (3, [60, 10, 10, 10]),
            (3, [-10, 10, 35, 10]),
            (4, [10, 10, 10, 10]),
        ],
    )
    coco_folder.annotate(image_id=1, category_id=3)  # no box
    coco_folder.annotate(image_id=99, category_id=3, bbox=[1, 1, 5, 5])
    coco_folder.add(2, [(3, [10, 10, 10, 10])], width=100, height=80)
    coco_folder.add(3).unlink()
    cut = coco_folder.add(4)
    cut.write_bytes(cut.read_bytes()[:-100])
    coco_folder.content["images"].append(dict(coco_folder.content["images"][0]))

    found = coco_folder.read(["cat"])

    assert [example.image_id for example in found.examples] == ["1", "2"]
    np.testing.assert_array_equal(found.examples[0].boxes, np.float32([[0.2, 0.25, 0.4, 0.5], [0, 0.25, 0.5, 0.5]]))
    np.testing.assert_array_equal(found.examples[1].boxes, np.float32([[0.2, 0.25, 0.4, 0.5]]))
    assert [defect.what.split(":")[0] for defect in found.defects] == [
        "repeated image ids, the last entry was used",
        "unknown category id, object dropped",
        "annotation of an unknown image, dropped",
        "box without area, dropped",
        "inverted box, dropped",
        "unreadable box, dropped",
        "unreadable box, dropped",
        "box outside the image, dropped",
        "box partly outside the image, clipped",
        "unreadable box, dropped",
        "wrong size, the image's own was used",
        "missing image, skipped",
        "unreadable image, skipped",
    ]
    assert "annotation 2 of 001.jpg: cat (10, 10, 10, 20)" in found.defects[3].where


def test_a_layout_is_given_by_name(coco_folder):
    with pytest.raises(TypeError, match="positional argument"):
        read_coco(coco_folder.root, None, None, "annotations/instances_train.json")


def test_several_splits_are_read_as_one_set(coco_folder):
    coco_folder.add(1, [(3, [1, 1, 5, 5])])
    coco_folder.read(["cat"])
    other = CocoFolder(coco_folder.root, "val")
    other.add(2, [(9, [1, 1, 5, 5])])
    found = other.read(None, ["train", "val"])
    assert [example.classes.tolist() for example in found.examples] == [[0], [1]]
    assert Path(found.examples[1].image_path).parent.name == "val"


def export(root, json_path, image_folder, names=("a.jpg", "sub/b.png")):
    """Files as a labeling tool exports them."""
    for name in names:
        path = root / image_folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.effect_noise((50, 40), 60)
        (image.convert("P") if path.suffix == ".png" else image).save(path)
    content = {
        "categories": [{"id": 0, "name": "cat"}],
        "images": [{"id": f"image {index}", "file_name": name} for index, name in enumerate([*names, "gone.jpg"])],
        "annotations": [{"image_id": "image 1", "category_id": 0, "bbox": [5, 4, 20, 10]}],
    }
    (root / json_path).parent.mkdir(parents=True, exist_ok=True)
    (root / json_path).write_text(json.dumps(content))
    return content


@pytest.mark.parametrize(
    "json_path, image_folder, annotations, images",
    [
        ("result.json", "images", "result.json", "images"),
        ("train/_annotations.coco.json", "train", "SPLIT/_annotations.coco.json", None),  # Roboflow's
        ("exports/result.json", ".", "exports/result.json", None),
    ],
)
def test_json_files_and_images_may_be_anywhere(tmp_path, json_path, image_folder, annotations, images):
    export(tmp_path, json_path, image_folder)
    found = read_coco(tmp_path, ["train"], None, annotations=annotations, images=images)
    assert [example.image_id for example in found.examples] == ["image 0", "image 1"]
    np.testing.assert_array_equal(found.examples[1].boxes, np.float32([[0.1, 0.1, 0.5, 0.35]]))
    assert [defect.what for defect in found.defects] == ["missing image, skipped"]
    assert found.defects[0].where.endswith("gone.jpg")


def test_files_outside_the_image_folder_are_not_opened(tmp_path):
    content = export(tmp_path, "data/a.json", "data")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    for name in ("../secret.png", str(tmp_path / "secret.png"), "..\\secret.png"):
        content["images"].append({"id": name, "file_name": name})
    (tmp_path / "data/a.json").write_text(json.dumps(content))
    found = read_coco(tmp_path / "data", None, None, annotations="a.json")
    assert len(found) == 2
    kinds = [defect.what.split(":")[0] for defect in found.defects]
    assert kinds[:3] == ["missing image, skipped", *["file name is outside the image folder, skipped"] * 2]


def test_missing_exports_are_named(tmp_path):
    with pytest.raises(DataError, match=r"There is no .*a\.json \(data\.annotations\)"):
        read_coco(tmp_path, ["train"], None, annotations="a.json")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(DataError, match=r"There is no folder .*photos \(data\.images\)"):
        read_coco(tmp_path, ["train"], None, annotations="a.json", images="photos")
    with pytest.raises(DataError, match=r"has 0 instances_\*\.json; name one as data\.annotations"):
        read_coco(tmp_path, None, None)


@pytest.mark.parametrize("text", ["no json", "[]", '{"images": []}', '{"categories": [1]}', "[" * 100_000])
def test_what_is_no_instances_file_is_named(coco_folder, text):
    (coco_folder.root / "annotations/instances_train.json").write_text(text)
    with pytest.raises(DataError, match=r"instances_train\.json is not an instances JSON of COCO"):
        read_coco(coco_folder.root, ["train"], None)


def test_missing_files_and_folders_are_answered_with_what_there_is(coco_folder):
    coco_folder.add(1)
    coco_folder.read(None)
    with pytest.raises(DataError, match=r"no .*instances_val\.json; splits in that folder: train"):
        read_coco(coco_folder.root, ["val"], None)
    (coco_folder.root / "train").rename(coco_folder.root / "pictures")
    with pytest.raises(DataError, match=r"must be in .*train or .*images/train"):
        read_coco(coco_folder.root, ["train"], None)


def test_crowds_are_ignored_in_evaluation(coco_folder):
    coco_folder.add(1, [(3, [0, 0, 10, 10]), (3, [20, 0, 30, 40], {"iscrowd": 1})])
    found = coco_folder.read(["cat"])
    # The object, a box inside the crowd, and the crowd itself, the latter two with better scores.
    boxes = np.array([[0, 0, 10, 10], [25, 5, 35, 15], [20, 0, 50, 40]], float)
    detections = [ImageDetections(boxes, np.array([0.5, 0.8, 0.9]), np.zeros(3, int))]
    truths = examples_to_truths(found.examples)
    assert coco_average_precision(detections, truths, ["cat"]).metrics["AP"] == pytest.approx(1.0)
    whole = [ImageDetections(boxes[::2], np.array([0.5, 0.9]), np.zeros(2, int))]
    assert voc_average_precision(whole, truths, ["cat"]).mean_ap_area == pytest.approx(1.0)


def test_stated_areas_decide_which_objects_are_small(coco_folder):
    # Boxes of 40 x 40 pixels, above 32 x 32; the first states the area of a thin outline, the second none.
    coco_folder.add(1, [(3, [0, 0, 40, 40], {"area": 300.5}), (3, [50, 0, 40, 40], {"area": None})], size=(100, 60))
    found = coco_folder.read(["cat"])
    np.testing.assert_array_equal(found.examples[0].areas, [300.5, np.nan])
    truths = examples_to_truths(found.examples)
    np.testing.assert_allclose(truths[0].areas, [300.5, 1600])
    detections = [ImageDetections(truths[0].boxes[:1], np.ones(1), np.zeros(1, int))]
    metrics = coco_average_precision(detections, truths, ["cat"]).metrics
    assert (metrics["AR_small"], metrics["AR_medium"]) == (pytest.approx(1.0), 0.0)
