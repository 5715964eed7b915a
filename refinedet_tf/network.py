"""The graph of RefineDet: backbone, anchor refinement module, transfer connection blocks, object detection module."""

import math
from collections.abc import Sequence

import tensorflow as tf

from refinedet_tf.backbones import build_backbone, normalization_of
from refinedet_tf.config import ModelConfig
from refinedet_tf.layers import ZeroOffsets, head_block, join_levels, prediction_head, transfer_connection_block

LEVELS = (3, 4, 5, 6)
FOCAL_PRIOR = 0.01  # initial probability of objects under the focal loss


def build_network(images: tf.Tensor, config: ModelConfig) -> dict[str, tf.Tensor]:
    """Builds the functional graph of both modules.

    Args:
        images: a Keras tensor `[b, h, w, 3]`, RGB, 0..255.
        config: the `model` section of a recipe.

    Returns:
        The raw predictions; see `RefineDet`.
    """
    sources = dict(zip(LEVELS, build_backbone(images, config.backbone), strict=True))

    # Anchor refinement module.
    arm_inputs = _head_inputs(sources, "arm", config)
    arm_objectness = _heads(arm_inputs, 2, "arm{}_objectness", config)
    if config.two_step_regression:
        arm_offsets = _heads(arm_inputs, 4, "arm{}_offsets", config)
    else:
        arm_offsets = [ZeroOffsets(name=f"arm{k}_offsets")(x) for k, x in zip(LEVELS, arm_objectness, strict=True)]

    # Transfer connection blocks, from the top down.
    pyramid = _transfer_connections(sources, config) if config.transfer_connection else sources

    # Object detection module.
    odm_inputs = _head_inputs(pyramid, "odm", config)
    odm_classes = _heads(odm_inputs, 1 + len(config.classes), "odm{}_classes", config, bias=_initial_class_bias(config))
    odm_offsets = _heads(odm_inputs, 4, "odm{}_offsets", config)

    return {
        "arm_objectness": join_levels(arm_objectness, "arm_objectness"),
        "arm_offsets": join_levels(arm_offsets, "arm_offsets"),
        "odm_classes": join_levels(odm_classes, "odm_classes"),
        "odm_offsets": join_levels(odm_offsets, "odm_offsets"),
    }


def _transfer_connections(sources: dict[int, tf.Tensor], config: ModelConfig) -> dict[int, tf.Tensor]:
    """P3 to P6 by level."""
    pyramid, above = {}, None
    for level in reversed(LEVELS):
        above = pyramid[level] = transfer_connection_block(
            sources[level],
            above,
            level,
            width=config.width,
            separable=config.separable,
            batch_norm=config.batch_norm,
            upsampling=config.upsampling,
            normalization=normalization_of(config.backbone),
        )
    return pyramid


def _head_inputs(maps: dict[int, tf.Tensor], module: str, config: ModelConfig) -> dict[int, tf.Tensor]:
    """The maps that the heads of a module see, by level: those given, or those behind the head blocks."""
    if not config.head_blocks:
        return maps
    normalization = normalization_of(config.backbone)
    return {level: head_block(maps[level], f"{module}{level}", normalization) for level in LEVELS}


def _heads(
    maps: dict[int, tf.Tensor], outputs: int, name: str, config: ModelConfig, *, bias: Sequence[float] = (0.0,)
) -> list[tf.Tensor]:
    """The heads of all levels, with `outputs` for each anchor; `{}` in `name` stands for the level."""
    return [
        prediction_head(maps[k], outputs, name.format(k), separable=config.separable, initial_bias=bias) for k in LEVELS
    ]


def _initial_class_bias(config: ModelConfig) -> list[float]:
    """Initial logits of an anchor, background first.

    The focal loss counts every anchor: as in RetinaNet, objects begin with a probability of `FOCAL_PRIOR`, or the
    background of some thousand anchors would drown them.
    """
    num_classes = len(config.classes)
    if config.odm_loss != "focal":
        return [0.0] * (1 + num_classes)
    return [math.log(num_classes * (1 - FOCAL_PRIOR) / FOCAL_PRIOR)] + [0.0] * num_classes
