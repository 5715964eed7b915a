import colorsys

import numpy as np
import pytest
import tensorflow as tf

from refinedet_tf.config import AugmentationConfig
from refinedet_tf.data import augmentation
from refinedet_tf.ops.resizing import Resizing

MEAN = (123, 117, 104)
LETTERBOX = Resizing(64, 96, "letterbox")


def seeds(count):
    return [tf.constant([1, number], tf.int64) for number in range(count)]


def random_objects(rng, count):
    """Boxes of every size inside the image, and classes."""
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1).astype(np.float32)
    return corners.reshape(count, 4), rng.integers(0, 20, count).astype(np.int32)


# Colours


def changed_by_hsv(image, change):
    result = np.empty(image.shape)
    for index in np.ndindex(image.shape[:2]):
        result[index] = np.multiply(colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*image[index] / 255))), 255)
    return result


def slow_photometric(image, coins, brightness, contrast, saturation, hue):
    """The five steps one after another, on 8-bit colours."""
    steps = [
        (coins[0], lambda x: x + brightness),
        (coins[1] and coins[4], lambda x: x * contrast),
        (coins[2], lambda x: changed_by_hsv(x, lambda h, s, v: (h, min(s * saturation, 1), v))),
        (coins[3], lambda x: changed_by_hsv(x, lambda h, s, v: ((h + hue) % 1, s, v))),
        (coins[1] and not coins[4], lambda x: x * contrast),
    ]
    image = image.astype(float)
    for coin, change in steps:
        if coin:
            image = np.round(np.clip(change(image), 0, 255))
    return image


def test_colours_change_as_in_a_slow_implementation_on_the_same_numbers():
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    distort = tf.function(augmentation.photometric_distortion)
    taken = []
    for seed in seeds(60):
        coins_seed, amounts_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        coins = tf.random.stateless_uniform([5], coins_seed).numpy() < 0.5
        amounts = tf.random.stateless_uniform([4], amounts_seed).numpy()
        amounts = amounts * [64, 1, 1, 0.2] + [-32, 0.5, 0.5, -0.1]
        difference = np.abs(distort(image, seed).numpy() - slow_photometric(image, coins, *amounts))
        # Where a value lies halfway, float32 may round to the other side, and later steps enlarge that.
        assert difference.max() <= 3 and (difference > 0).mean() < 0.05
        taken.append(coins)
    assert (np.mean(taken, axis=0) > 0.3).all() and (np.mean(taken, axis=0) < 0.7).all()


@pytest.mark.parametrize("factor", [0.5, 0.83, 1.0, 1.21, 1.5])
def test_saturation_is_that_of_tensorflow(factor):
    image = np.random.default_rng(2).integers(0, 256, (200, 201, 3)).astype(np.float32)
    image[:20, :, 1:] = image[:20, :, :1]  # greys
    image[20:40, :, 1] = 0  # fully saturated
    image[40], image[41] = 0, 255
    difference = np.abs(
        augmentation._saturated(tf.constant(image), factor) - np.round(tf.image.adjust_saturation(image, factor))
    )
    # With factors of 1/2 and 3/2, one of thirty values lies halfway between two whole numbers.
    assert difference.max() <= 1 and (difference > 0).mean() < (0.03 if factor % 1 == 0.5 else 0.01)


def over_many_seeds(function):
    """What a function of a seed gives for 4000 of them."""
    many = tf.random.uniform([4000, 2], maxval=1 << 30, dtype=tf.int32, seed=5)
    return tf.function(lambda: tf.map_fn(function, many, fn_output_signature=tf.float32))().numpy()


def distorted_colours(colour):
    image = tf.constant([[colour]], tf.uint8)
    return over_many_seeds(lambda seed: tf.cast(augmentation.photometric_distortion(image, seed)[0, 0], tf.float32))


