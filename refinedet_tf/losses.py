"""The losses of both modules (paper, section 3.3)."""

import tensorflow as tf

from refinedet_tf.config import ModelConfig
from refinedet_tf.ops import boxes as box_ops
from refinedet_tf.ops.detections import objectness, refine_anchors
from refinedet_tf.ops.matching import match, mine_hard_negatives

# The ODM's matching threshold; the ARM's two are settings of the recipe.
ODM_IOU = 0.5

LOSS_NAMES = ("arm_objectness_loss", "arm_box_loss", "odm_class_loss", "odm_box_loss")
COUNT_NAMES = ("arm_positives", "odm_positives")


class RefineDetLoss:
    """The losses of the anchor refinement module and of the object detection module.

    Each module m has `L_m = (1 / max(1, N_m)) * (sum of cross-entropies + sum of smooth L1)`, where `N_m` counts the
    positives of the whole batch. Cross-entropy runs over the positives and the hard negatives (`negative_ratio` a
    positive of the same image), smooth L1 over the four offsets of the positives. The training loss is the sum of all
    four terms. The ARM is trained on the anchors and two classes, the ODM on the refined anchors and all classes.

    Images without objects contribute nothing, not even negatives. No gradient flows through the refined anchors or the
    objectness that the ODM's targets are made of.
    """

    def __init__(
        self,
        arm_positive_iou: float = 0.5,
        arm_negative_iou: float = 0.5,
        objectness_threshold: float = 0.01,
        negative_ratio: float = 3.0,
        two_step_regression: bool = True,
    ):
        """The defaults are the paper's; see `ModelConfig` for each."""
        self.arm_positive_iou = arm_positive_iou
        self.arm_negative_iou = arm_negative_iou
        self.objectness_threshold = objectness_threshold
        self.negative_ratio = negative_ratio
        self.two_step_regression = two_step_regression

    @classmethod
    def from_config(cls, config: ModelConfig) -> "RefineDetLoss":
        """The loss as a recipe's `model` section sets it."""
        return cls(
            config.arm_positive_iou,
            config.arm_negative_iou,
            config.objectness_threshold,
            config.negative_ratio,
            config.two_step_regression,
        )

    def __call__(
        self, targets: dict[str, tf.Tensor], predictions: dict[str, tf.Tensor], anchors: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Computes the losses of a batch.

        Args:
            targets: `boxes` float `[b, m, 4]`, relative; `classes` `[b, m]` from 0. Rows with class -1 are padding.
            predictions: the model's raw predictions: `arm_objectness` `[b, n, 2]`, `arm_offsets` `[b, n, 4]`,
                `odm_classes` `[b, n, 1 + c]`, `odm_offsets` `[b, n, 4]`.
            anchors: float32 `[n, 4]`.

        Returns:
            float32 scalars under `LOSS_NAMES` and the positives of the batch under `COUNT_NAMES`.
        """
        boxes = tf.cast(targets["boxes"], tf.float32)
        classes = tf.cast(targets["classes"], tf.int32)
        predictions = {name: tf.cast(value, tf.float32) for name, value in predictions.items()}
        valid = classes >= 0

        matches, negatives = match(anchors, boxes, valid, self.arm_positive_iou, self.arm_negative_iou)
        arm_objectness_loss, arm_box_loss, arm_positives = self._module_loss(
            logits=predictions["arm_objectness"],
            offsets=predictions["arm_offsets"],
            references=anchors,
            boxes=boxes,
            labels=tf.ones_like(classes),
            matches=matches,
            candidates=negatives,
        )
        if not self.two_step_regression:
            arm_box_loss = tf.zeros_like(arm_box_loss)

        refined = tf.stop_gradient(refine_anchors(predictions["arm_offsets"], anchors))
        matches, negatives = match(refined, boxes, valid, ODM_IOU, ODM_IOU)
        # The negative anchor filter takes easy background out of the mining; positives always stay.
        filtered = tf.stop_gradient(objectness(predictions)) < self.objectness_threshold
        odm_class_loss, odm_box_loss, odm_positives = self._module_loss(
            logits=predictions["odm_classes"],
            offsets=predictions["odm_offsets"],
            references=refined,
            boxes=boxes,
            labels=classes + 1,
            matches=matches,
            candidates=negatives & ~filtered,
        )
        return {
            "arm_objectness_loss": arm_objectness_loss,
            "arm_box_loss": arm_box_loss,
            "odm_class_loss": odm_class_loss,
            "odm_box_loss": odm_box_loss,
            "arm_positives": arm_positives,
            "odm_positives": odm_positives,
        }

    def _module_loss(
        self,
        logits: tf.Tensor,
        offsets: tf.Tensor,
        references: tf.Tensor,
        boxes: tf.Tensor,
        labels: tf.Tensor,
        matches: tf.Tensor,
        candidates: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Classification loss, box loss and number of positives of one module; `labels` `[b, m]` counts from 1."""
        positives = matches >= 0
        matched = tf.maximum(matches, 0)
        counts = tf.reduce_sum(tf.cast(positives, tf.float32), axis=1)

        anchor_labels = tf.where(positives, tf.gather(labels, matched, batch_dims=1), 0)
        cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=anchor_labels, logits=logits)
        # Wherever there is no positive the label is the background, so this is also the loss that ranks the negatives.
        hard_negatives = mine_hard_negatives(
            tf.stop_gradient(cross_entropy), candidates, tf.cast(tf.floor(self.negative_ratio * counts), tf.int32)
        )
        classification = tf.reduce_sum(tf.where(positives | hard_negatives, cross_entropy, 0.0))

        # Unmatched references are encoded against themselves, which keeps the logarithm finite under the mask.
        own = positives[..., tf.newaxis]
        targets = box_ops.encode(tf.where(own, tf.gather(boxes, matched, batch_dims=1), references), references)
        regression = tf.reduce_sum(tf.where(own, smooth_l1(offsets - tf.stop_gradient(targets)), 0.0))

        total = tf.reduce_sum(counts)
        normalizer = tf.maximum(total, 1.0)
        return classification / normalizer, regression / normalizer, total


def smooth_l1(difference: tf.Tensor) -> tf.Tensor:
    """`0.5 d^2` where `|d| < 1`, else `|d| - 0.5`, element by element."""
    magnitude = tf.abs(difference)
    return tf.where(magnitude < 1.0, 0.5 * tf.square(difference), magnitude - 0.5)
