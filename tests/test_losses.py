import json

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from refinedet_tf import losses as losses_module
from refinedet_tf.config import ModelConfig
from refinedet_tf.errors import ConfigError, DataError
from refinedet_tf.losses import COUNT_NAMES, LOSS_NAMES, RefineDetLoss
from refinedet_tf.ops.anchors import generate_anchors
from refinedet_tf.ops.boxes import pairwise_iou
from refinedet_tf.ops.detections import objectness, refine_anchors
from refinedet_tf.ops.matching import match
from tests import slow_reference as slow

ANCHORS = generate_anchors((64, 128), (32, 64, 128, 256))
CLASSES = 4
HALVES = {"positive_iou": 0.5, "negative_iou": 0.5}
ODM = ("odm_class_loss", "odm_box_loss")
ARM = ("arm_objectness_loss", "arm_box_loss")


def random_targets(rng, counts, rows=6):
    """`counts[i]` objects in image i, in random rows; the others are padding."""
    boxes, classes = (
        np.full([len(counts), rows, 4], -1, np.float32),
        np.full([len(counts), rows], -1, np.int32),
    )
    for image, count in enumerate(counts):
        where = rng.permutation(rows)[:count]
        centers, sizes = rng.uniform(0.2, 0.8, (count, 2)), rng.uniform(0.1, 0.9, (count, 2))
        boxes[image, where] = np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=-1)
        classes[image, where] = rng.integers(0, CLASSES, count)
    return {"boxes": boxes, "classes": classes}


def random_predictions(rng, batch):
    """A quarter of the anchors have an objectness below 0.01."""
    count = len(ANCHORS)
    arm_objectness = rng.normal(0, 1, (batch, count, 2))
    arm_objectness[rng.uniform(size=(batch, count)) < 0.25, 0] += 8
    predictions = {
        "arm_objectness": arm_objectness,
        "arm_offsets": rng.normal(0, 1.0, (batch, count, 4)),
        "odm_classes": rng.normal(0, 2.0, (batch, count, 1 + CLASSES)),
        "odm_offsets": rng.normal(0, 1.0, (batch, count, 4)),
    }
    return {name: value.astype(np.float32) for name, value in predictions.items()}


def values_and_gradients(loss, targets, predictions, names=LOSS_NAMES):
    """The six values, and the gradients of the sum of those in `names`."""
    predictions = {name: tf.convert_to_tensor(value) for name, value in predictions.items()}
    with tf.GradientTape() as tape:
        tape.watch(predictions)
        values = loss(targets, predictions, ANCHORS)
        total = tf.add_n([values[name] for name in names])
    return values, tape.gradient(total, predictions, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def assert_equal_values(actual, expected, rtol=1e-5):
    assert set(actual) == set(expected) == {*LOSS_NAMES, *COUNT_NAMES}
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=rtol, err_msg=name)


@pytest.mark.parametrize(
    ("seed", "counts", "settings"),
    [
        (0, [3], {}),
        (1, [1, 6, 2, 4], {}),
        (2, [0, 3, 0, 5], {}),
        (3, [4, 2, 6], {"arm_positive_iou": 0.7, "arm_negative_iou": 0.3}),
        (4, [2, 3], {"objectness_threshold": 0.4, "negative_ratio": 1.5}),
        (5, [5, 1], {"objectness_threshold": 0.0, "negative_ratio": 100.0}),
        (6, [3, 0, 5], {"odm_loss": "focal"}),
        (7, [2, 4], {"odm_loss": "focal", "focal_alpha": 0.6, "focal_gamma": 0.5, "objectness_threshold": 0.4}),
    ],
)
def test_all_values_equal_those_of_plain_loops(seed, counts, settings):
    rng = np.random.default_rng(seed)
    targets, predictions = random_targets(rng, counts), random_predictions(rng, len(counts))
    expected = slow.refinedet_losses(targets, predictions, ANCHORS, **settings)
    assert expected["arm_positives"] > 0 and expected["odm_positives"] > 0
    assert_equal_values(RefineDetLoss(**settings)(targets, predictions, ANCHORS), expected)