def test_colours_change_as_often_and_as_far_as_the_authors_let_them():
    # Black becomes lighter by brightness alone, up to 32, which contrast makes 48.
    black = distorted_colours([0, 0, 0])[:, 0]
    assert abs((black > 0).mean() - 0.25 * 63 / 64) < 0.02 and 44 <= black.max() <= 48
    # White becomes darker than 255 - 32 by contrast alone: with every second factor below 191 / 255, or where
    # brightness has taken up to 32 before, below 0.8 on the average.
    white = distorted_colours([255, 255, 255])[:, 0]
    assert abs((white < 191).mean() - 0.5 * (0.75 * 0.249 + 0.25 * 0.3)) < 0.02 and 111 <= white.min() < 120
    # Where nothing is clipped, brightness and contrast leave the hue of red, with green and blue equal.
    colours = distorted_colours([120, 40, 40]).astype(float)
    hue, saturation, _ = np.array([colorsys.rgb_to_hsv(*colour / 255) for colour in colours]).T
    degrees = ((hue * 360 + 180) % 360 - 180)[np.ptp(colours, axis=1) > 50]  # in greyer ones rounding blurs it
    changed = degrees[np.abs(degrees) > 1.0]
    assert abs(len(changed) / len(degrees) - 0.5 * 35 / 36) < 0.03 and 34.5 < np.abs(degrees).max() < 37.5
    np.testing.assert_allclose(np.quantile(changed, [0.25, 0.5, 0.75]), [-18, 0, 18], atol=3)
    plain = (saturation > 0.64) & (saturation < 0.69)  # 2/3 as it was: a quarter, and what is changed by little
    assert 0.2 < plain.mean() < 0.35 and saturation.max() > 0.97 and saturation.min() < 0.34


# Canvas


def test_canvases_have_the_ratios_of_the_paper():
    image, boxes = tf.zeros([100, 100, 3], tf.uint8), tf.constant([[0.0, 0.0, 1.0, 1.0]])

    def place(seed):
        canvas, moved = augmentation.expand(image, boxes, 4.0, seed)
        return tf.concat([tf.cast(tf.shape(canvas)[:1], tf.float32) / 100, moved[0]], axis=0)

    ratio, xmin, ymin, xmax, ymax = over_many_seeds(place).T
    assert abs((ratio == 1).mean() - 0.5) < 0.03
    large = ratio > 1.2
    np.testing.assert_allclose(np.quantile(ratio[ratio > 1], [0.25, 0.5, 0.75]), [1.75, 2.5, 3.25], atol=0.1)
    assert 3.95 < ratio.max() <= 4
    for low, high in ((xmin, xmax), (ymin, ymax)):  # anywhere on the canvas
        place = low[large] / (1 - (high - low)[large])
        np.testing.assert_allclose(np.quantile(place, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.04)


def test_expand_puts_the_untouched_image_on_a_plain_canvas_with_its_boxes():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (30, 41, 3), dtype=np.uint8)
    corners = np.array([[0, 0, 41, 30], [5, 7, 20, 22]])
    boxes = (corners / [41, 30, 41, 30]).astype(np.float32)
    expand = tf.function(augmentation.expand)
    ratios = []
    for seed in seeds(100):
        canvas, moved = (tensor.numpy() for tensor in expand(image, boxes, 4.0, seed))
        height, width = canvas.shape[:2]
        pixels = moved * [width, height, width, height]
        np.testing.assert_allclose(pixels, np.round(pixels), atol=2e-3)  # the offset is a whole number of pixels
        pixels = np.round(pixels).astype(int)
        for (xmin, ymin, xmax, ymax), (left, top, right, bottom) in zip(corners, pixels, strict=True):
            np.testing.assert_array_equal(canvas[top:bottom, left:right], image[ymin:ymax, xmin:xmax])
        left, top, right, bottom = pixels[0]
        outside = np.ones((height, width), bool)
        outside[top:bottom, left:right] = False
        assert (canvas[outside] == MEAN).all()
        ratios.append(width / 41)
        assert abs(width / 41 - height / 30) < 1 / 30  # both sides rounded down
    ratios = np.array(ratios)
    assert 0.35 < (ratios == 1).mean() < 0.65
    assert ratios.max() <= 4 and np.ptp(ratios[ratios > 1]) > 2.5


