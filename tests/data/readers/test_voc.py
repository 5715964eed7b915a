import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refinedet_tf.data.readers.voc import read_voc
from refinedet_tf.errors import DataError
from tests.conftest import PROJECT
from tests.data.conftest import VocFolder, voc_object
from tests.photos import encode, png_that_claims, stored

SHARED = PROJECT.parent / "shared/data"
VOC_CLASSES = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data")
def test_bccd_has_its_known_counts_and_its_two_boxes_without_area():
    classes = ["RBC", "WBC", "Platelets"]
    sizes = {split: len(read_voc(SHARED / "bccd/BCCD", [split], classes)) for split in ("train", "val", "test")}
    assert sizes == {"train": 205, "val": 87, "test": 72}
    cells = read_voc(SHARED / "bccd/BCCD", ["train", "val", "test"], classes)
    counts = np.bincount(np.concatenate([example.classes for example in cells.examples]))
    flat = sorted(Path(defect.where.split(",")[0]).stem for defect in cells.defects)
    assert flat == ["BloodImage_00338", "BloodImage_00343"]
    assert {defect.what for defect in cells.defects} == {"box without area, dropped"}
    assert counts.tolist() == [4155 - 2, 372, 361]  # both flat boxes are red blood cells


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data")
@pytest.mark.parametrize("split, images, boxes", [("train", 2500, 7774), ("val", 452, 1281)])
def test_voc_is_read_without_loss(split, images, boxes):
    photos = read_voc(SHARED / "voc07_416/VOCdevkit/VOC2007", [split], VOC_CLASSES)
    assert len(photos) == images
    assert sum(len(example.boxes) for example in photos.examples) == boxes
    assert not photos.defects


def test_boxes_are_divided_by_the_size_of_the_image_without_subtracting_one(voc_folder):
    voc_folder.add("a", [voc_object("cat", (1, 2, 50, 40)), voc_object("dog", (10.5, 0, 20.25, 10), difficult=1)])
    example = read_voc(voc_folder.root, ["train"], ["dog", "cat"]).examples[0]
    assert (example.image_id, example.height, example.width) == ("a", 40, 50)
    expected = [[1 / 50, 2 / 40, 1, 1], [10.5 / 50, 0, 20.25 / 50, 0.25]]
    np.testing.assert_array_equal(example.boxes, np.float32(expected))
    assert example.classes.tolist() == [1, 0]
    assert example.difficult.tolist() == [False, True]
    assert (example.boxes.dtype, example.classes.dtype) == (np.float32, np.int32)


def test_every_defect_is_named_and_the_rest_survives(voc_folder):
    good = voc_object("cat", (10, 10, 20, 20))
    voc_folder.add(
        "boxes",
        [
            good,
            voc_object("cat", (10, 10, 10, 20)),  # no width
            voc_object("cat", (20, 20, 10, 10)),  # corners exchanged
            voc_object("cat", ("x", 10, 20, 20)),
            voc_object("cat", ("nan", 10, 20, 20)),
            "<object><name>cat</name></object>",  # no box at all
            voc_object("cat", (60, 10, 70, 20)),  # to the right of the image
            voc_object("cat", (-10, 10, 25, 20)),  # reaches out by ten pixels
            voc_object("cat", (-1, 10, 51, 20)),  # by one: rounding
        ],
    )
    voc_folder.add("wrong_size", [good], stated_size=(100, 80))
    voc_folder.add("no_size", [good], stated_size=(0, 0))
    voc_folder.add("empty")
    (voc_folder.add("no_image")).unlink()
    cut = voc_folder.add("cut")
    cut.write_bytes(cut.read_bytes()[:-100])
    voc_folder.add("no_picture").write_bytes(b"GIF8 or not")
    voc_folder.add("broken_xml")
    (voc_folder.root / "Annotations/broken_xml.xml").write_text("<annotation><object>")
    voc_folder.add("no_xml")
    (voc_folder.root / "Annotations/no_xml.xml").unlink()
    voc_folder.add("empty", split="train")

    found = read_voc(voc_folder.root, ["train"], ["cat"])

    boxes = {example.image_id: example.boxes for example in found.examples}
    assert list(boxes) == ["boxes", "wrong_size", "no_size", "empty"]
    whole = np.float32([0.2, 0.25, 0.4, 0.5])
    clipped = np.float32([[0, 0.25, 0.5, 0.5], [0, 0.25, 1, 0.5]])
    np.testing.assert_array_equal(boxes["boxes"], [whole, *clipped])
    np.testing.assert_array_equal(boxes["wrong_size"], [whole])
    np.testing.assert_array_equal(boxes["no_size"], [whole])
    assert boxes["empty"].shape == (0, 4)

    where_and_what = [(Path(defect.where).name.split(":")[0], defect.what.split(":")[0]) for defect in found.defects]
    assert where_and_what == [
        ("train.txt", "image listed twice, read once"),
        ("boxes.xml, object 2", "box without area, dropped"),
        ("boxes.xml, object 3", "inverted box, dropped"),
        ("boxes.xml, object 4", "unreadable box, dropped"),
        ("boxes.xml, object 5", "unreadable box, dropped"),
        ("boxes.xml, object 6", "unreadable box, dropped"),
        ("boxes.xml, object 7", "box outside the image, dropped"),
        ("boxes.xml, object 8", "box partly outside the image, clipped"),
        ("wrong_size.xml", "wrong size, the image's own was used"),
        ("no_image", "missing image, skipped"),
        ("cut.jpg", "unreadable image, skipped"),
        ("no_picture.jpg", "unreadable image, skipped"),
        ("broken_xml.xml", "unreadable annotation, image skipped"),
        ("no_xml.xml", "unreadable annotation, image skipped"),
    ]
    summary = found.summary().splitlines()
    assert summary[0] == "4 images (1 without boxes), 5 boxes: cat 5"
    assert sum(int(line.split(" x ")[0]) for line in summary[1:]) == len(found.defects)
    assert any(line.startswith("3 x unreadable box, dropped; first: ") and "object 4" in line for line in summary)