@pytest.mark.parametrize("settings", [{}, {"odm_loss": "focal"}, {"arm_positive_iou": 0.7, "arm_negative_iou": 0.3}])
def test_ignored_objects_equal_those_of_plain_loops(settings):
    rng = np.random.default_rng(11)
    targets, predictions = random_targets(rng, [3, 6, 2, 1]), random_predictions(rng, 4)
    without = RefineDetLoss(**settings)(targets, predictions, ANCHORS)
    hidden = np.where(
        (targets["classes"] >= 0) & (rng.uniform(size=targets["classes"].shape) < 0.5), -2, targets["classes"]
    )
    targets = {**targets, "classes": hidden.astype(np.int32)}
    assert (hidden == -2).any(axis=1).sum() > 1 and (hidden >= 0).any(axis=1).sum() > 1
    expected = slow.refinedet_losses(targets, predictions, ANCHORS, **settings)
    values = RefineDetLoss(**settings)(targets, predictions, ANCHORS)
    assert_equal_values(values, expected)
    assert 0 < values["arm_positives"] < without["arm_positives"]


def test_anchors_on_an_ignored_object_have_no_gradient():
    """As background, the anchors that fit an object best would be the hardest negatives."""
    rng = np.random.default_rng(12)
    predictions = random_predictions(rng, 1)
    predictions["arm_objectness"][0, 100] = [-9, 9]
    boxes = np.stack([ANCHORS[100], ANCHORS[300]])[np.newaxis]
    for label, has_gradient in ((-1, True), (-2, False), (0, True)):
        targets = {"boxes": boxes, "classes": np.int32([[label, 0]])}
        _, gradients = values_and_gradients(RefineDetLoss(), targets, predictions)
        assert gradients["arm_objectness"][0, 100].numpy().any() == has_gradient


@pytest.mark.parametrize("settings", [{}, {"odm_loss": "focal"}])
def test_sample_weights_multiply_the_terms_of_their_image_and_leave_the_positives(settings):
    rng = np.random.default_rng(13)
    targets, predictions = random_targets(rng, [3, 0, 5]), random_predictions(rng, 3)
    weights = np.float32([0.5, 3.0, 0.25])
    expected = slow.refinedet_losses(targets, predictions, ANCHORS, **settings, sample_weight=weights)
    loss = RefineDetLoss(**settings)
    assert_equal_values(loss(targets, predictions, ANCHORS, weights), expected)
    assert_equal_values(loss(targets, predictions, ANCHORS, weights[:, np.newaxis]), expected)
    ones = loss(targets, predictions, ANCHORS, np.ones(3))
    assert_equal_values(ones, loss(targets, predictions, ANCHORS), rtol=1e-7)
    for wrong in (np.ones(2), np.ones([3, 6]), 2.0):
        with pytest.raises(DataError, match="one number for each image"):
            loss(targets, predictions, ANCHORS, wrong)


def test_targets_with_no_row_for_a_box_count_as_images_without_objects():
    predictions = random_predictions(np.random.default_rng(14), 2)
    targets = {"boxes": np.zeros([2, 0, 4], np.float32), "classes": np.zeros([2, 0], np.int32)}
    values, _ = values_and_gradients(RefineDetLoss(), targets, predictions)
    assert {name: float(value) for name, value in values.items()} == dict.fromkeys((*LOSS_NAMES, *COUNT_NAMES), 0.0)


def focal_of_two_classes(rng, count=200):
    """Logits of background and object, labels, and the value that the loss takes of each anchor."""
    logits, labels = rng.normal(0, 4, (count, 2)).astype(np.float32), rng.integers(0, 2, count)
    loss = RefineDetLoss(odm_loss="focal")
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    return logits, labels, loss._focal_factors(cross_entropy, labels > 0) * cross_entropy


def test_focal_loss_of_two_classes_is_the_sigmoid_focal_loss_of_the_difference_of_logits():
    """Lin et al., ICCV 2017, equation 5, written for one logit."""
    logits, labels, values = focal_of_two_classes(np.random.default_rng(15))
    p = 1 / (1 + np.exp(-(logits[:, 1] - logits[:, 0]).astype(np.float64)))
    expected = np.where(labels == 1, -0.25 * (1 - p) ** 2 * np.log(p), -0.75 * p**2 * np.log(1 - p))
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-7)


