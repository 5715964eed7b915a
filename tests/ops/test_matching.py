import time

import numpy as np
import pytest
import tensorflow as tf

from refinedet_tf.ops import matching
from refinedet_tf.ops.anchors import generate_anchors
from refinedet_tf.ops.boxes import pairwise_iou
from tests import slow_reference as slow

HALVES = {"positive_iou": 0.5, "negative_iou": 0.5}


def match_overlaps(monkeypatch, overlaps, positive_iou=0.5, negative_iou=0.5, valid=None):
    """`match` on overlaps `[b, m, n]` that no boxes have to be found for."""
    overlaps = np.asarray(overlaps, np.float32)
    batch, num_boxes, num_anchors = overlaps.shape
    monkeypatch.setattr(matching, "pairwise_iou", lambda boxes, references: tf.constant(overlaps))
    valid = np.ones([batch, num_boxes], bool) if valid is None else valid
    references, boxes = np.zeros([num_anchors, 4], np.float32), np.zeros([batch, num_boxes, 4], np.float32)
    matches, negatives = matching.match(references, boxes, valid, positive_iou=positive_iou, negative_iou=negative_iou)
    return matches.numpy(), negatives.numpy()


def assert_is_greedy(overlaps, matches, negatives, positive_iou=0.5, negative_iou=0.5, valid=None):
    """Compares with the sequential rule on the valid boxes of each image."""
    for image in range(len(overlaps)):
        rows = np.arange(overlaps.shape[1]) if valid is None else np.flatnonzero(valid[image])
        expected, free = slow.match(overlaps[image][rows].T, positive_iou, negative_iou)
        np.testing.assert_array_equal(matches[image], [rows[box] if box >= 0 else -1 for box in expected])
        np.testing.assert_array_equal(negatives[image], free)


def test_example_in_which_two_boxes_want_the_same_anchor(monkeypatch):
    overlaps = [[[0.6, 0.4, 0.2], [0.7, 0.3, 0.55]]]
    matches, negatives = match_overlaps(monkeypatch, overlaps)
    np.testing.assert_array_equal(matches, [[1, 0, 1]])
    assert not negatives.any()


def test_equal_overlaps_go_to_the_lowest_anchor_then_the_lowest_box(monkeypatch):
    matches, _ = match_overlaps(monkeypatch, [[[0.3, 0.3, 0.3, 0.3], [0.3, 0.3, 0.3, 0.3]]])
    np.testing.assert_array_equal(matches, [[0, 1, -1, -1]])
    matches, _ = match_overlaps(monkeypatch, [[[0.6, 0.6, 0.6, 0.6], [0.6, 0.6, 0.6, 0.6]]])
    np.testing.assert_array_equal(matches, [[0, 1, 0, 0]])


def test_threshold_is_met_by_an_equal_overlap(monkeypatch):
    below = np.nextafter(np.float32(0.5), np.float32(0))
    matches, negatives = match_overlaps(monkeypatch, [[[0.9, 0.5, below, 0.0]]])
    np.testing.assert_array_equal(matches, [[0, 0, -1, -1]])
    np.testing.assert_array_equal(negatives, [[False, False, True, True]])


def test_overlap_of_a_millionth_is_none(monkeypatch):
    matches, negatives = match_overlaps(monkeypatch, [[[1e-6, 0, 0], [0, 1.1e-6, 0]]])
    np.testing.assert_array_equal(matches, [[-1, 1, -1]])
    np.testing.assert_array_equal(negatives, [[True, False, True]])


def test_zone_between_the_two_thresholds_is_ignored(monkeypatch):
    overlaps = [[[0.75, 0.7, 0.69, 0.3, 0.29, 0.0]]]
    matches, negatives = match_overlaps(monkeypatch, overlaps, 0.7, 0.3)
    np.testing.assert_array_equal(matches, [[0, 0, -1, -1, -1, -1]])
    np.testing.assert_array_equal(negatives, [[False, False, False, False, True, True]])


