"""Soft suppression and voting beside slow direct implementations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refinedet_tf.evaluation.merging import soft_suppress, soft_vote, vote


def slow_iou(one, other):
    """IoU of boxes that include their last pixel."""
    width = min(one[2], other[2]) - max(one[0], other[0]) + 1
    height = min(one[3], other[3]) - max(one[1], other[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (one, other)]
    return width * height / (areas[0] + areas[1] - width * height)


def slow_soft_suppress(boxes, scores, iou_threshold, score_threshold):
    left = [(list(box), score) for box, score in zip(boxes, scores, strict=True)]
    kept = []
    while left:
        best = max(range(len(left)), key=lambda index: (left[index][1], -index))
        box, score = left.pop(best)
        kept.append((box, score))
        lowered = []
        for other, other_score in left:
            overlap = slow_iou(box, other)
            if overlap > iou_threshold:
                other_score *= 1 - overlap
            if other_score >= score_threshold:
                lowered.append((other, other_score))
        left = lowered
    return kept


def slow_vote(boxes, scores, score_threshold=None):
    left = sorted(zip(boxes.tolist(), scores.tolist(), strict=True), key=lambda entry: -entry[1])
    merged = []
    while left:
        top = left[0]
        group = [entry for number, entry in enumerate(left) if number == 0 or slow_iou(top[0], entry[0]) >= 0.45]
        left = [entry for entry in left if entry not in group]
        if len(group) == 1:
            merged.append(top)
            continue
        total = sum(score for _, score in group)
        corners = [sum(box[side] * score for box, score in group) / total for side in range(4)]
        merged.append((corners, max(score for _, score in group)))
        if score_threshold is not None:
            for box, score in group:
                lowered = score * (1 - slow_iou(top[0], box))
                if lowered >= score_threshold:
                    merged.append((box, lowered))
    return sorted(merged, key=lambda entry: -entry[1])


def random_boxes(seed):
    """Overlapping boxes on a coarse grid, so that equal boxes, equal overlaps and equal scores happen often."""
    rng = np.random.default_rng(seed)
    count = rng.integers(0, 14)
    corners = rng.integers(0, 5, (count, 2)) * 4
    boxes = np.concatenate([corners, corners + rng.integers(1, 5, (count, 2)) * 5 - 1], axis=1).astype(float)
    return boxes, rng.integers(1, 21, count) / 20


def assert_equal(result, expected):
    boxes, scores = result
    assert len(scores) == len(expected)
    np.testing.assert_allclose(scores, [score for _, score in expected], rtol=1e-12)
    np.testing.assert_allclose(boxes, np.array([box for box, _ in expected]).reshape(-1, 4), rtol=1e-12)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.25, 1 / 3, 0.5]), st.sampled_from([0.016, 0.05, 0.25]))
def test_soft_suppression_agrees_with_a_slow_direct_implementation(seed, iou_threshold, score_threshold):
    boxes, scores = random_boxes(seed)
    result = soft_suppress(boxes, scores, iou_threshold=iou_threshold, score_threshold=score_threshold)
    assert_equal(result, slow_soft_suppress(boxes, scores, iou_threshold, score_threshold))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_voting_agrees_with_a_slow_direct_implementation(seed):
    boxes, scores = random_boxes(seed)
    assert_equal(vote(boxes, scores), slow_vote(boxes, scores))
    assert_equal(soft_vote(boxes, scores, score_threshold=0.05), slow_vote(boxes, scores, 0.05))


def test_soft_suppression_by_hand():
    # 10 x 10 pixels; the second shares 5 x 10 of them: IoU 1/3. The third touches nothing.
    boxes = np.array([[0, 0, 9, 9], [5, 0, 14, 9], [50, 50, 59, 59]])
    scores = np.array([0.9, 0.6, 0.5])
    kept, lowered = soft_suppress(boxes, scores, iou_threshold=0.3, score_threshold=0.016)
    np.testing.assert_array_equal(kept, boxes[[0, 2, 1]])
    np.testing.assert_allclose(lowered, [0.9, 0.5, 0.4])
    # An overlap of exactly the threshold does nothing, a score of exactly the threshold stays.
    _, untouched = soft_suppress(boxes, scores, iou_threshold=50 / 150, score_threshold=0.016)
    np.testing.assert_array_equal(untouched, scores)
    half = np.array([[0, 0, 9, 9], [0, 0, 4, 9]])  # IoU exactly 1/2
    _, at_threshold = soft_suppress(half, np.array([0.9, 0.5]), iou_threshold=0.3, score_threshold=0.25)
    np.testing.assert_array_equal(at_threshold, [0.9, 0.25])
    _, below = soft_suppress(half, np.array([0.9, 0.5]), iou_threshold=0.3, score_threshold=0.2500001)
    np.testing.assert_array_equal(below, [0.9])


def test_an_overlap_of_exactly_the_voting_threshold_merges():
    # 9 x 10 of 200 pixels: 90 / 200 = 0.45.
    boxes = np.array([[0, 0, 19, 9], [0, 0, 8, 9]])
    merged, scores = vote(boxes, np.array([0.75, 0.25]))
    np.testing.assert_allclose(merged, [[0, 0, 0.75 * 19 + 0.25 * 8, 9]])
    np.testing.assert_array_equal(scores, [0.75])
    narrower = np.array([[0, 0, 19, 9], [0, 0, 7.99, 9]])
    assert len(vote(narrower, np.array([0.75, 0.25]))[1]) == 2


def test_soft_voting_keeps_the_members_with_lowered_scores():
    boxes = np.array([[0, 0, 9, 9], [0, 0, 4, 9], [0, 0, 9, 9]])  # IoU with the first: 1, 1/2, 1
    merged, scores = soft_vote(boxes, np.array([0.8, 0.4, 0.6]), score_threshold=0.2)
    mean = (0.8 * 9 + 0.4 * 4 + 0.6 * 9) / 1.8
    np.testing.assert_allclose(merged, [[0, 0, mean, 9], [0, 0, 4, 9]])
    np.testing.assert_allclose(scores, [0.8, 0.2])
    assert len(soft_vote(boxes, np.array([0.8, 0.4, 0.6]), score_threshold=0.2001)[1]) == 1


@pytest.mark.parametrize("combine", [vote, lambda boxes, scores: soft_vote(boxes, scores, score_threshold=0.05)])
def test_boxes_alone_stay_as_they_are(combine):
    boxes = np.array([[0, 0, 9, 9], [50, 50, 59, 59], [80, 0, 99, 9]])
    merged, scores = combine(boxes, np.array([0.2, 0.9, 0.5]))
    np.testing.assert_array_equal(merged, boxes[[1, 2, 0]])
    np.testing.assert_array_equal(scores, [0.9, 0.5, 0.2])
    assert combine(np.zeros([0, 4]), np.zeros(0))[0].shape == (0, 4)