def test_focal_loss_of_two_classes_is_that_of_tensorflow_addons():
    addons = pytest.importorskip("tensorflow_addons", exc_type=Exception)  # TensorFlow 2.15 only
    logits, labels, values = focal_of_two_classes(np.random.default_rng(16))
    theirs = addons.losses.SigmoidFocalCrossEntropy(from_logits=True, alpha=0.25, gamma=2.0, reduction="none")
    difference = logits[:, 1:] - logits[:, :1]
    np.testing.assert_allclose(
        values, theirs(labels[:, np.newaxis].astype(np.float32), difference), rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradients_of_the_focal_loss_are_finite_where_the_model_is_certain(gamma):
    rng = np.random.default_rng(17)
    targets, predictions = random_targets(rng, [3, 0]), random_predictions(rng, 2)
    predictions["odm_classes"] *= 60
    loss = RefineDetLoss(odm_loss="focal", focal_gamma=gamma)
    values, gradients = values_and_gradients(loss, targets, predictions)
    assert all(np.isfinite(value).all() for value in (*values.values(), *gradients.values()))
    assert gradients["odm_classes"].numpy().any()


def test_global_positives_are_those_of_the_replica_without_a_strategy():
    rng = np.random.default_rng(18)
    targets, predictions = random_targets(rng, [3, 1]), random_predictions(rng, 2)
    expected = RefineDetLoss()(targets, predictions, ANCHORS)
    assert_equal_values(RefineDetLoss(normalize_positives="global")(targets, predictions, ANCHORS), expected, rtol=0)


def test_arm_that_moves_no_anchor_has_no_box_loss():
    rng = np.random.default_rng(0)
    targets, predictions = random_targets(rng, [3]), random_predictions(rng, 1)
    predictions["arm_offsets"][:] = 0
    expected = slow.refinedet_losses(targets, predictions, ANCHORS)
    assert expected["arm_box_loss"] > 0
    values = RefineDetLoss(two_step_regression=False)(targets, predictions, ANCHORS)
    assert_equal_values(values, {**expected, "arm_box_loss": 0.0})


def test_values_have_the_documented_names_and_are_float32_for_half_precision_predictions():
    rng = np.random.default_rng(0)
    targets, predictions = random_targets(rng, [3, 2]), random_predictions(rng, 2)
    halves = {name: tf.cast(value, tf.bfloat16) for name, value in predictions.items()}
    values = RefineDetLoss()(targets, halves, ANCHORS)
    assert all(value.dtype == tf.float32 and value.shape == () for value in values.values())
    rounded = {name: tf.cast(value, tf.float32) for name, value in halves.items()}
    assert_equal_values(values, RefineDetLoss()(targets, rounded, ANCHORS), rtol=1e-6)


def test_settings_of_a_recipe_reach_the_loss_and_survive_serialization():
    config = ModelConfig(
        classes=["a"],
        arm_positive_iou=0.7,
        arm_negative_iou=0.3,
        objectness_threshold=0.05,
        negative_ratio=2.0,
        two_step_regression=False,
        odm_loss="focal",
        focal_alpha=0.5,
        focal_gamma=1.5,
    )
    loss = RefineDetLoss.for_model(config, normalize_positives="global")
    assert vars(loss) == {
        "arm_positive_iou": 0.7,
        "arm_negative_iou": 0.3,
        "objectness_threshold": 0.05,
        "negative_ratio": 2.0,
        "two_step_regression": False,
        "odm_loss": "focal",
        "focal_alpha": 0.5,
        "focal_gamma": 1.5,
        "normalize_positives": "global",
    }
    assert vars(RefineDetLoss.for_model(ModelConfig(classes=["a"]))) == vars(RefineDetLoss())
    values = json.loads(json.dumps(keras.utils.serialize_keras_object(loss)))
    assert keras.utils.deserialize_keras_object(values) == loss


def test_unknown_rules_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'focal'"):
        RefineDetLoss(odm_loss="focall")
    with pytest.raises(ConfigError, match="must be one of per_replica, global"):
        RefineDetLoss(normalize_positives="none")


def test_odm_losses_have_no_gradient_in_the_arm_nor_arm_losses_in_the_odm():
    rng = np.random.default_rng(1)
    targets, predictions = random_targets(rng, [3, 2]), random_predictions(rng, 2)
    _, gradients = values_and_gradients(RefineDetLoss(), targets, predictions, ODM)
    assert not gradients["arm_objectness"].numpy().any() and not gradients["arm_offsets"].numpy().any()
    assert gradients["odm_classes"].numpy().any() and gradients["odm_offsets"].numpy().any()
    _, gradients = values_and_gradients(RefineDetLoss(), targets, predictions, ARM)
    assert not gradients["odm_classes"].numpy().any() and not gradients["odm_offsets"].numpy().any()
    assert gradients["arm_objectness"].numpy().any() and gradients["arm_offsets"].numpy().any()


def test_odm_losses_depend_on_the_arm_through_which_no_gradient_flows():
    rng = np.random.default_rng(1)
    targets, predictions = random_targets(rng, [3, 2]), random_predictions(rng, 2)
    before = RefineDetLoss()(targets, predictions, ANCHORS)
    moved = {**predictions, "arm_offsets": predictions["arm_offsets"] + 0.3}
    assert RefineDetLoss()(targets, moved, ANCHORS)["odm_box_loss"] != before["odm_box_loss"]
    sure = {**predictions, "arm_objectness": predictions["arm_objectness"] + np.float32([9, 0])}
    after = RefineDetLoss()(targets, sure, ANCHORS)
    assert after["odm_class_loss"] < before["odm_class_loss"]
    assert after["odm_box_loss"] == before["odm_box_loss"]


def test_gradients_are_those_of_cross_entropy_and_smooth_l1_over_the_normaliser():
    """Softmax minus one-hot, and the clipped difference, each divided by the positives of its module."""
    rng = np.random.default_rng(8)
    targets, predictions = random_targets(rng, [2]), random_predictions(rng, 1)
    values, gradients = values_and_gradients(RefineDetLoss(), targets, predictions)
    refined = refine_anchors(predictions["arm_offsets"], ANCHORS)
    valid = targets["classes"] >= 0
    for module, class_key, box_key, references in (
        ("arm", "arm_objectness", "arm_offsets", ANCHORS),
        ("odm", "odm_classes", "odm_offsets", refined),
    ):
        count = float(values[f"{module}_positives"])
        matches = match(references, targets["boxes"], valid, **HALVES)[0].numpy()[0]
        for anchor, box in enumerate(matches):
            gradient = gradients[class_key][0, anchor].numpy()
            label = 0 if box < 0 else 1 if module == "arm" else 1 + targets["classes"][0, box]
            expected = slow.softmax(predictions[class_key][0, anchor])
            expected[label] -= 1
            if box >= 0 or gradient.any():
                np.testing.assert_allclose(gradient, expected / count, rtol=1e-4, atol=1e-6)
            difference = np.zeros(4)
            if box >= 0:
                target = slow.encode(targets["boxes"][0, box], np.asarray(references).reshape(-1, 4)[anchor])
                difference = np.clip(predictions[box_key][0, anchor] - target, -1, 1)
            np.testing.assert_allclose(gradients[box_key][0, anchor], difference / count, rtol=1e-4, atol=2e-5)


def test_positives_the_arm_takes_for_background_stay_in_the_odm_loss_and_negatives_do_not():
    rng = np.random.default_rng(2)
    targets, predictions = random_targets(rng, [3, 2]), random_predictions(rng, 2)
    nothing = {**predictions, "arm_objectness": np.tile(np.float32([9, 0]), (2, len(ANCHORS), 1))}
    assert (objectness(nothing).numpy() < 0.01).all()
    values, gradients = values_and_gradients(RefineDetLoss(), targets, nothing, ODM)

    refined = refine_anchors(predictions["arm_offsets"], ANCHORS)
    matches = match(refined, targets["boxes"], targets["classes"] >= 0, **HALVES)[0].numpy()
    positives = matches >= 0
    assert values["odm_positives"] == positives.sum() > 0
    np.testing.assert_array_equal(gradients["odm_classes"].numpy().any(axis=-1), positives)
    labels = 1 + np.take_along_axis(targets["classes"], np.maximum(matches, 0), axis=1)[positives]
    own = [slow.cross_entropy(*pair) for pair in zip(predictions["odm_classes"][positives], labels, strict=True)]
    np.testing.assert_allclose(values["odm_class_loss"], np.sum(own) / positives.sum(), rtol=1e-5)

    # The ARM's own loss has no such filter: three negatives for each positive.
    _, gradients = values_and_gradients(RefineDetLoss(), targets, nothing, ARM)
    used = gradients["arm_objectness"].numpy().any(axis=-1).sum()
    assert used == 4 * values["arm_positives"]


def test_anchor_exactly_at_the_objectness_threshold_is_still_a_candidate():
    rng = np.random.default_rng(3)
    targets, predictions = random_targets(rng, [3]), random_predictions(rng, 1)
    predictions["arm_objectness"][:] = 0.25  # objectness exactly one half
    at = RefineDetLoss(objectness_threshold=0.5)(targets, predictions, ANCHORS)
    above = RefineDetLoss(objectness_threshold=0.5001)(targets, predictions, ANCHORS)
    unfiltered = RefineDetLoss(objectness_threshold=0.0)(targets, predictions, ANCHORS)
    assert at["odm_class_loss"] == unfiltered["odm_class_loss"] > above["odm_class_loss"]


def test_each_image_mines_for_its_own_positives():
    """One image has a much higher background loss; it must not take the other's negatives."""
    rng = np.random.default_rng(4)
    targets, predictions = random_targets(rng, [2, 4]), random_predictions(rng, 2)
    predictions["arm_objectness"][1] += np.float32([0, 6])
    valid = targets["classes"] >= 0
    positives = (match(ANCHORS, targets["boxes"], valid, **HALVES)[0].numpy() >= 0).sum(axis=1)
    _, gradients = values_and_gradients(RefineDetLoss(), targets, predictions, ["arm_objectness_loss"])
    np.testing.assert_array_equal(gradients["arm_objectness"].numpy().any(axis=-1).sum(axis=1), 4 * positives)


def test_fraction_of_a_negative_is_not_mined():
    rng = np.random.default_rng(4)
    targets, predictions = random_targets(rng, [3]), random_predictions(rng, 1)
    loss = RefineDetLoss(negative_ratio=0.8)
    values, gradients = values_and_gradients(loss, targets, predictions, ["arm_objectness_loss"])
    assert values["arm_positives"] == 6  # which asks for 4.8 negatives
    assert gradients["arm_objectness"].numpy().any(axis=-1).sum() == 6 + 4


def test_batch_without_objects_has_losses_and_gradients_of_exactly_zero():
    rng = np.random.default_rng(5)
    targets, predictions = random_targets(rng, [0, 0]), random_predictions(rng, 2)
    predictions["arm_offsets"][0, 0] = 60.0  # far out, but finite
    values, gradients = values_and_gradients(RefineDetLoss(), targets, predictions)
    assert {name: float(value) for name, value in values.items()} == dict.fromkeys((*LOSS_NAMES, *COUNT_NAMES), 0.0)
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, np.zeros_like(predictions[name]))