@pytest.mark.parametrize("thresholds", [(0.5, 0.5), (0.7, 0.3)])
@pytest.mark.parametrize("steps", [3, 8, 100, None])
def test_random_overlaps_match_as_in_the_sequential_rule(monkeypatch, steps, thresholds):
    """`steps` different overlaps: the fewer, the more ties."""
    rng = np.random.default_rng(steps)
    for num_boxes, num_anchors in [(1, 1), (1, 7), (4, 4), (5, 30), (9, 5), (12, 3)]:
        overlaps = rng.uniform(0, 1, (12, num_boxes, num_anchors))
        overlaps *= rng.uniform(size=overlaps.shape) < 0.6
        if steps:
            overlaps = np.floor(overlaps * steps) / steps
        overlaps = overlaps.astype(np.float32)
        valid = rng.uniform(size=(12, num_boxes)) < 0.7
        matches, negatives = match_overlaps(monkeypatch, overlaps, *thresholds, valid)
        assert_is_greedy(overlaps, matches, negatives, *thresholds, valid)


def grid_boxes(rng, batch, count, side):
    """Boxes on a coarse integer grid, whose overlaps tie to the last bit."""
    corners = rng.integers(0, side, (batch, count, 2))
    return np.concatenate([corners, corners + rng.integers(1, 4, (batch, count, 2))], axis=-1).astype(np.float32)


@pytest.mark.parametrize("seed", range(6))
def test_random_boxes_with_padding_anywhere_match_as_in_the_sequential_rule(seed):
    rng = np.random.default_rng(seed)
    references, boxes = grid_boxes(rng, 8, 40, 8), grid_boxes(rng, 8, 10, 8)
    boxes[0, 3] = [50, 50, 60, 60]  # overlaps nothing
    valid = rng.uniform(size=(8, 10)) < 0.6
    valid[0, 3], valid[1], valid[2] = True, True, False
    boxes[~valid] = -1
    matches, negatives = matching.match(references, boxes, valid, **HALVES)
    overlaps = np.stack([slow.iou_matrix(*pair).T for pair in zip(references, boxes, strict=True)])
    assert_is_greedy(overlaps, matches.numpy(), negatives.numpy(), valid=valid)
    assert 3 not in matches[0].numpy()
    # Without objects: nothing is matched and everything is background.
    assert (matches[2].numpy() == -1).all() and negatives[2].numpy().all()


def test_padding_that_looks_like_a_box_is_not_matched():
    boxes = np.array([[[0, 0, 1, 1], [0, 0, 1, 1]]], np.float32)
    matches, _ = matching.match(boxes[0, :1], boxes, np.array([[False, True]]), **HALVES)
    np.testing.assert_array_equal(matches, [[1]])


@pytest.mark.parametrize("thresholds", [(0.5, 0.5), (0.7, 0.3)])
def test_ignored_boxes_take_anchors_out_as_in_the_sequential_rule(thresholds):
    rng = np.random.default_rng(5)
    references, boxes = grid_boxes(rng, 12, 60, 6), grid_boxes(rng, 12, 8, 6)
    kinds = rng.choice([0, -1, -2], (12, 8), p=[0.4, 0.2, 0.4])
    matches, negatives = matching.match(
        references,
        boxes,
        kinds == 0,
        positive_iou=thresholds[0],
        negative_iou=thresholds[1],
        ignored=kinds == -2,
    )
    matches, negatives = matches.numpy(), negatives.numpy()
    excluded = 0
    for image in range(12):
        overlaps = slow.iou_matrix(references[image], boxes[image])
        rows, ignored = np.flatnonzero(kinds[image] == 0), np.flatnonzero(kinds[image] == -2)
        expected, free = slow.match(overlaps[:, rows], *thresholds, overlaps[:, ignored])
        np.testing.assert_array_equal(matches[image], [rows[box] if box >= 0 else -1 for box in expected])
        np.testing.assert_array_equal(negatives[image], free)
        # What ignored boxes do: never a match, and where they overlap most no negative either.
        assert not np.isin(matches[image], ignored).any()
        covered = overlaps[:, ignored].max(axis=1, initial=0) >= 0.5
        out = covered & (overlaps[:, ignored].max(axis=1, initial=0) > overlaps[:, rows].max(axis=1, initial=0))
        assert not negatives[image][out].any()
        excluded += (out & (matches[image] < 0)).sum()
    assert excluded > 20


