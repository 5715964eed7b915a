import subprocess
import sys

import numpy as np
import pytest

from refinedet_tf.data import shapes
from refinedet_tf.data.readers.voc import read_voc
from refinedet_tf.errors import DataError
from tests.conftest import PROJECT

SIZE = (128, 160)


def bounds(mask):
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def painted(seed):
    """An image's objects, and which of its pixels differ from the background that it was painted on."""
    background = shapes._background(np.random.default_rng(seed), *SIZE).clip(0, 255).round()
    pixels, objects = shapes.draw_image(np.random.default_rng(seed), SIZE)
    return objects, (pixels != background).any(axis=-1)


def test_a_box_is_tight_around_what_is_drawn():
    single = [(objects[0][1], mask) for objects, mask in map(painted, range(60)) if len(objects) == 1]
    assert len(single) > 5
    for box, mask in single:
        # A pixel of which a shape covers hardly anything may keep its color.
        np.testing.assert_allclose(box, bounds(mask), atol=1)


def test_nothing_is_drawn_outside_the_boxes_and_no_box_reaches_beyond_what_is_drawn():
    for objects, mask in map(painted, range(30)):
        inside = np.zeros(SIZE, bool)
        for _, (xmin, ymin, xmax, ymax) in objects:
            assert 0 <= xmin < xmax <= SIZE[1] and 0 <= ymin < ymax <= SIZE[0]
            inside[ymin:ymax, xmin:xmax] = True
            assert mask[ymin:ymax, xmin:xmax].mean() > 0.2
        assert not (mask & ~inside).any()


def test_two_fifths_of_every_shape_stay_visible(monkeypatch):
    drawn = []
    coverage = shapes._coverage
    monkeypatch.setattr(shapes, "_coverage", lambda *args: drawn.append(coverage(*args)) or drawn[-1])
    hidden_parts = 0
    for seed in range(40):
        drawn.clear()
        _, objects = shapes.draw_image(np.random.default_rng(seed), SIZE)
        candidates = iter(drawn)  # some of them were not painted: find those with the boxes of the objects
        masks = [next(mask > 0.5 for mask in candidates if bounds(mask > 0) == box) for _, box in objects]
        for index, mask in enumerate(masks):
            visible = mask.copy()
            for later in masks[index + 1 :]:
                visible &= ~later
            assert visible.sum() >= 0.6 * mask.sum()
            hidden_parts += visible.sum() < mask.sum()
    assert hidden_parts > 10  # shapes do overlap


def test_shapes_have_their_sizes_and_all_classes_and_counts_occur():
    images = [shapes.draw_image(np.random.default_rng(seed), (256, 256))[1] for seed in range(60)]
    assert {len(objects) for objects in images} == {1, 2, 3, 4, 5}
    assert {name for objects in images for name, _ in objects} == set(shapes.SHAPES)
    sides = [max(box[2] - box[0], box[3] - box[1]) for objects in images for _, box in objects]
    assert 40 <= min(sides) < 52 and 108 < max(sides) <= 122  # the shape's side and up to two pixels it only touches


def test_a_seed_draws_the_same_images_in_every_version():
    backgrounds = [shapes._background(np.random.default_rng(seed), 32, 40) for seed in range(5)]
    expected = [
        [57.11, 199.71, 199.74], [86.19, 92.96, 45.7], [199.9, 31.94, 104.35], [171.34, 139.35, 29.88],
        [160.68, 46.93, 96.35],
    ]  # fmt: skip
    np.testing.assert_allclose([each.mean(axis=(0, 1)) for each in backgrounds], expected, atol=0.01)


def files(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_seed_decides_every_file(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        shapes.draw_shapes(tmp_path / name, {"train": 3, "val": 2}, SIZE, seed)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a") != files(tmp_path / "c")


def test_the_drawn_data_set_reads_without_defects(tmp_path):
    shapes.draw_shapes(tmp_path / "drawn", {"train": 4, "val": 3}, SIZE, seed=1)
    train, val = (read_voc(tmp_path / "drawn", [split], shapes.SHAPES) for split in ("train", "val"))
    assert (len(train), len(val)) == (4, 3)
    assert not train.defects + val.defects
    assert not {example.image_id for example in train.examples} & {example.image_id for example in val.examples}
    _, objects = shapes.draw_image(np.random.default_rng((1, 4)), SIZE)  # the first of val
    boxes = np.float32([box for _, box in objects]) / np.float32([160, 128, 160, 128])
    np.testing.assert_allclose(val.examples[0].boxes, boxes, rtol=1e-6)
    assert [shapes.SHAPES[index] for index in val.examples[0].classes] == [name for name, _ in objects]


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="not an empty folder"):
        shapes.draw_shapes(tmp_path, {"train": 1})
    with pytest.raises(DataError, match="not an empty folder"):
        shapes.draw_shapes(tmp_path / "notes.txt", {"train": 1})
    assert files(tmp_path) == {(tmp_path / "notes.txt").relative_to(tmp_path): b"mine"}


def draw_shapes(*arguments):
    command = [sys.executable, "-m", "refinedet_tf", "draw-shapes", *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)


def test_the_command_draws_what_its_flags_say(tmp_path):
    output = tmp_path / "drawn"
    result = draw_shapes(f"--output_dir={output}", "--train=2", "--val=1", "--seed=5")
    assert result.returncode == 0, result.stderr
    shapes.draw_shapes(tmp_path / "expected", {"train": 2, "val": 1}, seed=5)
    assert files(output) == files(tmp_path / "expected")


def test_by_default_400_images_are_drawn_to_train_on_and_100_to_evaluate_on(tmp_path):
    shapes.draw_shapes(tmp_path / "drawn", image_size=(16, 16))
    lists = [(tmp_path / f"drawn/ImageSets/Main/{name}.txt").read_text().split() for name in ("train", "val")]
    assert [len(names) for names in lists] == [400, 100]
    text = " ".join(draw_shapes("--help").stdout.split())
    assert "in the split train. Default: 400." in text and "in the split val. Default: 100." in text


def test_the_command_fails_with_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = draw_shapes(f"--output_dir={tmp_path}")
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr == f"error: {tmp_path} is not an empty folder; choose a new one.\n"