def test_objects_out_of_reach_of_every_anchor_count_as_none():
    predictions = random_predictions(np.random.default_rng(6), 1)
    targets = {"boxes": np.float32([[[8, 8, 9, 9]]]), "classes": np.int32([[0]])}
    values, gradients = values_and_gradients(RefineDetLoss(), targets, predictions)
    assert all(float(value) == 0.0 for value in values.values())
    assert not any(gradient.numpy().any() for gradient in gradients.values())


def test_image_without_objects_adds_nothing_to_the_others():
    rng = np.random.default_rng(6)
    targets, predictions = random_targets(rng, [3, 0, 2]), random_predictions(rng, 3)
    values, gradients = values_and_gradients(RefineDetLoss(), targets, predictions)
    others = [0, 2]
    expected, expected_gradients = values_and_gradients(
        RefineDetLoss(),
        {name: value[others] for name, value in targets.items()},
        {name: value[others] for name, value in predictions.items()},
    )
    assert_equal_values(values, expected, rtol=1e-6)
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient[1], np.zeros_like(gradient[1]))
        np.testing.assert_allclose(gradient.numpy()[others], expected_gradients[name], rtol=1e-5, atol=1e-8)


def test_losses_are_sums_over_positives_not_means_over_images():
    """The same image twice: twice the sums over twice the positives."""
    rng = np.random.default_rng(7)
    targets, predictions = random_targets(rng, [4]), random_predictions(rng, 1)
    once = RefineDetLoss()(targets, predictions, ANCHORS)
    twice = RefineDetLoss()(
        {name: np.repeat(value, 2, axis=0) for name, value in targets.items()},
        {name: np.repeat(value, 2, axis=0) for name, value in predictions.items()},
        ANCHORS,
    )
    expected = {**once, **{name: 2 * once[name] for name in COUNT_NAMES}}
    assert_equal_values(twice, expected)


