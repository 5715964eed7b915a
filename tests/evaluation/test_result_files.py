"""Detections as files, written, read again, and read by pycocotools."""

import dataclasses
import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from refinedet_tf.data.examples import Example, ExampleSet
from refinedet_tf.errors import DataError
from refinedet_tf.evaluation.evaluator import evaluate
from refinedet_tf.evaluation.images import ImageDetections
from refinedet_tf.evaluation.result_files import read_detections, write_coco_results, write_voc_results

NAMES = ["cat", "dog"]


def example(image_id, path, height=100, width=200):
    boxes = np.array([[0.1, 0.1, 0.5, 0.6], [0.6, 0.2, 0.9, 0.9]], np.float32)
    flags = np.zeros(2, bool)
    return Example(image_id, path, height, width, boxes, np.array([0, 1], np.int32), flags, flags)


DATA = ExampleSet([example("000017", "a/x.jpg"), example("4", "a/y.jpg"), example("9", "a/z.jpg")], NAMES, [], [18, 44])
DETECTIONS = [
    ImageDetections(np.array([[20.25, 10, 100, 60], [-3, 20, 210, 90]]), np.array([0.75, 0.5]), np.array([0, 1])),
    ImageDetections(np.zeros([0, 4]), np.zeros(0), np.zeros(0, int)),
    ImageDetections(np.array([[120, 20, 180, 90.5]]), np.array([0.125]), np.array([1])),
]


def test_voc_lines_count_from_1_with_six_decimals(tmp_path):
    write_voc_results(tmp_path / "results", DETECTIONS, DATA)
    assert (tmp_path / "results" / "comp4_det_test_cat.txt").read_text() == (
        "000017 0.750000 21.250000 11.000000 101.000000 61.000000\n"
    )
    assert (tmp_path / "results" / "comp4_det_test_dog.txt").read_text() == (
        "000017 0.500000 1.000000 21.000000 200.000000 91.000000\n"
        "9 0.125000 121.000000 21.000000 181.000000 91.500000\n"
    )  # fmt: skip


def test_coco_results_have_the_ids_of_the_data_and_come_back(tmp_path):
    path = tmp_path / "found.json"
    write_coco_results(path, DETECTIONS, DATA)
    results = json.loads(path.read_text())
    assert results[0] == {"image_id": 17, "category_id": 18, "bbox": [20.25, 10.0, 79.75, 50.0], "score": 0.75}
    assert results[1] == {"image_id": 17, "category_id": 44, "bbox": [0.0, 20.0, 200.0, 70.0], "score": 0.5}
    truth = COCO()
    truth.dataset = {"images": [{"id": 17}, {"id": 4}, {"id": 9}], "annotations": [],
                     "categories": [{"id": 18}, {"id": 44}]}  # fmt: skip
    truth.createIndex()
    assert len(truth.loadRes(str(path)).anns) == 3
    again = read_detections(path, DATA)
    assert [len(image.scores) for image in again] == [2, 0, 1]
    np.testing.assert_array_equal(again[2].boxes, DETECTIONS[2].boxes)
    assert evaluate(again, DATA).as_dict() == evaluate(DETECTIONS, DATA).as_dict()


def test_data_without_ids_number_categories_from_1_and_keep_names_of_images(tmp_path):
    data = ExampleSet([dataclasses.replace(DATA.examples[0], image_id="img_1")], NAMES, [])
    write_coco_results(tmp_path / "found.json", DETECTIONS[:1], data)
    results = json.loads((tmp_path / "found.json").read_text())
    assert [(entry["image_id"], entry["category_id"]) for entry in results] == [("img_1", 1), ("img_1", 2)]
    np.testing.assert_array_equal(read_detections(tmp_path / "found.json", data)[0].classes, [0, 1])


def test_the_order_of_the_classes_does_not_matter(tmp_path):
    write_coco_results(tmp_path / "found.json", DETECTIONS, ExampleSet(DATA.examples, ["dog", "cat"], []))
    again = read_detections(tmp_path / "found.json", ExampleSet(DATA.examples, ["cat", "dog"], []))
    np.testing.assert_array_equal(again[0].classes, [1, 0])


def own_file(tmp_path, images, detections=()):
    content = {"images": [{"file": name, "detections": list(detections)} for name in images]}
    path = tmp_path / "detections.json"
    path.write_text(json.dumps(content))
    return path


def test_detections_of_the_detect_command_are_found_by_file(tmp_path):
    rows = [{"class": "cat", "score": 0.25, "box": [1, 2, 3, 4]}, {"class": "dog", "score": 0.5, "box": [5, 6, 7, 8]}]
    path = own_file(tmp_path, ["b/z.png", "b/y.png", "b/other.png", "b/x.png"], rows)
    for found in read_detections(path, DATA):
        np.testing.assert_array_equal(found.boxes, [[5, 6, 7, 8], [1, 2, 3, 4]])
        np.testing.assert_array_equal(found.classes, [1, 0])


def test_files_that_do_not_belong_to_the_data_are_refused(tmp_path):
    with pytest.raises(DataError, match="lacks 1 of the 3 images, 9 for one"):
        read_detections(own_file(tmp_path, ["x.png", "y.png"]), DATA)
    with pytest.raises(DataError, match="image 'v', which is not among the 3 images"):
        read_detections(own_file(tmp_path, ["v.png"]), DATA)
    with pytest.raises(DataError, match="Class 'cow' of the detections"):
        read_detections(own_file(tmp_path, ["x.png"], [{"class": "cow", "score": 1, "box": [0, 0, 1, 1]}]), DATA)
    with pytest.raises(DataError, match="neither a detections"):
        read_detections(own_file(tmp_path, ["x.png"], [{"class": "cat", "score": 1}]), DATA)
    path = tmp_path / "coco.json"
    result = {"image_id": 17, "category_id": 18, "bbox": [0, 0, 1, 1], "score": 0.5}
    for change, message in (
        ({"image_id": 5}, "image '5', which is not among"),
        ({"category_id": 1}, r"Category id 1 of the detections is not in the data, which have \[18, 44\]"),
        ({"bbox": [0, 0, 1]}, "nor COCO's result JSON"),
        ({"score": float("nan")}, "not a finite number"),
    ):
        path.write_text(json.dumps([{**result, **change}]))
        with pytest.raises(DataError, match=message):
            read_detections(path, DATA)
    path.write_text("no JSON")
    with pytest.raises(DataError, match="is neither"):
        read_detections(path, DATA)
    repeated = ExampleSet([*DATA.examples, example("18", "b/x.jpg")], NAMES, [])
    with pytest.raises(DataError, match="Two images are named x"):
        read_detections(own_file(tmp_path, ["x.png"]), repeated)
