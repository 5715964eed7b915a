"""The losses of both modules (paper, section 3.3)."""

from dataclasses import asdict, dataclass, fields
from typing import Any

import tensorflow as tf
from tensorflow import keras

from refinedet_tf.config import NORMALIZE_POSITIVES, ODM_LOSSES, ModelConfig
from refinedet_tf.errors import ConfigError, DataError, did_you_mean
from refinedet_tf.ops import boxes as box_ops
from refinedet_tf.ops.detections import objectness, refine_anchors
from refinedet_tf.ops.matching import match, mine_hard_negatives
from refinedet_tf.ops.targets import IGNORED_CLASS, pad_targets

# The ODM's matching threshold; the ARM's two are settings of the recipe.
ODM_IOU = 0.5

LOSS_NAMES = ("arm_objectness_loss", "arm_box_loss", "odm_class_loss", "odm_box_loss")
COUNT_NAMES = ("arm_positives", "odm_positives")


@keras.utils.register_keras_serializable("refinedet_tf")
@dataclass(kw_only=True)
class RefineDetLoss:
    """The losses of the anchor refinement module and of the object detection module.

    Each module m has `L_m = (1 / max(1, N_m)) * (sum of classification losses + sum of smooth L1)`, where `N_m` counts
    the positives of the whole batch. The training loss is the sum of all four terms. The ARM is trained on the anchors
    and two classes, the ODM on the refined anchors and all classes. Smooth L1 runs over the four offsets of the
    positives.

    With `cross_entropy`, classification runs over the positives and the hard negatives (`negative_ratio` for each
    positive of the same image). Images without objects then contribute nothing, not even negatives.

    With `odm_loss="focal"`, the ODM's classification runs over its positives and all its negative candidates, in images
    without objects too, and nothing is mined. The focal loss of RetinaNet (Lin et al., ICCV 2017) is taken of the
    softmax: `-a (1 - p)^focal_gamma log p`, with `p` the probability of the anchor's class and `a` `focal_alpha` for
    objects, `1 - focal_alpha` for the background. For a single object class this is the sigmoid focal loss of the
    difference of both logits. The ARM's classification stays cross-entropy.

    No gradient flows through the refined anchors or the objectness that the ODM's targets are made of.

    Attributes:
        arm_positive_iou: see `ModelConfig`, as for all that follow but the last.
        arm_negative_iou: IoU below which an unmatched anchor may be a negative of the ARM.
        objectness_threshold: anchors whose ARM objectness is lower are no negatives of the ODM.
        negative_ratio: hard negatives for each positive of an image.
        two_step_regression: whether the ARM moves anchors; otherwise it has no box loss.
        odm_loss: `cross_entropy` with hard negative mining, or `focal`.
        focal_alpha: weight of objects in the focal loss.
        focal_gamma: exponent of the focal loss.
        normalize_positives: with several replicas, what `N_m` counts: `per_replica`, as in the original, the positives
            of the replica's own share of the batch; `global`, the positives of all replicas. Each replica's loss is
            then scaled so that the mean over replicas, which is what training follows, is the loss of the whole batch.

    Raises:
        ConfigError: an unknown `odm_loss` or `normalize_positives`.
    """

    arm_positive_iou: float = 0.5
    arm_negative_iou: float = 0.5
    objectness_threshold: float = 0.01
    negative_ratio: float = 3.0
    two_step_regression: bool = True
    odm_loss: str = "cross_entropy"
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    normalize_positives: str = "per_replica"

    def __post_init__(self):
        for name, known in (("odm_loss", ODM_LOSSES), ("normalize_positives", NORMALIZE_POSITIVES)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"{name} = {value!r}: must be one of {', '.join(known)}{did_you_mean(value, known)}.")

    @classmethod
    def for_model(cls, config: ModelConfig, **settings: Any) -> "RefineDetLoss":
        """Returns the loss that a recipe's `model` section describes, with further settings of the loss, if any."""
        shared = {field.name for field in fields(cls)} & {field.name for field in fields(ModelConfig)}
        return cls(**{name: getattr(config, name) for name in shared}, **settings)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RefineDetLoss":
        """Rebuilds the loss that returned `config` from `get_config`."""
        return cls(**config)

    def __call__(
        self,
        targets: dict[str, tf.Tensor],
        predictions: dict[str, tf.Tensor],
        anchors: tf.Tensor,
        sample_weight: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """Computes the losses of a batch.

        Args:
            targets: `boxes` float `[b, m, 4]`, relative; `classes` `[b, m]` from 0. Rows with class -1 are padding.
                Rows with class -2 are ignored objects: anchors that overlap one by IoU 0.5 or more, and no other object
                as much, take no part in the losses. Both may be ragged.
            predictions: the model's raw predictions: `arm_objectness` `[b, n, 2]`, `arm_offsets` `[b, n, 4]`,
                `odm_classes` `[b, n, 1 + c]`, `odm_offsets` `[b, n, 4]`.
            anchors: float32 `[n, 4]`.
            sample_weight: `[b]`, factors of the images' losses. The positives are counted as without it.

        Returns:
            float32 scalars under `LOSS_NAMES` and the positives of the batch under `COUNT_NAMES`.

        Raises:
            DataError: `sample_weight` is not one number for each image.
        """
        targets = pad_targets(targets)
        boxes = tf.cast(targets["boxes"], tf.float32)
        classes = tf.cast(targets["classes"], tf.int32)
        predictions = {name: tf.cast(value, tf.float32) for name, value in predictions.items()}
        weights = _image_weights(sample_weight, predictions["odm_classes"])
        kinds = {"valid": classes >= 0, "ignored": classes == IGNORED_CLASS}

        matches, negatives = match(
            anchors, boxes, **kinds, positive_iou=self.arm_positive_iou, negative_iou=self.arm_negative_iou
        )
        arm_objectness_loss, arm_box_loss, arm_positives = self._module_loss(
            logits=predictions["arm_objectness"],
            offsets=predictions["arm_offsets"],
            references=anchors,
            boxes=boxes,
            labels=tf.ones_like(classes),
            matches=matches,
            candidates=negatives,
            weights=weights,
            focal=False,
        )
        if not self.two_step_regression:
            arm_box_loss = tf.zeros_like(arm_box_loss)

        refined = tf.stop_gradient(refine_anchors(predictions["arm_offsets"], anchors))
        matches, negatives = match(refined, boxes, **kinds, positive_iou=ODM_IOU, negative_iou=ODM_IOU)
        # The negative anchor filter takes easy background out of the negatives; positives always stay.
        filtered = tf.stop_gradient(objectness(predictions)) < self.objectness_threshold
        odm_class_loss, odm_box_loss, odm_positives = self._module_loss(
            logits=predictions["odm_classes"],
            offsets=predictions["odm_offsets"],
            references=refined,
            boxes=boxes,
            labels=classes + 1,
            matches=matches,
            candidates=negatives & ~filtered,
            weights=weights,
            focal=self.odm_loss == "focal",
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
        *,
        logits: tf.Tensor,
        offsets: tf.Tensor,
        references: tf.Tensor,
        boxes: tf.Tensor,
        labels: tf.Tensor,
        matches: tf.Tensor,
        candidates: tf.Tensor,
        weights: tf.Tensor | float,
        focal: bool,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Classification loss, box loss and number of positives of one module; `labels` `[b, m]` counts from 1."""
        positives = matches >= 0
        matched = tf.maximum(matches, 0)
        counts = tf.reduce_sum(tf.cast(positives, tf.float32), axis=1)

        anchor_labels = tf.where(positives, tf.gather(labels, matched, batch_dims=1), 0)
        classification = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=anchor_labels, logits=logits)
        if focal:
            classification *= self._focal_factors(classification, positives)
            used = positives | candidates
        else:
            # Where there is no positive the label is the background, so this is also the loss that ranks the negatives.
            used = positives | mine_hard_negatives(
                tf.stop_gradient(classification), candidates, tf.cast(tf.floor(self.negative_ratio * counts), tf.int32)
            )
        classification = tf.reduce_sum(tf.where(used, classification, 0.0), axis=1)

        # Unmatched references are encoded against themselves, which keeps the logarithm finite under the mask.
        own = positives[..., tf.newaxis]
        targets = box_ops.encode_boxes(tf.where(own, tf.gather(boxes, matched, batch_dims=1), references), references)
        regression = tf.reduce_sum(tf.where(own, smooth_l1(offsets - tf.stop_gradient(targets)), 0.0), axis=[1, 2])

        total = tf.reduce_sum(counts)
        normalizer = self._normalizer(total)
        return (
            tf.reduce_sum(weights * classification) / normalizer,
            tf.reduce_sum(weights * regression) / normalizer,
            total,
        )

    def _focal_factors(self, cross_entropy: tf.Tensor, positives: tf.Tensor) -> tf.Tensor:
        """`a (1 - p)^gamma` of each anchor, `[b, n]`, with `p = exp(-cross_entropy)`."""
        # The bound keeps the gradient of exponents below 1 finite.
        wrong = tf.maximum(-tf.math.expm1(-cross_entropy), 1e-12)
        return tf.where(positives, self.focal_alpha, 1.0 - self.focal_alpha) * tf.pow(wrong, self.focal_gamma)

    def _normalizer(self, positives: tf.Tensor) -> tf.Tensor:
        replica = tf.distribute.get_replica_context()
        if self.normalize_positives == "per_replica" or replica is None or replica.num_replicas_in_sync == 1:
            return tf.maximum(positives, 1.0)
        mean = replica.all_reduce(tf.distribute.ReduceOp.MEAN, positives)
        return tf.maximum(mean, 1.0 / replica.num_replicas_in_sync)


def _image_weights(sample_weight: Any, predictions: tf.Tensor) -> tf.Tensor | float:
    """One factor for each image, `[b]`, or 1.

    Raises:
        DataError: `sample_weight` has another form.
    """
    if sample_weight is None:
        return 1.0
    weights = tf.cast(sample_weight, tf.float32)
    if weights.shape.rank == 2 and weights.shape[1] == 1:
        weights = weights[:, 0]
    if not weights.shape.is_compatible_with(predictions.shape[:1]):
        raise DataError(
            f"sample_weight has shape {tuple(weights.shape)}; it must be one number for each image of the batch, [b]."
        )
    return weights


def smooth_l1(difference: tf.Tensor) -> tf.Tensor:
    """Computes `0.5 d^2` where `|d| < 1`, else `|d| - 0.5`, element by element."""
    magnitude = tf.abs(difference)
    return tf.where(magnitude < 1.0, 0.5 * tf.square(difference), magnitude - 0.5)
