import numpy as np
import pytest
import tensorflow as tf

from refinedet_tf.data.augmentation.windows import draw_crops, random_flip
from tests.data.augmentation.helpers import crop, expand, over_many_seeds, random_objects, seeds

MEAN = (123, 117, 104)


def test_canvases_have_the_ratios_of_the_paper():
    image, boxes = tf.zeros([100, 100, 3], tf.uint8), tf.constant([[0.0, 0.0, 1.0, 1.0]])

    def place(seed):
        canvas, moved = expand(image, boxes, 4.0, seed)
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
    expand_fast = tf.function(expand)
    ratios = []
    for seed in seeds(100):
        canvas, moved = (tensor.numpy() for tensor in expand_fast(image, boxes, 4.0, seed))
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


def slow_crop(image, boxes, classes, crops, lots):
    """The seven samplers, trial by trial."""
    candidates = [(lots[0], np.float32([0, 0, 1, 1]))]
    for lot, bound, trials in zip(lots[1:], (0.1, 0.3, 0.5, 0.7, 0.9, 0.0), crops, strict=True):
        for trial in trials:
            overlaps = [iou(trial, box) for box in boxes]
            if any(overlap >= bound for overlap in overlaps):
                candidates.append((lot, trial))
                break
    chosen = max(candidates, key=lambda candidate: candidate[0])[1]
    height, width = image.shape[:2]
    left, top = int(width * chosen[0] + 1e-3), int(height * chosen[1] + 1e-3)  # for crops of the full width or height
    columns, rows = int(width * (chosen[2] - chosen[0]) + 1e-3), int(height * (chosen[3] - chosen[1]) + 1e-3)
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
    crop_fast = tf.function(crop, reduce_retracing=True)
    for seed in seeds(15):
        image = rng.integers(0, 256, (47, 61, 3), dtype=np.uint8)
        boxes, classes = random_objects(rng, count)
        trials_seed, choice_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        crops = draw_crops(trials_seed).numpy()
        lots = tf.random.stateless_uniform([7], choice_seed).numpy()
        expected_image, expected = slow_crop(image, boxes, classes, crops, lots)

        cut, kept, kept_classes = (tensor.numpy() for tensor in crop_fast(image, boxes, classes, seed))

        np.testing.assert_array_equal(cut, expected_image)
        assert kept_classes.tolist() == [index for _, index in expected]
        np.testing.assert_allclose(kept, np.reshape([box for box, _ in expected], (-1, 4)), atol=1e-5)
        assert (kept >= 0).all() and (kept <= 1).all() and (kept[:, 2:] > kept[:, :2]).all()


def test_trials_have_the_scales_and_ratios_of_the_paper():
    crops = np.stack([draw_crops(seed).numpy() for seed in seeds(20)])
    assert crops.shape[1:3] == (6, 50)  # SSD's samplers with a bound, and their max_trials
    crops = crops.reshape(-1, 4)
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
        cut, _, _ = crop(image, boxes, classes, seed)
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


def test_flip_mirrors_image_and_boxes_half_the_time():
    image = np.random.default_rng(5).uniform(0, 255, (4, 6, 3)).astype(np.float32)
    boxes = np.float32([[0, 0.25, 0.5, 1], [0.1, 0.2, 0.4, 0.6]])
    flips = 0
    for seed in seeds(60):
        result, moved = random_flip(image, boxes, seed)
        if np.array_equal(result, image):
            np.testing.assert_array_equal(moved, boxes)
        else:
            np.testing.assert_array_equal(result, image[:, ::-1])
            np.testing.assert_allclose(moved, [[0.5, 0.25, 1, 1], [0.6, 0.2, 0.9, 0.6]], atol=1e-6)
            flips += 1
    assert 18 <= flips <= 42
