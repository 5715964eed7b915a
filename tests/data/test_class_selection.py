import json

import numpy as np
import pytest
from PIL import Image

from refinedet_tf.config import AugmentationConfig, Config, DataConfig, ModelConfig
from refinedet_tf.data.pipeline import build_dataset
from refinedet_tf.data.readers import read_data
from refinedet_tf.errors import DataError
from refinedet_tf.evaluation.evaluator import evaluate
from refinedet_tf.evaluation.images import ImageDetections
from tests.data.conftest import voc_object

CAR, VAN, DOG = ((5, 5, 25, 25), (20, 10, 40, 30), (1, 2, 45, 38))
PLAIN = AugmentationConfig(
    photometric=False, expand_max_ratio=1, random_crop=False, flip=False, random_interpolation=False
)


@pytest.fixture
def street(voc_folder):
    voc_folder.add("a", [voc_object("van", VAN), voc_object("dog", DOG), voc_object("car", CAR)])
    voc_folder.add("b", [voc_object("dog", DOG)])
    return voc_folder.root


def recipe(classes, **data):
    config = Config(
        model=ModelConfig(classes=classes, input_size=[64, 64]), data=DataConfig(augmentation=PLAIN, **data)
    )
    config.train.batch_size = 1
    config.data.max_boxes = 4
    return config


def relative(box):
    return np.float32(box) / np.float32([50, 40, 50, 40])


def test_classes_merge_and_other_objects_are_ignored(street):
    config = recipe(["car"], rename={"van": "car"}, other_classes="ignore")
    found = read_data(config, street, ["train"])
    first, second = found.examples
    np.testing.assert_array_equal(first.boxes, [relative(VAN), relative(CAR)])
    assert first.classes.tolist() == [0, 0] and second.classes.tolist() == []
    np.testing.assert_array_equal(first.ignored, [relative(DOG)])
    assert "objects of class 'dog' take no part: 2" in [note.what for note in found.notes]
    assert "objects of class 'dog' take no part" in found.summary()
    batches = {int((targets["classes"][0] >= 0).numpy().sum()): targets
               for _, targets in build_dataset(config, found, training=True)}  # fmt: skip
    assert batches[2]["classes"].numpy().tolist() == [[0, 0, -2, -1]]
    np.testing.assert_allclose(batches[2]["boxes"][0, 2], relative(DOG), atol=1e-6)
    assert batches[0]["classes"].numpy().tolist() == [[-2, -1, -1, -1]]


def test_detections_on_ignored_objects_are_neither_right_nor_wrong(street):
    found = read_data(recipe(["car"], rename={"van": "car"}, other_classes="ignore"), street, ["train"])
    size = np.array([50, 40, 50, 40])
    detections = [
        ImageDetections(np.concatenate([[relative(DOG)], example.boxes]) * size,
                        np.linspace(0.9, 0.5, 1 + len(example.boxes)), np.zeros(1 + len(example.boxes), int))
        for example in found.examples
    ]  # fmt: skip
    result = evaluate(detections, found)
    assert result.ap_area == 1.0 and result.coco_ap == pytest.approx(1.0)
    background = read_data(recipe(["car"], rename={"van": "car"}, other_classes="background"), street, ["train"])
    assert evaluate(detections, background).ap_area < 0.7 > evaluate(detections, background).coco_ap


def test_ignored_objects_leave_room_for_real_ones(street):
    config = recipe(["car"], rename={"van": "car"}, other_classes="ignore")
    config.data.max_boxes = 2
    found = read_data(config, street, ["train"])
    classes = [targets["classes"].numpy().tolist() for _, targets in build_dataset(config, found, training=True)]
    assert sorted(classes) == [[[-2, -1]], [[0, 0]]]


def test_other_objects_become_background(street):
    found = read_data(recipe(["car", "van"], other_classes="background"), street, ["train"])
    assert [example.classes.tolist() for example in found.examples] == [[1, 0], []]
    assert all(len(example.ignored) == 0 for example in found.examples)


def test_without_a_rule_other_classes_are_an_error(street):
    with pytest.raises(DataError, match=r"'dog': 2 objects\. Listed are: car"):
        read_data(recipe(["car"], rename={"van": "car"}), street, ["train"])
    with pytest.raises(DataError, match="'dog': 2 objects"):
        read_data(recipe(["car", "van"]), street, ["train"])


def test_a_class_that_no_category_has_is_an_error_even_if_others_are_ignored(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    content = {"categories": [{"id": 1, "name": "van"}], "images": [{"id": 1, "file_name": "a.png"}], "annotations": []}
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = {"format": "coco", "annotations": "a.json", "rename": {"van": "car"}, "other_classes": "ignore"}
    with pytest.raises(DataError, match=r"after data\.rename has no class cars\. .*The file has: car"):
        read_data(recipe(["cars"], **data), tmp_path, ["train"])
    assert read_data(recipe(["car"], **data), tmp_path, ["train"]).classes == ["car"]


def test_evaluation_batches_are_images_in_order(street):
    config = recipe(["car", "van", "dog"])
    found = read_data(config, street, ["train"])
    batches = list(build_dataset(config, found.examples, training=False))
    assert [batch.shape for batch in batches] == [(1, 64, 64, 3)] * 2
