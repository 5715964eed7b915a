import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from refinedet_tf.config import AugmentationConfig, KerasCvLayerConfig
from refinedet_tf.data.augmentation.kerascv import build_layers
from refinedet_tf.data.pipeline import training_pipeline
from refinedet_tf.data.readers.voc import read_voc
from refinedet_tf.data.shapes import SHAPES, draw_shapes
from refinedet_tf.errors import ConfigError
from refinedet_tf.ops.resizing import Resizing

keras_cv = pytest.importorskip("keras_cv")
SIZE = (64, 96)


def batch_of_marks(count=4):
    """Black images, each with one to three white rectangles that are its boxes; class by place."""
    rng = np.random.default_rng(2)
    images = np.zeros((count, *SIZE, 3), np.float32)
    boxes, classes = np.full((count, 6, 4), -1, np.float32), np.full((count, 6), -1, np.int32)
    for index in range(count):
        for place in range(1 + index % 3):
            left, top = rng.integers(0, 60), 1 + 20 * place
            images[index, top : top + 16, left : left + 30] = 255
            boxes[index, place] = np.float32([left / 96, top / 64, (left + 30) / 96, (top + 16) / 64])
            classes[index, place] = place
    return tf.constant(images), {"boxes": tf.constant(boxes), "classes": tf.constant(classes)}


@pytest.mark.parametrize(
    ("name", "arguments", "margin"),
    [
        ("Mosaic", {}, 2),  # pixels by which edges blur
        ("JitteredResize", {"scale_factor": (0.8, 1.25)}, 2),
        ("RandomFlip", {"rate": 1.0}, 0),
        ("MixUp", {"alpha": 40.0}, 0),  # shares near a half: with less, one image may fade below what counts as bright
    ],
)
def test_pixels_and_boxes_move_together(name, arguments, margin):
    """The bright pixels lie in the boxes, which contain nothing else."""
    images, targets = batch_of_marks()
    layers = build_layers([KerasCvLayerConfig(name, arguments)], SIZE, seed=1)
    dataset = tf.data.Dataset.from_tensors((images, targets)).repeat(3).map(layers)
    moved = 0
    for changed, objects in dataset:
        boxes, classes = objects["boxes"].numpy(), objects["classes"].numpy()
        assert (boxes.shape, classes.shape, classes.dtype) == ((4, 6, 4), (4, 6), np.int32)
        real = classes >= 0
        assert (np.diff(real.astype(int), axis=1) <= 0).all()  # padding comes last
        assert (boxes[~real] == -1).all() and (boxes[real] >= 0).all() and (boxes[real] <= 1).all()
        for image, found in zip(changed.numpy(), (boxes[index][real[index]] for index in range(4)), strict=True):
            around, inside = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
            for xmin, ymin, xmax, ymax in np.round(found * [96, 64, 96, 64]).astype(int):
                around[max(ymin - margin, 0) : ymax + margin, max(xmin - margin, 0) : xmax + margin] = True
                inside[ymin + margin : max(ymax - margin, 0), xmin + margin : max(xmax - margin, 0)] = True
            bright = image[..., 0] > 1
            assert not (bright & ~around).any() and not (inside & ~bright).any() and bright.any()
        moved += not np.array_equal(changed, images)
    assert moved == 3


@pytest.mark.parametrize("name", ["RandAugment", "RandomBrightness", "RandomHue"])
def test_layers_of_colour_leave_boxes_where_they_are(name):
    images, targets = batch_of_marks()
    images += tf.constant([20.0, 60.0, 0.0])
    arguments = {} if name == "RandAugment" else {"factor": 0.4}
    layers = build_layers([KerasCvLayerConfig(name, arguments)], SIZE, seed=1)
    changed, objects = next(iter(tf.data.Dataset.from_tensors((images, targets)).map(layers)))
    np.testing.assert_array_equal(objects["boxes"], targets["boxes"])
    np.testing.assert_array_equal(objects["classes"], targets["classes"])
    assert not np.array_equal(changed, images) and changed.numpy().min() >= 0 and changed.numpy().max() <= 255


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Mosaik", {}, r"no layer 'Mosaik' \(did you mean 'Mosaic'\?\)"),
        ("CutMix", {}, "CutMix cannot handle boxes"),
        ("RandAugment", {"geometric": True}, "RandAugment does not move boxes"),
        ("MixUp", {"alhpa": 1}, "MixUp: .*alhpa"),
    ],
)
def test_layers_that_cannot_be_used_are_named(name, arguments, message):
    with pytest.raises(ConfigError, match=message):
        build_layers([KerasCvLayerConfig(name, arguments)], SIZE, seed=1)


def test_batches_of_a_recipe_with_layers_have_the_form_of_all_others(tmp_path):
    draw_shapes(tmp_path / "drawn", {"train": 4}, (80, 100))
    examples = read_voc(tmp_path / "drawn", ["train"], SHAPES).examples
    layers = [KerasCvLayerConfig("Mosaic"), KerasCvLayerConfig("MixUp")]
    plain, mixed = (
        training_pipeline(examples, Resizing(*SIZE), 2, AugmentationConfig(keras_cv=chosen), 30, seed=0)
        for chosen in ([], layers)
    )
    assert len(list(mixed)) == len(mixed) == len(plain) == 2
    for (images, targets), (other_images, other_targets) in zip(plain, mixed, strict=True):
        for first, second in [(images, other_images), *((targets[key], other_targets[key]) for key in targets)]:
            assert (first.shape, first.dtype) == (second.shape, second.dtype)


def test_a_users_own_pipeline_with_ragged_boxes_feeds_fit(tiny_config):
    from refinedet_tf.model import RefineDet

    rng = np.random.default_rng(0)
    counts = [2, 0, 1, 3]
    corners = np.sort(rng.uniform(0, 1, (sum(counts), 2, 2)), axis=1).reshape(-1, 4).astype(np.float32)
    boxes = tf.RaggedTensor.from_row_lengths(corners, counts)
    classes = tf.RaggedTensor.from_row_lengths(np.zeros(sum(counts), np.float32), counts)
    images = rng.uniform(0, 255, (4, 64, 128, 3)).astype(np.float32)
    flip = keras_cv.layers.RandomFlip("horizontal", bounding_box_format="rel_xyxy")

    def augment(batch):
        batch = flip(batch, training=True)
        return batch["images"], batch["bounding_boxes"]

    batch = {"images": images, "bounding_boxes": {"boxes": boxes, "classes": classes}}
    dataset = tf.data.Dataset.from_tensor_slices(batch).ragged_batch(2).map(augment)
    # Ordinary convolutions: a training step of them is traced in less time.
    model = RefineDet(dataclasses.replace(tiny_config, separable=False, batch_norm=False))
    model.compile("sgd")
    assert np.isfinite(model.fit(dataset, verbose=0).history["loss"]).all()