# Crop


def slow_crop(image, boxes, classes, crops, lots):
    """The seven samplers, trial by trial."""
    candidates = [(lots[0], np.float32([0, 0, 1, 1]))]
    for lot, bound, trials in zip(lots[1:], (0.1, 0.3, 0.5, 0.7, 0.9, 0.0), crops, strict=True):
        for crop in trials:
            overlaps = [iou(crop, box) for box in boxes]
            if any(overlap >= bound for overlap in overlaps):
                candidates.append((lot, crop))
                break
    crop = max(candidates, key=lambda candidate: candidate[0])[1]
    height, width = image.shape[:2]
    left, top = int(width * crop[0] + 1e-3), int(height * crop[1] + 1e-3)  # for crops of the full width or height
    columns, rows = int(width * (crop[2] - crop[0]) + 1e-3), int(height * (crop[3] - crop[1]) + 1e-3)
    kept = []
    for (xmin, ymin, xmax, ymax), index in zip(boxes.astype(float), classes, strict=True):
        x = ((xmin + xmax) / 2 * width - left) / columns
        y = ((ymin + ymax) / 2 * height - top) / rows
        if 0 <= x <= 1 and 0 <= y <= 1:
            box = [
                (xmin * width - left) / columns,
                (ymin * height - top) / rows,
                (xmax * width - left) / columns,
                (ymax * height - top) / rows,
            ]
            kept.append((np.clip(box, 0, 1), index))
    return image[top : top + rows, left : left + columns], kept


def iou(first, second):
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared)


@pytest.mark.parametrize("count", [0, 1, 3, 12])
def test_crop_is_that_of_a_slow_implementation_on_the_same_numbers(count):
    rng = np.random.default_rng(count)
    crop_fast = tf.function(augmentation.random_crop, reduce_retracing=True)
    for seed in seeds(15):
        image = rng.integers(0, 256, (47, 61, 3), dtype=np.uint8)
        boxes, classes = random_objects(rng, count)
        trials_seed, choice_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        crops = augmentation.draw_crops(trials_seed).numpy()
        lots = tf.random.stateless_uniform([7], choice_seed).numpy()
        expected_image, expected = slow_crop(image, boxes, classes, crops, lots)

        cut, kept, kept_classes = (tensor.numpy() for tensor in crop_fast(image, boxes, classes, seed))

        np.testing.assert_array_equal(cut, expected_image)
        assert kept_classes.tolist() == [index for _, index in expected]
        np.testing.assert_allclose(kept, np.reshape([box for box, _ in expected], (-1, 4)), atol=1e-5)
        assert (kept >= 0).all() and (kept <= 1).all() and (kept[:, 2:] > kept[:, :2]).all()


def test_trials_have_the_scales_and_ratios_of_the_paper():
    crops = np.concatenate([augmentation.draw_crops(seed).numpy().reshape(-1, 4) for seed in seeds(20)])
    width, height = crops[:, 2] - crops[:, 0], crops[:, 3] - crops[:, 1]
    assert crops.min() > -1e-6 and crops.max() < 1 + 1e-6  # float32 rounding
    scale, ratio = np.sqrt(width * height), width / height
    assert 0.3 - 1e-4 <= scale.min() < 0.31 and 0.99 < scale.max() <= 1
    np.testing.assert_allclose(np.quantile(scale, [0.25, 0.5, 0.75]), [0.475, 0.65, 0.825], atol=0.02)
    small = scale < 0.7  # here no ratio is limited
    assert 0.5 - 1e-3 <= ratio[small].min() < 0.52 and 1.98 < ratio[small].max() <= 2 + 1e-3
    np.testing.assert_allclose(np.quantile(ratio[small], [0.25, 0.5, 0.75]), [0.875, 1.25, 1.625], atol=0.05)
    free = (width < 0.9) & (height < 0.9)
    place = crops[free, :2] / (1 - np.stack([width, height], axis=1)[free])
    np.testing.assert_allclose(
        np.quantile(place, [0.25, 0.5, 0.75], axis=0), [[0.25] * 2, [0.5] * 2, [0.75] * 2], atol=0.03
    )


