import dataclasses
import shutil

import numpy as np
import pytest
import tensorflow as tf

from refinedet_tf.config import AugmentationConfig
from refinedet_tf.data.pipeline import (
    count_dropped_boxes,
    epoch_order,
    epoch_variable,
    evaluation_pipeline,
    image_pipeline,
    training_pipeline,
)
from refinedet_tf.data.readers.voc import read_voc
from refinedet_tf.data.shapes import SHAPES, draw_shapes
from refinedet_tf.errors import DataError
from refinedet_tf.ops import images as image_ops
from refinedet_tf.ops.resizing import Resizing

SIZE = (64, 96)
RESIZING = Resizing(*SIZE)
PLAIN = AugmentationConfig(
    photometric=False, expand_max_ratio=1, random_crop=False, flip=False, random_interpolation=False
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "drawn"
    draw_shapes(root, {"train": 12}, (80, 100))
    return read_voc(root, ["train"], SHAPES).examples


def epochs(dataset, count):
    """The images, boxes and classes of some epochs, each as one array."""
    result = []
    for _ in range(count):
        batches = [
            (images.numpy(), targets["boxes"].numpy(), targets["classes"].numpy()) for images, targets in dataset
        ]
        result.append([np.concatenate(part) for part in zip(*batches, strict=True)])
    return result


@pytest.fixture(scope="module")
def whole(drawn):
    """Four epochs with every augmentation and the seed 1: building such a pipeline takes most of the time here."""
    return epochs(training_pipeline(drawn, RESIZING, 4, AugmentationConfig(), 6, 1), 4)


def loaded(example):
    return RESIZING.resize(image_ops.decode(tf.io.read_file(example.image_path))).numpy()


def test_an_epoch_has_every_example_once_with_its_own_boxes(drawn):
    dataset = training_pipeline(drawn, RESIZING, 4, PLAIN, max_boxes=6, seed=0)
    images, boxes, classes = epochs(dataset, 1)[0]
    seen = []
    for example in drawn:
        index = int(np.abs(images - loaded(example)).max(axis=(1, 2, 3)).argmin())
        np.testing.assert_array_equal(images[index], loaded(example))
        count = len(example.classes)
        np.testing.assert_array_equal(boxes[index, :count], example.boxes)
        np.testing.assert_array_equal(classes[index, :count], example.classes)
        assert (boxes[index, count:] == -1).all() and (classes[index, count:] == -1).all()
        seen.append(index)
    assert sorted(seen) == list(range(12)) and seen != list(range(12))


def test_images_are_resized_in_the_mode_of_the_model(drawn):
    resizing = dataclasses.replace(RESIZING, mode="letterbox")
    images, boxes, _ = epochs(training_pipeline(drawn[:1], resizing, 1, PLAIN, max_boxes=6, seed=0), 1)[0]
    image = image_ops.decode(tf.io.read_file(drawn[0].image_path))
    np.testing.assert_array_equal(images[0], resizing.resize(image))
    expected = resizing.boxes_to_input(drawn[0].boxes, image.shape[:2])
    np.testing.assert_allclose(boxes[0, : len(expected)], expected, atol=1e-6)


def test_batches_are_full_and_their_number_and_shapes_are_known(drawn):
    dataset = training_pipeline(drawn, RESIZING, 5, AugmentationConfig(), max_boxes=7, seed=0)
    assert len(dataset) == 2 == len(list(dataset))
    images, targets = dataset.element_spec
    assert (images.shape[1:], images.dtype) == ((*SIZE, 3), tf.float32)
    assert (targets["boxes"].shape[1:], targets["boxes"].dtype) == ((7, 4), tf.float32)
    assert (targets["classes"].shape[1:], targets["classes"].dtype) == ((7,), tf.int32)
    assert images.shape[0] == 5


@pytest.mark.parametrize("cache", [False, True])
def test_the_seed_decides_all_epochs_and_these_differ(drawn, whole, cache):
    def run(seed):
        return epochs(training_pipeline(drawn, RESIZING, 4, AugmentationConfig(), 6, seed, cache), 2)

    first, again, other = whole[:2], run(1), run(2)
    for epoch, same in zip(first, again, strict=True):
        for part, same_part in zip(epoch, same, strict=True):
            np.testing.assert_array_equal(part, same_part)
    assert not np.array_equal(first[0][0], first[1][0])
    assert not np.array_equal(first[0][0], other[0][0])


def test_each_epoch_has_another_order_and_other_augmentations(drawn):
    def orders(config):
        """Which example each image of two epochs is, or whether it is mirrored."""
        plain = np.stack([loaded(example) for example in drawn])
        mirrored = plain[:, :, ::-1]
        found = []
        for images, _, _ in epochs(training_pipeline(drawn, RESIZING, 4, config, 6, seed=3), 2):
            straight = np.abs(images[:, None] - plain).max(axis=(2, 3, 4))
            turned = np.abs(images[:, None] - mirrored).max(axis=(2, 3, 4))
            index = np.minimum(straight, turned).argmin(axis=1)
            found.append((index, turned.min(axis=1) < straight.min(axis=1)))
        return found

    flipping = AugmentationConfig(photometric=False, expand_max_ratio=1, random_crop=False, random_interpolation=False)
    (first, first_turned), (second, second_turned) = orders(flipping)
    assert sorted(first) == sorted(second) == list(range(12))
    assert list(first) != list(second)
    assert list(first_turned) != list(second_turned)  # so what is random does not hang on the place in the epoch
    assert list(first_turned[np.argsort(first)]) != list(second_turned[np.argsort(second)])  # nor on the example


def test_a_cache_needs_no_file_again_and_gives_the_same_images(drawn, tmp_path):
    copies = [dataclasses.replace(example, image_path=shutil.copy(example.image_path, tmp_path)) for example in drawn]
    dataset = training_pipeline(copies, RESIZING, 12, PLAIN, 6, seed=0, cache=True)
    shutil.rmtree(tmp_path)
    expected = sorted(loaded(example).sum() for example in drawn)
    for images, _, _ in epochs(dataset, 2):
        np.testing.assert_allclose(sorted(images.sum(axis=(1, 2, 3))), expected, rtol=1e-5)


def test_boxes_beyond_the_maximum_are_dropped_and_counted(drawn):
    _, boxes, classes = epochs(training_pipeline(drawn, RESIZING, 12, PLAIN, max_boxes=2, seed=0), 1)[0]
    kept = int((classes >= 0).sum())
    assert boxes.shape == (12, 2, 4)
    assert count_dropped_boxes(drawn, 2) == sum(len(example.classes) for example in drawn) - kept > 0
    assert count_dropped_boxes(drawn, 5) == 0


def test_boxes_after_augmentation_lie_in_the_image_and_padding_comes_last(whole):
    for _, boxes, classes in whole:
        real = classes >= 0
        assert (np.diff(real.astype(int), axis=1) <= 0).all()
        assert (boxes[~real] == -1).all()
        assert (boxes[real] >= 0).all() and (boxes[real] <= 1).all()
        assert (boxes[real][:, 2:] > boxes[real][:, :2]).all()


def test_too_few_images_for_a_batch_are_an_error(drawn):
    with pytest.raises(DataError, match=r"12 training images do not fill one batch of 16; lower train\.batch_size"):
        training_pipeline(drawn, RESIZING, 16, PLAIN, 6, seed=0)


@pytest.mark.parametrize("cache", [False, True])
def test_a_run_taken_up_again_sees_what_one_without_interruption_sees(drawn, whole, cache):
    number = epoch_variable(1)
    resumed = training_pipeline(drawn, RESIZING, 4, AugmentationConfig(), 6, 1, cache, epoch=number)
    for epoch in whole[1:3]:
        for part, same_part in zip(epoch, *epochs(resumed, 1), strict=True):
            np.testing.assert_array_equal(part, same_part)
        number.assign_add(1)


def test_a_run_that_goes_on_within_an_epoch_sees_the_rest_of_it(drawn, whole):
    rest = training_pipeline(drawn, RESIZING, 4, AugmentationConfig(), 6, 1, epoch=epoch_variable(1), start=8)
    assert len(rest) == 1
    for part, same_part in zip(whole[1], *epochs(rest, 1), strict=True):
        np.testing.assert_array_equal(part[8:], same_part)


def test_the_order_of_an_epoch_names_its_examples(drawn):
    images, _, _ = epochs(training_pipeline(drawn, RESIZING, 4, PLAIN, 6, 3, epoch=epoch_variable(5)), 1)[0]
    for index, image in zip(epoch_order(len(drawn), seed=3, epoch=5), images, strict=True):
        np.testing.assert_array_equal(image, loaded(drawn[index]))


def test_workers_share_the_epoch_of_a_single_one_among_them(drawn, whole):
    shares = [training_pipeline(drawn, RESIZING, 3, AugmentationConfig(), 6, 1, shard=(index, 2)) for index in range(2)]
    assert [len(share) for share in shares] == [2, 2]
    for epoch, first, second in zip(whole[:2], *(epochs(share, 2) for share in shares), strict=True):
        for part, *halves in zip(epoch, first, second, strict=True):
            for index, half in enumerate(halves):
                np.testing.assert_array_equal(part[index::2], half)


def test_all_workers_have_as_many_batches(drawn):
    shares = [training_pipeline(drawn, RESIZING, 1, PLAIN, 6, 0, shard=(index, 5)) for index in range(5)]
    assert {len(share) for share in shares} == {12 // 5}
    assert {len(list(share)) for share in shares[::4]} == {12 // 5}


def test_the_remainder_may_be_kept(drawn):
    dataset = training_pipeline(drawn, RESIZING, 5, PLAIN, 6, 0, drop_remainder=False)
    assert len(dataset) == 3
    images, _, _ = epochs(dataset, 1)[0]
    expected = sorted(loaded(example).sum() for example in drawn)
    np.testing.assert_allclose(sorted(images.sum(axis=(1, 2, 3))), expected, rtol=1e-5)
    assert len(list(training_pipeline(drawn, RESIZING, 16, PLAIN, 6, 0, drop_remainder=False))) == 1


def test_without_a_fixed_order_each_image_is_augmented_all_the_same(drawn, whole):
    unordered = training_pipeline(drawn, RESIZING, 4, AugmentationConfig(), 6, 1, deterministic=False)
    (images, _, _), (same_images, _, _) = epochs(unordered, 1)[0], whole[0]
    assert sorted(images.sum(axis=(1, 2, 3))) == sorted(same_images.sum(axis=(1, 2, 3)))


def test_crowds_are_not_trained_on_and_do_not_count(drawn):
    count = len(drawn[0].classes)
    twice = dataclasses.replace(
        drawn[0],
        boxes=np.tile(drawn[0].boxes, (2, 1)),
        classes=np.tile(drawn[0].classes, 2),
        crowd=np.arange(2 * count) < count,
    )
    _, boxes, classes = epochs(training_pipeline([twice], RESIZING, 1, PLAIN, max_boxes=count, seed=0), 1)[0]
    np.testing.assert_array_equal(boxes[0], drawn[0].boxes)
    np.testing.assert_array_equal(classes[0], drawn[0].classes)
    assert count_dropped_boxes([twice], count) == 0 and count_dropped_boxes([twice], count - 1) == 1


def test_crowds_take_part_in_the_choice_of_the_crop(drawn):
    def crops(crowd):
        example = dataclasses.replace(drawn[0], crowd=np.full(len(drawn[0].classes), crowd))
        config = AugmentationConfig(photometric=False, expand_max_ratio=1, flip=False, random_interpolation=False)
        return np.stack([epoch[0] for epoch in epochs(training_pipeline([example], RESIZING, 1, config, 6, 3), 5)])

    np.testing.assert_array_equal(crops(False), crops(True))


def test_an_image_that_vanished_is_named(voc_folder):
    path = voc_folder.add("a")
    examples = read_voc(voc_folder.root, ["train"], ["cat"]).examples
    path.unlink()
    with pytest.raises(tf.errors.NotFoundError, match=r"a\.jpg"):
        list(training_pipeline(examples, RESIZING, 1, PLAIN, 6, seed=0))


def test_evaluation_keeps_the_order_and_the_last_incomplete_batch(drawn):
    batches = list(evaluation_pipeline(drawn, RESIZING, 5))
    assert [len(batch) for batch in batches] == [5, 5, 2]
    np.testing.assert_array_equal(tf.concat(batches, 0), np.stack([loaded(example) for example in drawn]))


def test_kerascv_layers_take_the_batches(drawn):
    keras_cv = pytest.importorskip("keras_cv")
    images, targets = next(iter(training_pipeline(drawn, RESIZING, 4, PLAIN, 6, seed=0)))
    flip = keras_cv.layers.RandomFlip("horizontal", rate=1.0, bounding_box_format="rel_xyxy")
    result = flip({"images": images, "bounding_boxes": targets}, training=True)
    boxes, classes = (
        keras_cv.bounding_box.to_dense(result["bounding_boxes"], max_boxes=6)[key].numpy()
        for key in ("boxes", "classes")
    )
    real = targets["classes"].numpy() >= 0
    xmin, ymin, xmax, ymax = targets["boxes"].numpy()[real].T
    np.testing.assert_array_equal(classes, targets["classes"])
    np.testing.assert_allclose(boxes[real].T, [1 - xmax, ymin, 1 - xmin, ymax], atol=1e-5)
    np.testing.assert_allclose(result["images"], images[:, :, ::-1], atol=1e-3)


def test_no_iteration_waits_for_the_thread_that_tunes(drawn):
    # It may sleep for a minute before it notices that the iteration is over; see `_options`.
    for dataset in (
        training_pipeline(drawn, RESIZING, 4, PLAIN, 6, 0),
        evaluation_pipeline(drawn, RESIZING, 4),
        image_pipeline(drawn),
    ):
        assert dataset.options().autotune.enabled is False