def test_an_image_that_claims_too_many_pixels_is_a_defect_and_is_not_decoded(voc_folder):
    cat = voc_object("cat", (10, 10, 20, 20))
    voc_folder.add("good", [cat])
    gif = bytearray(encode(Image.new("RGB", (50, 40)), "GIF"))
    place = gif.index(b"\x2c\x00\x00\x00\x00" + struct.pack("<HH", 50, 40))
    gif[place + 5 : place + 9] = struct.pack("<HH", 60_000, 50_000)
    for name, content in (("png", png_that_claims(20_000, 20_000)), ("gif", bytes(gif))):
        voc_folder.add(name, [cat]).write_bytes(content)
    found = read_voc(voc_folder.root, ["train"], ["cat"])
    assert [example.image_id for example in found.examples] == ["good"]
    assert [(Path(defect.where).name, defect.what) for defect in found.defects] == [
        (name, "image of more than 36 megapixels, skipped") for name in ("png.jpg", "gif.jpg")
    ]


def test_several_years_below_one_devkit_are_read_as_one_set(tmp_path):
    devkit = tmp_path / "VOCdevkit"
    first, second = VocFolder(devkit / "VOC2007"), VocFolder(devkit / "VOC2012")
    first.add("1", [voc_object("cat", (0, 0, 25, 40))], split="trainval")
    first.add("2", split="test")
    second.add("1", [voc_object("dog", (25, 0, 50, 40))], split="trainval")  # an id of its own in each year
    found = read_voc(devkit, ["VOC2007/trainval", "VOC2012/trainval", "VOC2007/test"], ["cat", "dog"])
    assert [Path(example.image_path).parts[-3] for example in found.examples] == ["VOC2007", "VOC2012", "VOC2007"]
    assert [example.classes.tolist() for example in found.examples] == [[0], [1], []]
    assert not found.defects
    with pytest.raises(DataError, match=r"There is no folder .*VOC2010"):
        read_voc(devkit, ["VOC2010/trainval"], ["cat", "dog"])
    with pytest.raises(DataError, match=r"no list .*VOC2012.*train\.txt; the lists there are: trainval"):
        read_voc(devkit, ["VOC2007/trainval", "VOC2012/train"], ["cat", "dog"])


def test_without_given_classes_those_found_are_taken_in_alphabetical_order(voc_folder):
    voc_folder.add("a", [voc_object("dog", (1, 1, 9, 9)), voc_object("cat", (1, 1, 9, 9))])
    found = read_voc(voc_folder.root, ["train"], None)
    assert found.classes == ["cat", "dog"]
    assert found.examples[0].classes.tolist() == [1, 0]


def test_images_need_not_be_called_jpg(voc_folder):
    voc_folder.add("a", extension=".png")
    voc_folder.add("b", extension=".jpeg")
    voc_folder.add("c", head="<filename>elsewhere.jpg</filename>").rename(voc_folder.root / "JPEGImages/elsewhere.jpg")
    found = read_voc(voc_folder.root, ["train"], ["cat"])
    assert [Path(example.image_path).name for example in found.examples] == ["a.png", "b.jpeg", "elsewhere.jpg"]
    assert not found.defects