def whole_image_share(boxes):
    """How often a crop of a 100 x 100 image is the whole of it."""
    image = tf.zeros([100, 100, 3], tf.uint8)
    classes = tf.zeros([len(boxes)], tf.int32)

    def is_whole(seed):
        cut, _, _ = augmentation.random_crop(image, boxes, classes, seed)
        return tf.reduce_all(tf.shape(cut) == [100, 100, 3])

    many = tf.random.uniform([1500, 2], maxval=1 << 30, dtype=tf.int32, seed=3)
    return tf.function(lambda: tf.map_fn(is_whole, many, fn_output_signature=tf.bool))().numpy().mean()


def test_one_sampler_is_taken_with_equal_probability_among_those_that_found_a_crop():
    # A tiny box has IoU 0.1 with no crop: left are the whole image and the sampler without a bound.
    tiny = tf.constant([[0.5, 0.5, 0.505, 0.505]])
    assert abs(whole_image_share(tiny) - 1 / 2) < 0.05
    # The IoU with a box that fills the image is the crop's area: within 50 trials all bounds are met, 98 times in 100.
    assert abs(whole_image_share(tf.constant([[0.0, 0.0, 1.0, 1.0]])) - 1 / 7) < 0.03
    assert whole_image_share(tf.zeros([0, 4])) == 1


# Resize, flip, and all together


def test_every_interpolation_is_used_and_stays_within_the_range_of_colours():
    image = np.random.default_rng(4).integers(0, 2, (40, 30, 3)).astype(np.uint8) * 255
    methods = {
        method: tf.clip_by_value(tf.cast(tf.image.resize(image, (25, 50), method), tf.float32), 0, 255).numpy()
        for method in ("bilinear", "area", "nearest", "bicubic", "lanczos3")
    }
    used = []
    for seed in seeds(40):
        resized = augmentation.random_resize(image, (25, 50), seed).numpy()
        assert resized.dtype == np.float32 and resized.min() >= 0 and resized.max() <= 255
        used += [name for name, expected in methods.items() if np.allclose(resized, expected, rtol=0, atol=1e-4)]
    assert len(used) == 40 and set(used) == set(methods)


def test_flip_mirrors_image_and_boxes_half_the_time():
    image = np.random.default_rng(5).uniform(0, 255, (4, 6, 3)).astype(np.float32)
    boxes = np.float32([[0, 0.25, 0.5, 1], [0.1, 0.2, 0.4, 0.6]])
    flips = 0
    for seed in seeds(60):
        result, moved = augmentation.random_flip(image, boxes, seed)
        if np.array_equal(result, image):
            np.testing.assert_array_equal(moved, boxes)
        else:
            np.testing.assert_array_equal(result, image[:, ::-1])
            np.testing.assert_allclose(moved, [[0.5, 0.25, 1, 1], [0.6, 0.2, 0.9, 0.6]], atol=1e-6)
            flips += 1
    assert 18 <= flips <= 42