def test_more_padding_and_another_order_of_images_or_objects_change_nothing():
    rng = np.random.default_rng(8)
    targets, predictions = random_targets(rng, [3, 6, 1]), random_predictions(rng, 3)
    expected = RefineDetLoss()(targets, predictions, ANCHORS)
    padded = {
        "boxes": np.pad(targets["boxes"], [(0, 0), (2, 5), (0, 0)], constant_values=-1),
        "classes": np.pad(targets["classes"], [(0, 0), (2, 5)], constant_values=-1),
    }
    assert_equal_values(RefineDetLoss()(padded, predictions, ANCHORS), expected, rtol=1e-6)
    images = [2, 0, 1]
    moved = {name: value[images] for name, value in targets.items()}
    moved_predictions = {name: value[images] for name, value in predictions.items()}
    assert_equal_values(RefineDetLoss()(moved, moved_predictions, ANCHORS), expected)
    objects = {name: value[:, ::-1] for name, value in targets.items()}
    assert_equal_values(RefineDetLoss()(objects, predictions, ANCHORS), expected)


def test_class_of_padding_decides_not_its_box():
    rng = np.random.default_rng(9)
    targets, predictions = random_targets(rng, [3, 2]), random_predictions(rng, 2)
    expected = RefineDetLoss()(targets, predictions, ANCHORS)
    tempting = {
        **targets,
        "boxes": np.where(targets["classes"][..., None] < 0, ANCHORS[100], targets["boxes"]),
    }
    assert pairwise_iou(tempting["boxes"][0], ANCHORS[100:101]).numpy().max() == 1
    assert_equal_values(RefineDetLoss()(tempting, predictions, ANCHORS), expected, rtol=1e-6)


