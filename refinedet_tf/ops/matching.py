"""Which anchor answers for which ground-truth box, and which negatives are hard.

Everything is batched with static shapes: `n` anchors, `m` ground-truth boxes of which some are padding.
"""

import tensorflow as tf

from refinedet_tf.ops.boxes import pairwise_iou

# Pairs that overlap less do not count as overlapping (the original implementation's constant).
MIN_OVERLAP = 1e-6


def match(
    references: tf.Tensor, boxes: tf.Tensor, valid: tf.Tensor, positive_iou: float, negative_iou: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Matches reference boxes to ground truth: first one to one, then by overlap (section 3.3).

    1. Bipartite: the pair with the largest overlap of all is matched and both are taken out, until no box is left that
       overlaps a free reference box. Equal overlaps: the lowest reference index first, then the lowest box.
    2. Every reference box still free takes the box it overlaps most if their IoU is at least `positive_iou`.

    Args:
        references: float32 `[n, 4]` or `[b, n, 4]`: anchors, or the refined anchors of each image.
        boxes: float32 `[b, m, 4]` ground truth.
        valid: bool `[b, m]`, False for padding.
        positive_iou: IoU from which a reference box is matched in the second step.
        negative_iou: IoU below which an unmatched reference box is a negative.

    Returns:
        `matches`, int32 `[b, n]`: index of the matched ground-truth box, -1 for none; `negatives`, bool `[b, n]`:
        unmatched, and every overlap below `negative_iou`.
    """
    # Anchors last: the reductions over them run along contiguous memory.
    iou = tf.where(valid[:, :, tf.newaxis], pairwise_iou(boxes, references), 0.0)
    best_iou = tf.reduce_max(iou, axis=1)
    best_box = tf.argmax(iou, axis=1, output_type=tf.int32)
    forced = bipartite_match(iou)
    matches = tf.where((forced < 0) & (best_iou >= positive_iou), best_box, forced)
    return matches, (matches < 0) & (best_iou < negative_iou)


def bipartite_match(iou: tf.Tensor) -> tf.Tensor:
    """Greedy one-to-one matching: repeatedly takes the largest remaining overlap.

    Instead of one pair at a time, each round takes every pair that is the best one of both its box and its anchor.
    No other pair could take either partner away from it, so the result is that of the sequential greedy rule; a few
    rounds suffice where that rule needs one for every box.

    Args:
        iou: float32 `[b, m, n]`, overlaps of `m` boxes with `n` anchors; 0 for padding.

    Returns:
        int32 `[b, n]`: the box each anchor is matched to, -1 for none. Ties: the lowest anchor, then the lowest box.
    """
    num_boxes, num_anchors = tf.shape(iou)[1], iou.shape[2]  # ragged targets have a number of boxes at run time only
    box_indices = tf.range(num_boxes, dtype=tf.int32)

    def one_round(iou: tf.Tensor, matches: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        best_anchor = tf.argmax(iou, axis=2, output_type=tf.int32)  # [b, m]
        # Overlaps of every box with the anchors that some box likes best: [b, m boxes, m anchors].
        rivals = tf.gather(iou, best_anchor, axis=2, batch_dims=1)
        mutual = tf.argmax(rivals, axis=1, output_type=tf.int32) == box_indices
        mutual &= tf.reduce_max(iou, axis=2) > MIN_OVERLAP
        chosen = tf.one_hot(tf.where(mutual, best_anchor, -1), num_anchors, on_value=True, off_value=False)
        matches = tf.where(
            tf.reduce_any(chosen, axis=1), tf.argmax(tf.cast(chosen, tf.int32), axis=1, output_type=tf.int32), matches
        )
        taken = mutual[:, :, tf.newaxis] | tf.reduce_any(chosen, axis=1, keepdims=True)
        return tf.where(taken, 0.0, iou), matches

    matches = tf.fill([tf.shape(iou)[0], num_anchors], -1)
    _, matches = tf.while_loop(
        cond=lambda iou, matches: tf.reduce_any(iou > MIN_OVERLAP),
        body=one_round,
        loop_vars=(iou, matches),
        maximum_iterations=num_boxes,
    )
    return matches


def mine_hard_negatives(losses: tf.Tensor, candidates: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
    """The candidates with the highest losses, image by image (section 3.3, hard negative mining).

    Args:
        losses: float32 `[b, n]`, background classification loss of each anchor.
        candidates: bool `[b, n]`, the negatives that may be taken.
        counts: int32 `[b]`, how many to take; all candidates where there are fewer.

    Returns:
        bool `[b, n]`. Equal losses: the lowest index first.
    """
    ranking = tf.where(candidates, losses, -1.0)  # a loss is never negative
    order = tf.argsort(ranking, axis=1, direction="DESCENDING", stable=True)
    rank = tf.argsort(order, axis=1, stable=True)
    return candidates & (rank < counts[:, tf.newaxis])
