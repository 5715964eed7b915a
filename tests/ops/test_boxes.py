import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from refinedet_tf.ops import boxes as ops
from tests import slow_reference as slow


def random_boxes(rng, *shape):
    centers, sizes = rng.uniform(-0.2, 1.2, (*shape, 2)), rng.uniform(0.01, 0.8, (*shape, 2))
    return np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=-1).astype(np.float32)


def test_golden_example_of_the_cascade():
    anchor = tf.constant([[0.4, 0.4, 0.6, 0.6]])
    truth = tf.constant([[0.35, 0.42, 0.65, 0.70]])
    np.testing.assert_allclose(ops.encode_boxes(truth, anchor), [[0, 3, 2.027326, 1.682361]], atol=2e-6)
    refined = ops.decode_boxes(tf.constant([[0.5, 1, 0.5, -0.25]]), anchor)
    np.testing.assert_allclose(refined, [[0.399483, 0.424877, 0.620517, 0.615123]], atol=6e-7)
    np.testing.assert_allclose(ops.encode_boxes(truth, refined), [[-0.452419, 2.102542, 1.527326, 1.932361]], atol=2e-6)


side = st.floats(0.0009765625, 2.0, width=32)
center = st.floats(-1.0, 2.0, width=32)
boxes = st.tuples(center, center, side, side).map(
    lambda b: np.array([b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2], np.float32)
)


@settings(max_examples=60, deadline=None)
@given(boxes, boxes)
def test_decode_is_the_inverse_of_encode(box, reference):
    decoded = ops.decode_boxes(ops.encode_boxes(box, reference), reference)
    # A side of 0.001 between coordinates around 2 has few bits left, and the offset multiplies the loss.
    np.testing.assert_allclose(decoded, box, atol=5e-6, rtol=2e-5)


@settings(max_examples=60, deadline=None)
@given(boxes, st.tuples(*[st.floats(-8, 8, width=32)] * 4))
def test_encode_is_the_inverse_of_decode(reference, offsets):
    expected = np.array(offsets, np.float32)
    decoded = ops.decode_boxes(expected, reference)
    recovered = ops.encode_boxes(decoded, reference)
    # The rounding of a corner, about 4e-7, counts relative to the smallest side, divided by the variance.
    decoded = decoded.numpy()
    smallest = min(reference[2] - reference[0], reference[3] - reference[1], *(decoded[2:] - decoded[:2]))
    np.testing.assert_allclose(recovered, expected, atol=4e-6 / smallest + 1e-4)


def test_coding_equals_one_box_at_a_time():
    rng = np.random.default_rng(0)
    first, references = random_boxes(rng, 200), random_boxes(rng, 200)
    offsets = rng.normal(0, 2, (200, 4)).astype(np.float32)
    encoded = [slow.encode(*pair) for pair in zip(first, references, strict=True)]
    np.testing.assert_allclose(ops.encode_boxes(first, references), encoded, rtol=1e-5, atol=1e-4)
    decoded = [slow.decode(*pair) for pair in zip(offsets, references, strict=True)]
    np.testing.assert_allclose(ops.decode_boxes(offsets, references), decoded, rtol=1e-5, atol=1e-6)


def test_nothing_is_clipped_and_no_epsilon_added():
    far = ops.decode_boxes(tf.constant([[-100.0, 100.0, 20.0, 20.0]]), tf.constant([[0.0, 0.0, 1.0, 1.0]]))
    half = np.exp(4) / 2
    np.testing.assert_allclose(far, [[-9.5 - half, 10.5 - half, -9.5 + half, 10.5 + half]], rtol=1e-6)
    same = tf.constant([[0.25, 0.25, 0.5, 0.75]])
    np.testing.assert_array_equal(ops.encode_boxes(same, same), np.zeros([1, 4]))


def test_pairwise_iou_equals_one_pair_at_a_time():
    rng = np.random.default_rng(1)
    first, second = random_boxes(rng, 30), random_boxes(rng, 17)
    overlaps = ops.pairwise_iou(first, second)
    assert (overlaps.numpy() > 0).sum() > 50
    np.testing.assert_allclose(overlaps, slow.iou_matrix(first, second), rtol=1e-5, atol=1e-7)


def test_iou_of_a_box_with_itself_its_half_and_a_neighbour():
    box = tf.constant([[0.0, 0.0, 0.5, 0.5]])
    others = tf.constant([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.25, 0.5], [0.5, 0.0, 1.0, 0.5], [0.25, 0.25, 0.75, 0.75]])
    np.testing.assert_array_equal(ops.pairwise_iou(box, others), np.array([[1, 0.5, 0, 1 / 7]], np.float32))


@pytest.mark.parametrize("nothing", [(-1, -1, -1, -1), (0.5, 0.5, 0.5, 0.5), (0.2, 0.3, 0.2, 0.9), (0, 0, 0, 0)])
def test_padding_and_boxes_without_area_overlap_nothing_not_even_themselves(nothing):
    rng = np.random.default_rng(2)
    empty = np.array([nothing], np.float32)
    others = np.concatenate([random_boxes(rng, 20), empty, [[-2, -2, 2, 2]]]).astype(np.float32)
    np.testing.assert_array_equal(ops.pairwise_iou(others, empty), np.zeros([22, 1]))


def test_leading_dimensions_broadcast():
    rng = np.random.default_rng(3)
    batch, shared = random_boxes(rng, 3, 5), random_boxes(rng, 8)
    overlaps = ops.pairwise_iou(batch, shared)
    assert overlaps.shape == (3, 5, 8)
    for index in range(3):
        np.testing.assert_array_equal(overlaps[index], ops.pairwise_iou(batch[index], shared))
    np.testing.assert_array_equal(ops.pairwise_iou(shared, batch), tf.transpose(overlaps, [0, 2, 1]))