@pytest.mark.parametrize("resize", ["warp", "letterbox"])
def test_pixels_and_boxes_move_together_through_all_steps(resize):
    image = np.zeros((150, 200, 3), np.uint8)
    image[..., 2] = 200  # blue, with a red rectangle
    image[40:100, 60:150] = (200, 0, 0)
    boxes = tf.constant([[60 / 200, 40 / 150, 150 / 200, 100 / 150]])
    config = AugmentationConfig(photometric=False)
    augment = tf.function(
        lambda seed: augmentation.augment(image, boxes, tf.constant([3]), config, Resizing(160, 192, resize), seed)
    )
    kept = 0
    for seed in seeds(80):
        result, moved, classes = (tensor.numpy() for tensor in augment(seed))
        assert result.shape == (160, 192, 3) and result.dtype == np.float32
        if len(moved) == 0:
            continue
        red = result[..., 0] - result[..., 2] > 60  # more than the mean colour's 19
        rows, columns = np.nonzero(red.any(axis=1))[0], np.nonzero(red.any(axis=0))[0]
        seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        # Half an output pixel from sampling, and as much from where the threshold lies on a soft edge.
        np.testing.assert_allclose(moved[0] * [192, 160, 192, 160], seen, atol=1.5)
        assert classes.tolist() == [3]
        kept += 1
    assert kept > 50


def test_a_letterbox_in_training_is_the_one_of_inference():
    image = np.random.default_rng(9).integers(0, 256, (50, 20, 3), dtype=np.uint8)
    boxes, classes = random_objects(np.random.default_rng(9), 4)
    nothing = AugmentationConfig(
        photometric=False, expand_max_ratio=1, random_crop=False, flip=False, random_interpolation=False
    )
    result, moved, _ = augmentation.augment(image, boxes, classes, nothing, LETTERBOX, seeds(1)[0])
    np.testing.assert_array_equal(result, LETTERBOX.resize(image))
    np.testing.assert_array_equal(moved, LETTERBOX.boxes_to_input(boxes, (50, 20)))


@pytest.mark.parametrize("count", [0, 5])
def test_augmentation_follows_from_its_seed(count):
    rng = np.random.default_rng(6)
    image = rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)
    boxes, classes = random_objects(rng, count)
    augment = tf.function(
        lambda seed: augmentation.augment(image, boxes, classes, AugmentationConfig(), Resizing(64, 64), seed)
    )
    first, again, other = (augment(seed) for seed in (seeds(1)[0], seeds(1)[0], seeds(2)[1]))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first[0], other[0])
    assert first[1].shape[1:] == (4,)


def test_without_steps_the_image_is_only_resized():
    rng = np.random.default_rng(8)
    image = rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)
    boxes, classes = random_objects(rng, 4)
    nothing = AugmentationConfig(
        photometric=False, expand_max_ratio=1, random_crop=False, flip=False, random_interpolation=False
    )
    result = augmentation.augment(image, boxes, classes, nothing, Resizing(64, 32), seeds(1)[0])
    np.testing.assert_array_equal(result[0], tf.image.resize(image, (64, 32)))
    np.testing.assert_array_equal(result[1], boxes)
    np.testing.assert_array_equal(result[2], classes)


def test_all_steps_at_once_are_the_steps_one_after_the_other():
    config = AugmentationConfig()
    rng = np.random.default_rng(8)
    together = tf.function(
        lambda *inputs: augmentation.augment(*inputs[:3], config, Resizing(40, 50), inputs[3]), reduce_retracing=True
    )
    beside = 0
    for seed in seeds(60):
        image = tf.constant(rng.integers(0, 256, (31, 43, 3), dtype=np.uint8))
        boxes, classes = (tf.constant(part) for part in random_objects(rng, 3))
        parts = tf.unstack(tf.random.experimental.stateless_split(seed, 5))
        expected = augmentation.photometric_distortion(image, parts[0])
        expected, moved = augmentation.expand(expected, boxes, config.expand_max_ratio, parts[1])
        expected, moved, kept = augmentation.random_crop(expected, moved, classes, parts[2])
        beside += bool((expected.numpy() == MEAN).all())
        expected = augmentation.random_resize(expected, (40, 50), parts[3])
        expected, moved = augmentation.random_flip(expected, moved, parts[4])
        for fast, slow in zip(together(image, boxes, classes, seed), (expected, moved, kept), strict=True):
            # Counted from elsewhere, the place of a pixel is another float32, by some hundred thousandths of a pixel.
            np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=0.01)
    assert beside  # among them crops that show nothing of the image