def test_eager_graph_and_compiled_losses_and_gradients_agree():
    rng = np.random.default_rng(10)
    targets, predictions = random_targets(rng, [3, 0, 6]), random_predictions(rng, 3)
    targets = {name: tf.constant(value) for name, value in targets.items()}
    predictions = {name: tf.constant(value) for name, value in predictions.items()}

    def run(targets, predictions):
        return values_and_gradients(RefineDetLoss(), targets, predictions)

    expected, expected_gradients = run(targets, predictions)
    for jit_compile in (False, True):
        values, gradients = tf.function(run, jit_compile=jit_compile)(targets, predictions)
        assert_equal_values(values, expected)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(gradient, expected_gradients[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_smooth_l1_bends_at_one():
    differences = tf.constant([-3.0, -1.0, -0.5, 0.0, 0.25, 1.0, 2.0])
    np.testing.assert_array_equal(
        losses_module.smooth_l1(differences), np.float32([2.5, 0.5, 0.125, 0, 0.03125, 0.5, 1.5])
    )
    with tf.GradientTape() as tape:
        tape.watch(differences)
        total = tf.reduce_sum(losses_module.smooth_l1(differences))
    np.testing.assert_array_equal(tape.gradient(total, differences), np.float32([-1, -1, -0.5, 0, 0.25, 1, 1]))