@pytest.mark.parametrize("filename", ["../../secret.jpg", "/etc/hostname", "{root}/secret.jpg"])
def test_a_filename_outside_the_data_folder_is_a_defect(voc_folder, filename):
    secret = voc_folder.add("secret")
    secret.rename(voc_folder.root.parent / "secret.jpg")
    filename = filename.format(root=voc_folder.root.parent)
    voc_folder.add("a", head=f"<filename>{filename}</filename>").unlink()
    voc_folder.add("b")
    (voc_folder.root / "ImageSets/Main/list.txt").write_text("a\nb\n../../secret\n")
    found = read_voc(voc_folder.root, ["list"], ["cat"])
    assert [example.image_id for example in found.examples] == ["b"]
    assert [defect.what.split(":")[0] for defect in found.defects] == [
        "image outside the data folder, skipped",
        "<filename> is outside the data folder, image skipped",
    ]


def test_the_image_id_wins_over_a_stale_filename(voc_folder):
    voc_folder.add("a")
    voc_folder.add("b", head="<filename>a.jpg</filename>")
    found = read_voc(voc_folder.root, ["train"], ["cat"])
    assert [Path(example.image_path).name for example in found.examples] == ["a.jpg", "b.jpg"]


def add_photo(folder, image_id, orientation, stated):
    """A photo that shows, upright, 50 x 40 pixels with a red box, annotated in the `stated` frame."""
    upright = Image.new("RGB", (50, 40), "blue")
    upright.paste("red", (5, 8, 25, 20))
    photo = stored(upright, orientation)
    if stated == "stored":
        red = np.asarray(photo)[..., 0] > 128
        rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
        box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    else:
        box = (5, 8, 25, 20)
    size = {"upright": (50, 40), "stored": photo.size, "none": (0, 0), "other": (80, 100)}[stated]
    path = folder.add(image_id, [voc_object("cat", box)], stated_size=size)
    path.write_bytes(encode(photo, "JPEG", orientation))


@pytest.mark.parametrize("stated", ["upright", "stored", "none", "other"])
def test_boxes_are_those_of_the_upright_image_whichever_frame_the_annotation_means(voc_folder, stated):
    # Boxes on the stored pixels can be told by their size only if the orientation exchanges the sides.
    orientations = range(5, 9) if stated == "stored" else range(1, 9)
    for orientation in orientations:
        add_photo(voc_folder, str(orientation), orientation, stated)
    found = read_voc(voc_folder.root, ["train"], ["cat"])
    for example in found.examples:
        assert (example.height, example.width) == (40, 50)
        np.testing.assert_allclose(example.boxes, [[0.1, 0.2, 0.5, 0.5]], atol=1e-6)
    expected = {"other": "wrong size, the image's own was used"}.get(stated)
    assert {defect.what.split(":")[0] for defect in found.defects} == ({expected} if expected else set())
    if stated == "stored":
        turned = "size is that of the stored pixels, boxes were turned with the image"
        assert [note.what.split(":")[0] for note in found.notes] == [turned] * 4
        assert f"4 x {turned}; first: {voc_folder.root / 'Annotations/5.xml'}" in found.summary()
    else:
        assert not found.notes


def test_all_unlisted_classes_are_named_at_once_with_file_and_nearest_name(voc_folder):
    voc_folder.add("a", [voc_object("tvmonitr", (1, 1, 9, 9)), voc_object("person", (1, 1, 9, 9))])
    voc_folder.add("b", [voc_object("zebra", (1, 1, 9, 9)), voc_object("zebra", (1, 1, 9, 9))])
    with pytest.raises(DataError) as raised:
        read_voc(voc_folder.root, ["train"], ["person", "tvmonitor"])
    message = str(raised.value)
    assert re.search(r"'tvmonitr' \(did you mean 'tvmonitor'\?\): 1 objects, the first in \S*a\.xml;", message)
    assert re.search(r"'zebra': 2 objects, the first in \S*b\.xml\.", message)
    assert "Listed are: person, tvmonitor" in message


def test_a_folder_above_the_data_set_is_answered_with_the_right_one(voc_folder):
    voc_folder.add("a")
    with pytest.raises(DataError, match=r"Did you mean .*VOC2007"):
        read_voc(voc_folder.root.parent, ["train"], ["cat"])
    with pytest.raises(DataError, match=r"There is no folder .*VOC2008"):
        read_voc(voc_folder.root.parent / "VOC2008", ["train"], ["cat"])


def test_a_missing_list_is_answered_with_those_that_exist(voc_folder):
    voc_folder.add("a", split="train")
    voc_folder.add("b", split="val")
    with pytest.raises(DataError, match=r"trian\.txt; the lists there are: train, val"):
        read_voc(voc_folder.root, ["trian"], ["cat"])


def test_a_data_set_without_one_usable_image_says_why(voc_folder):
    voc_folder.add("a").unlink()
    with pytest.raises(DataError, match=r"no usable image; the first problem is .*missing image"):
        read_voc(voc_folder.root, ["train"], ["cat"])
