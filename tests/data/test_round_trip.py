"""One data set through all formats: VOC -> YOLO -> COCO -> records -> VOC."""

import json
import shutil

import numpy as np

from refinedet_tf.data.readers.coco import read_coco
from refinedet_tf.data.readers.tfrecords import read_tfrecords
from refinedet_tf.data.readers.voc import read_voc
from refinedet_tf.data.readers.yolo import read_yolo
from refinedet_tf.data.record_writer import write_tfrecords
from tests.data.conftest import VocFolder, voc_object

CLASSES = ["dog", "cat"]


def write_yolo(found, root):
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    (root / "data.yaml").write_text(f"names: {found.classes}\n")
    for example in found.examples:
        shutil.copy(example.image_path, root / "images")
        objects = zip(example.classes, example.boxes.astype(float), strict=True)
        rows = [[label, (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0] for label, (x0, y0, x1, y1) in objects]
        text = "\n".join(" ".join(map(str, row)) for row in rows)
        (root / f"labels/{example.image_id}.txt").write_text(text)


def write_coco(found, root):
    (root / "images").mkdir(parents=True)
    annotations = []
    for index, example in enumerate(found.examples):
        shutil.copy(example.image_path, root / "images")
        for label, (x0, y0, x1, y1) in zip(example.classes.tolist(), example.boxes.astype(float), strict=True):
            box = [x0 * example.width, y0 * example.height, (x1 - x0) * example.width, (y1 - y0) * example.height]
            annotations.append({"id": len(annotations), "image_id": index, "category_id": label, "bbox": box})
    images = [{"id": index, "file_name": example.image_path.rsplit("/", 1)[-1]}
              for index, example in enumerate(found.examples)]  # fmt: skip
    categories = [{"id": label, "name": name} for label, name in enumerate(found.classes)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "result.json").write_text(json.dumps(content))


def write_voc(found, root):
    folder = VocFolder(root)
    for number, example in enumerate(found.examples):
        scale = np.array([example.width, example.height] * 2)
        objects = [voc_object(found.classes[label], (box * scale).tolist())
                   for label, box in zip(example.classes, example.boxes.astype(float), strict=True)]  # fmt: skip
        path = folder.add(f"{number}", objects, size=(example.width, example.height))
        path.write_bytes(example.read_image())


def test_a_data_set_survives_all_formats(voc_folder, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(6):
        corners = np.sort(rng.integers(0, [40, 30], (number, 2, 2)), axis=1)
        corners[:, 1] += 3
        objects = [voc_object(CLASSES[i % 2], box) for i, box in enumerate(corners.reshape(-1, 4))]
        voc_folder.add(f"{number}", objects, size=(50 + number, 40))
    first = read_voc(voc_folder.root, ["train"], CLASSES)
    write_yolo(first, tmp_path / "yolo")
    yolo = read_yolo(tmp_path / "yolo", None, CLASSES)
    write_coco(yolo, tmp_path / "coco")
    coco = read_coco(tmp_path / "coco", None, CLASSES, annotations="result.json", images="images")
    write_tfrecords(coco, str(tmp_path / "records"), "train", 2)
    records = read_tfrecords(tmp_path / "records", ["train"], CLASSES)
    write_voc(records, tmp_path / "again")
    last = read_voc(tmp_path / "again", ["train"], CLASSES)
    assert [example.image_id for example in last.examples] == [example.image_id for example in first.examples]
    for found in (yolo, coco, records, last):
        assert not found.defects and found.classes == CLASSES and len(found) == 6
        for before, after in zip(first.examples, found.examples, strict=True):
            np.testing.assert_allclose(after.boxes, before.boxes, atol=1e-6)
            np.testing.assert_array_equal(after.classes, before.classes)
            assert after.read_image() == before.read_image()
            assert (after.height, after.width) == (before.height, before.width)
