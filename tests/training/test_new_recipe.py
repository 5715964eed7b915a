import numpy as np
import pytest

from refinedet_tf.config import load_config
from refinedet_tf.errors import DataError
from refinedet_tf.model import build_model
from refinedet_tf.training.new_recipe import PAPER_SIZES, _nearest_overlap, coverage, fit_anchors, new_recipe
from refinedet_tf.weights import load_weights


def random_boxes(rng, side, ratio, count=300):
    """Boxes of about one size in pixels of a 320 x 320 input."""
    width, height = side * np.sqrt(ratio), side / np.sqrt(ratio)
    sides = np.stack([width, height], axis=-1) * rng.uniform(0.9, 1.1, (count, 2))
    corners = rng.uniform(0, 1, (count, 2)) * (320 - sides)
    return (np.concatenate([corners, corners + sides], axis=1) / 320).astype(np.float32)


def test_anchors_reach_boxes_that_the_papers_do_not():
    rng = np.random.default_rng(0)
    boxes = np.concatenate([random_boxes(rng, side, ratio) for side, ratio in ((20, 0.75), (48, 1.0), (180, 1.5))])
    assert coverage(boxes, 320, PAPER_SIZES) < 0.95
    assert coverage(boxes, 320, fit_anchors(boxes, 320)) >= 0.95


@pytest.mark.parametrize("stride, side", [(8, 32), (64, 24)])
def test_the_overlap_is_that_with_the_three_anchors_of_the_nearest_cell(stride, side):
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 300, (60, 2))
    boxes = np.concatenate([corners, np.minimum(corners + rng.uniform(1, 60, (60, 2)), 320)], axis=1)
    expected = []
    for left, top, right, bottom in boxes:
        x, y = ((value // stride + 0.5) * stride for value in ((left + right) / 2, (top + bottom) / 2))
        overlaps = []
        for ratio in (1, 2, 0.5):
            width, height = side * ratio**0.5, side / ratio**0.5
            columns = max(min(right, x + width / 2) - max(left, x - width / 2), 0)
            rows = max(min(bottom, y + height / 2) - max(top, y - height / 2), 0)
            overlaps.append(columns * rows / ((right - left) * (bottom - top) + side**2 - columns * rows))
        expected.append(max(overlaps))
    assert (min(expected) == 0) == (stride == 64)
    np.testing.assert_allclose(_nearest_overlap(boxes, stride, side, 320), expected, atol=1e-9)


def test_the_papers_anchors_stay_where_they_reach():
    boxes = random_boxes(np.random.default_rng(0), 64, 1.0)
    assert fit_anchors(boxes, 320) == PAPER_SIZES


def test_a_recipe_fits_its_data_and_can_be_loaded(shapes_dir, tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(new_recipe("voc", shapes_dir, ["train"], ["val"], gpus=0))
    config = load_config(path)
    assert sorted(config.model.classes) == ["circle", "square", "star", "triangle"]
    assert (config.train.batch_size, config.train.epochs) == (8, 300)
    assert config.data.train_splits == ["train"] and config.data.max_boxes >= 10
    on_gpus = load_config(path, ["train.batch_size=64"])
    path.write_text(new_recipe("voc", shapes_dir, ["train"], ["val"], gpus=4))
    assert load_config(path).train.batch_size == 8 < on_gpus.train.batch_size  # there are eight images
    assert load_config(path).model.backbone.name == "resnet101"


def test_on_cpus_everything_but_the_classes_starts_from_a_pretrained_detector(shapes_dir, tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(new_recipe("voc", shapes_dir, ["train"], ["val"], gpus=0))
    config = load_config(path)
    kept = load_weights(build_model(config), config.train.weights).kept
    assert sorted(kept) == [f"odm{level}_classes/{kind}" for level in range(3, 7) for kind in ("bias", "kernel")]


def test_missing_splits_are_named(shapes_dir):
    with pytest.raises(DataError, match="test"):
        new_recipe("voc", shapes_dir, ["train"], ["test"], gpus=0)
