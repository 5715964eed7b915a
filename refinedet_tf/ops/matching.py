"""Matching of anchors to ground-truth boxes, and hard negative mining.

Everything is batched with static shapes: `n` anchors and `m` rows of ground truth, some of which are padding. Time and
memory of matching grow with `b m n`.
"""

import tensorflow as tf

from refinedet_tf.ops.boxes import pairwise_iou

# Pairs that overlap less do not count as overlapping (the original implementation's constant).
MIN_OVERLAP = 1e-6
# An anchor that overlaps an ignored box by this much, and no other box by more, takes no part in the losses.
IGNORED_IOU = 0.5


def match(
    references: tf.Tensor,
    boxes: tf.Tensor,
    valid: tf.Tensor,
    *,
    positive_iou: float,
    negative_iou: float,
    ignored: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Matches reference boxes to ground truth: first one to one, then by overlap (section 3.3).

    1. Bipartite: the pair with the largest overlap of all is matched and both are taken out, until no box is left that
       overlaps a free reference box. Equal overlaps: the lowest reference index first, then the lowest box.
    2. Each free reference box takes the box it overlaps most if their IoU is at least `positive_iou`, unless it
       overlaps an ignored box even more and by at least `IGNORED_IOU`. Then it is neither a match nor a negative.

    Args:
        references: float32 `[n, 4]` or `[b, n, 4]`: anchors, or the refined anchors of each image.
        boxes: float32 `[b, m, 4]` ground truth.
        valid: bool `[b, m]`, False for padding and ignored boxes.
        positive_iou: IoU from which a reference box is matched in the second step.
        negative_iou: IoU below which an unmatched reference box is a negative.
        ignored: bool `[b, m]`, True for ignored boxes, which are never matched; None if there are none.

    Returns:
        `matches`, int32 `[b, n]`: index of the matched ground-truth box, -1 for none; `negatives`, bool `[b, n]`:
        unmatched, not ignored, and every overlap with a valid box below `negative_iou`.
    """
    # Anchors last: the reductions over them run along contiguous memory.
    iou = tf.where(valid[:, :, tf.newaxis], pairwise_iou(boxes, references), 0.0)
    best_iou = tf.reduce_max(iou, axis=1)
    best_box = tf.argmax(iou, axis=1, output_type=tf.int32)
    forced = bipartite_match(iou)
    takes_part = tf.ones_like(forced, tf.bool)
    if ignored is not None:
        ignored_iou = _best_iou_of_ignored(references, boxes, ignored, tf.zeros_like(best_iou))
        takes_part = (ignored_iou < IGNORED_IOU) | (ignored_iou <= best_iou)
    matches = tf.where((forced < 0) & (best_iou >= positive_iou) & takes_part, best_box, forced)
    return matches, (matches < 0) & (best_iou < negative_iou) & takes_part


def _best_iou_of_ignored(references: tf.Tensor, boxes: tf.Tensor, ignored: tf.Tensor, zeros: tf.Tensor) -> tf.Tensor:
    """The largest overlap of each reference box with an ignored box, `[b, n]`; `zeros` if no image has any."""
    return tf.cond(
        tf.reduce_any(ignored),
        lambda: tf.reduce_max(tf.where(ignored[:, :, tf.newaxis], pairwise_iou(boxes, references), 0.0), axis=1),
        lambda: zeros,
    )


def bipartite_match(iou: tf.Tensor) -> tf.Tensor:
    """Greedy one-to-one matching: repeatedly takes the largest remaining overlap.

    Instead of one pair at a time, each round takes every pair that is the best one of both its box and its anchor.
    No other pair could take either partner away from it, so the result is that of the sequential greedy rule. A few
    rounds suffice where that rule needs one for each box: 4 for 100 random boxes, 9 for 2,000.

    Everything runs on the device of `iou`. Without XLA, a GPU's loop asks the host once each round whether to go on,
    never once for each box.

    Args:
        iou: float32 `[b, m, n]`, overlaps of `m` boxes with `n` anchors; 0 for padding.

    Returns:
        int32 `[b, n]`: the box each anchor is matched to, -1 for none. Ties: the lowest anchor, then the lowest box.
    """
    num_anchors = iou.shape[2]
    batch_size, num_boxes = tf.shape(iou)[0], tf.shape(iou)[1]  # ragged targets: known at run time only
    images, boxes = tf.meshgrid(tf.range(batch_size), tf.range(num_boxes), indexing="ij")

    def best_anchors(iou: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The best anchor of each box, and whether it overlaps the box at all, both `[b, m]`."""
        anchors = tf.argmax(iou, axis=2, output_type=tf.int32)
        return anchors, tf.gather(iou, anchors, batch_dims=2) > MIN_OVERLAP

    def one_round(iou: tf.Tensor, anchors: tf.Tensor, overlaps: tf.Tensor, matches: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # Overlaps of every box with the best anchors of all: [b, m boxes, m anchors].
        rivals = tf.gather(iou, anchors, axis=2, batch_dims=1)
        mutual = overlaps & (tf.argmax(rivals, axis=1, output_type=tf.int32) == boxes)
        # Boxes that are not matched in this round write into a column of their own.
        columns = tf.where(mutual, anchors, num_anchors)
        updated = tf.tensor_scatter_nd_update(matches, tf.stack([images, columns], axis=-1), boxes)
        free_boxes = tf.cast(~mutual, tf.float32)[:, :, tf.newaxis]
        free_anchors = tf.cast(updated == matches, tf.float32)[:, tf.newaxis, :num_anchors]
        iou = tf.ensure_shape(iou * free_boxes * free_anchors, iou.shape)
        return iou, *best_anchors(iou), updated

    *_, matches = tf.while_loop(
        cond=lambda iou, anchors, overlaps, matches: tf.reduce_any(overlaps),
        body=one_round,
        loop_vars=(iou, *best_anchors(iou), tf.fill([batch_size, num_anchors + 1], -1)),
        maximum_iterations=num_boxes,
    )
    return matches[:, :num_anchors]


def mine_hard_negatives(losses: tf.Tensor, candidates: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
    """Selects the candidates with the highest losses of each image (section 3.3, hard negative mining).

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