def test_two_thousand_boxes_are_matched_within_seconds():
    """Compared with the sequential rule on pairs sorted by overlap, which looks at each pair only once."""
    rng = np.random.default_rng(0)
    anchors = generate_anchors((320, 320), (32, 64, 128, 256))
    sizes, centers = rng.uniform(0.02, 0.2, (2000, 2)), rng.uniform(0, 1, (2000, 2))
    boxes = np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=-1).astype(np.float32)
    iou = pairwise_iou(boxes, anchors)
    start = time.process_time()  # other processes do not count
    matches = matching.bipartite_match(iou[tf.newaxis]).numpy()[0]
    assert time.process_time() - start < 30  # 1 s of one core; one pair at a time took minutes

    iou = iou.numpy()
    pairs_of_boxes, pairs_of_anchors = np.nonzero(iou > 1e-6)
    order = np.lexsort((pairs_of_boxes, pairs_of_anchors, -iou[pairs_of_boxes, pairs_of_anchors]))
    expected, served = np.full(len(anchors), -1), np.zeros(2000, bool)
    for box, anchor in zip(pairs_of_boxes[order], pairs_of_anchors[order], strict=True):
        if not served[box] and expected[anchor] < 0:
            expected[anchor], served[box] = box, True
    np.testing.assert_array_equal(matches, expected)


@pytest.mark.parametrize(("num_boxes", "num_anchors"), [(6, 40), (15, 40), (20, 8)])
def test_bipartite_is_one_to_one_and_serves_every_box_that_overlaps_a_free_anchor(num_boxes, num_anchors):
    rng = np.random.default_rng(num_boxes)
    overlaps = rng.uniform(0, 1, (20, num_boxes, num_anchors)).astype(np.float32)
    overlaps *= rng.uniform(size=overlaps.shape) < 0.3
    for image, matches in zip(overlaps, matching.bipartite_match(overlaps).numpy(), strict=True):
        served = matches[matches >= 0]
        assert len(set(served)) == len(served)
        for box in set(range(num_boxes)) - set(served):
            assert image[box][matches < 0].max(initial=0) <= 1e-6, "a free anchor overlaps an unserved box"


def test_chain_in_which_each_box_waits_for_the_one_before_it():
    """Each box likes its predecessor's anchor best and loses it, so every round settles one box only."""
    count = 12
    overlaps = np.zeros([1, count, count], np.float32)
    for box in range(count):
        overlaps[0, box, box] = 0.9 - 0.06 * box
        overlaps[0, box, box - 1 : box] = 0.93 - 0.06 * box
    np.testing.assert_array_equal(matching.bipartite_match(overlaps), [range(count)])
    assert slow.bipartite(overlaps[0].T) == list(range(count))


def test_compiled_matching_equals_eager_matching():
    rng = np.random.default_rng(0)
    references, boxes = grid_boxes(rng, 4, 30, 6), grid_boxes(rng, 4, 7, 6)
    valid = rng.uniform(size=(4, 7)) < 0.7
    eager = matching.match(references, boxes, valid, **HALVES)
    for jit_compile in (False, True):
        compiled = tf.function(matching.match, jit_compile=jit_compile)
        for expected, value in zip(eager, compiled(references, boxes, valid, **HALVES), strict=True):
            np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("steps", [1, 4, None])
def test_mining_takes_the_highest_losses_of_each_image(steps):
    rng = np.random.default_rng(steps)
    losses = rng.exponential(1.0, (40, 25))
    if steps:
        losses = np.floor(losses * steps) / steps  # many ties, many exact zeros
    losses = losses.astype(np.float32)
    candidates = rng.uniform(size=losses.shape) < rng.uniform(size=(40, 1))
    counts = rng.integers(0, 30, 40).astype(np.int32)
    assert (counts > candidates.sum(axis=1)).any()
    mined = matching.mine_hard_negatives(losses, candidates, counts).numpy()
    for image in range(40):
        expected = slow.mine(losses[image], candidates[image], counts[image])
        np.testing.assert_array_equal(np.flatnonzero(mined[image]), sorted(expected))
