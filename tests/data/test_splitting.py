import dataclasses
from pathlib import Path

import numpy as np
import pytest

from refinedet_tf.config import Config, DataConfig, ModelConfig, SplitConfig
from refinedet_tf.data.examples import Example, ExampleSet
from refinedet_tf.data.readers import read_data, read_training_data, write_split_lists
from refinedet_tf.data.splitting import select_listed, split_examples, write_list
from refinedet_tf.errors import DataError
from tests.data.conftest import voc_object
from tests.data.test_round_trip import write_coco, write_yolo

CAT, DOG = voc_object("cat", (5, 5, 25, 25)), voc_object("dog", (20, 10, 40, 30))


def example(name, classes):
    flags = np.zeros(len(classes), bool)
    return Example(name, f"{name}.jpg", 8, 8, np.tile(np.float32([0, 0, 1, 1]), (len(classes), 1)),
                   np.array(classes, np.int32), flags, flags)  # fmt: skip


def many(count=400):
    """Class 0 in every image but each tenth, class 1 in every fifth, class 2 in 10 of them."""
    rows = [([0] if index % 10 else []) + [1] * (index % 5 == 0) + [2, 2] * (index % 40 == 7) for index in range(count)]
    return ExampleSet([example(f"{index:03}", row) for index, row in enumerate(rows)], ["a", "b", "c"], [])


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_both_parts_have_the_classes_in_the_same_proportion(share):
    whole = many()
    train, val = split_examples(whole, share, seed=0)
    ids = [[each.image_id for each in part.examples] for part in (train, val)]
    assert sorted(ids[0] + ids[1]) == [each.image_id for each in whole.examples]
    assert abs(len(val) / len(whole) - share) < 0.02
    for label in range(3):
        count, in_val = (sum(label in each.classes for each in part.examples) for part in (whole, val))
        assert abs(in_val - share * count) <= 1 + 0.02 * count


def test_the_seed_and_the_ids_decide_the_split_not_the_order_of_files():
    whole = many()
    shuffled = dataclasses.replace(whole, examples=whole.examples[::-1])
    first, again, other = (split_examples(data, 0.2, seed)[1] for data, seed in ((whole, 1), (shuffled, 1), (whole, 2)))
    names = [{each.image_id for each in part.examples} for part in (first, again, other)]
    assert names[0] == names[1] != names[2]


def test_both_parts_have_an_image_and_one_cannot_be_divided():
    two = many(2)
    for share in (0.01, 0.99):
        assert [len(part) for part in split_examples(two, share, seed=0)] == [1, 1]
    with pytest.raises(DataError, match="One image cannot be divided"):
        split_examples(many(1), 0.5, seed=0)


def test_a_list_selects_in_its_order_and_names_what_is_missing(tmp_path):
    whole = many(20)
    write_list(tmp_path / "lists/val.txt", dataclasses.replace(whole, examples=whole.examples[4:1:-1]))
    with open(tmp_path / "lists/val.txt", "a") as file:
        file.write("gone\n\n004\n")
    found = select_listed(whole, tmp_path / "lists/val.txt")
    assert [each.image_id for each in found.examples] == ["004", "003", "002"]
    assert [defect.what for defect in found.defects] == ["listed image is missing or unreadable, skipped: gone"]
    (tmp_path / "none.txt").write_text("x\ny")
    with pytest.raises(DataError, match=r"none of the 2 images that .*none\.txt lists"):
        select_listed(whole, tmp_path / "none.txt")


@pytest.fixture
def photos(voc_folder):
    """Ten photos without lists, of which three have dogs."""
    for index in range(10):
        voc_folder.add(f"{index}", [CAT, DOG] if index < 3 else [CAT])
    (voc_folder.root / "ImageSets/Main/train.txt").unlink()
    return voc_folder


def config(**data):
    return Config(model=ModelConfig(classes=["cat", "dog"]), data=DataConfig(**data))


def ids(found):
    return [each.image_id for each in found.examples]


def test_a_run_keeps_its_split_when_photos_are_added(photos, tmp_path):
    recipe, lists = config(split=SplitConfig(0.3, 0)), tmp_path / "work/splits"
    train, val, parts = read_training_data(recipe, photos.root, lists)
    assert sorted(ids(train) + ids(val)) == [str(index) for index in range(10)] and len(val) == 3
    assert sum(1 in each.classes for each in val.examples) == 1
    assert not lists.exists()
    write_split_lists(lists, parts)
    photos.add("0a", [DOG])
    again = read_training_data(recipe, photos.root, lists)
    assert (ids(again[0]), ids(again[1])) == (ids(train), ids(val))
    # The lists are splits for every command; without them the same recipe makes the same parts of the same photos.
    assert ids(read_data("voc", photos.root, [str(lists / "val.txt")])) == ids(val)
    for name in ("Annotations/0a.xml", "JPEGImages/0a.jpg"):
        (photos.root / name).unlink()
    assert ids(read_data(recipe, photos.root, ["val"])) == ids(val)
    assert len(read_data(recipe, photos.root, ["train", "val"])) == 10
    with pytest.raises(DataError, match="no split test; there are: train, val"):
        read_data(recipe, photos.root, ["test"])


def test_photos_with_their_xml_files_beside_them_need_no_layout(photos):
    flat = photos.root.parent / "flat"
    (flat / "sub").mkdir(parents=True)
    for path in [*photos.root.glob("JPEGImages/*"), *photos.root.glob("Annotations/*")]:
        path.rename(flat / ("sub" if path.stem > "4" else ".") / path.name)
    train, val, _ = read_training_data(config(split=SplitConfig(0.2)), flat, flat / "none")
    assert sorted(ids(train) + ids(val)) == [*"01234", *(f"sub/{index}" for index in range(5, 10))]
    assert not train.defects


def test_text_files_beside_photos_and_one_coco_json_are_divided_too(photos, tmp_path):
    whole = read_data(config(split=SplitConfig(0.3)), photos.root, ["train", "val"])
    write_yolo(whole, tmp_path / "yolo")
    write_coco(whole, tmp_path / "coco")
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in [*(tmp_path / "yolo/images").iterdir(), *(tmp_path / "yolo/labels").iterdir()]:
        path.rename(flat / path.name)
    (flat / "classes.txt").write_text("cat\ndog\n")
    coco = {"annotations": "result.json", "images": "images"}
    for root, data in ((flat, {"format": "yolo"}), (tmp_path / "coco", {"format": "coco", **coco})):
        train, val, _ = read_training_data(config(split=SplitConfig(0.3), **data), root, tmp_path / "none")
        assert len(val) == 3 and len({*ids(train), *ids(val)}) == 10 and not train.defects
        assert sum(1 in each.classes for each in val.examples) == 1  # of the three photos with dogs


def test_without_a_split_the_layout_says_how_to_get_one(photos):
    (photos.root / "ImageSets/Main").rmdir()
    with pytest.raises(DataError, match=r"no ImageSets/Main\. To divide images without lists, set data\.split"):
        read_data("voc", photos.root, ["train"])


def test_empty_validation_splits_give_no_validation_set(photos):
    (photos.root / "ImageSets/Main/train.txt").write_text("1\n2")
    train, val, parts = read_training_data(config(val_splits=[]), photos.root, Path("none"))
    assert (ids(train), val, parts) == (["1", "2"], None, {})
