"""Checks values of a recipe beyond their types."""

import dataclasses
import itertools
from collections import Counter
from typing import Any, get_args

from refinedet_tf.config.schema import (
    BACKBONES,
    BEST_METRICS,
    DATA_FORMATS,
    EVALUATION_PROTOCOLS,
    NORMALIZE_POSITIVES,
    ODM_LOSSES,
    OPTIMIZERS,
    OTHER_CLASSES,
    PRECISIONS,
    PREPROCESSING_MODES,
    RESIZE_MODES,
    SCHEDULES,
    SUPPRESSIONS,
    UPSAMPLING,
    BackboneConfig,
    Config,
    DataConfig,
    ModelConfig,
)
from refinedet_tf.errors import ConfigError, did_you_mean

MAX_SIDE = 8192  # pixels; a model of this size has 4 million anchors


def validate(config: Config) -> None:
    """Checks a recipe, for instance one made in Python.

    Raises:
        ConfigError: a value is unusable.
    """
    validate_model(config.model)
    data, train = config.data, config.train
    _check_entries("data", data)
    _check_entries("train", train)
    _check_choice("data.format", data.format, DATA_FORMATS)
    _check(bool(data.train_splits), "data.train_splits", data.train_splits, "name at least one split")
    _validate_data(data)
    _check(data.max_boxes > 0, "data.max_boxes", data.max_boxes, "must be positive")
    ratio = data.augmentation.expand_max_ratio
    _check(ratio >= 1, "data.augmentation.expand_max_ratio", ratio, "must be at least 1")
    for key in ("epochs", "batch_size", "learning_rate", "evaluate_every", "keep_checkpoints", "accumulation_steps"):
        _check(getattr(train, key) > 0, f"train.{key}", getattr(train, key), "must be positive")
    for key in ("warmup_steps", "weight_decay", "clip_norm", "checkpoint_steps"):
        _check(getattr(train, key) >= 0, f"train.{key}", getattr(train, key), "must not be negative")
    epochs = list(train.decay_epochs)
    _check(
        all(earlier < later for earlier, later in itertools.pairwise([0, *epochs])),
        "train.decay_epochs",
        epochs,
        "must be positive and increasing",
    )
    _check(train.decay_rate > 0, "train.decay_rate", train.decay_rate, "must be positive")
    _check(0 <= train.momentum < 1, "train.momentum", train.momentum, "must be in [0, 1)")
    _check_choice("train.normalize_positives", train.normalize_positives, NORMALIZE_POSITIVES)
    _check(0 <= train.ema_momentum < 1, "train.ema_momentum", train.ema_momentum, "must be in [0, 1)")
    _check(
        train.jit_compile == "auto" or isinstance(train.jit_compile, bool),
        "train.jit_compile",
        train.jit_compile,
        "must be auto, true or false",
    )
    _validate_optimizer(train.optimizer)
    choices = {"schedule": SCHEDULES, "precision": PRECISIONS, "best_metric": BEST_METRICS}
    for key, known in choices.items():
        _check_choice(f"train.{key}", getattr(train, key), known)
    if config.evaluation.protocol is not None:
        _check_choice("evaluation.protocol", config.evaluation.protocol, EVALUATION_PROTOCOLS)


def _validate_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, dict):
        _check(isinstance(optimizer, str), "train.optimizer", optimizer, "must be a name or a mapping")
        _check_choice("train.optimizer", optimizer, OPTIMIZERS)
        return
    keys = set(optimizer)
    _check(
        isinstance(optimizer.get("name"), str) and keys <= {"name", "arguments", "rate_factor"},
        "train.optimizer",
        optimizer,
        "must be a name, or a mapping with the keys name, arguments and rate_factor",
    )
    arguments = optimizer.get("arguments", {})
    _check(isinstance(arguments, dict), "train.optimizer.arguments", arguments, "must be a mapping")
    for value in arguments.values():
        if isinstance(value, dict) and "name" in value:
            _validate_optimizer(value)


def validate_model(model: ModelConfig) -> None:
    """Checks the `model` section.

    Raises:
        ConfigError: a value is unusable.
    """
    _check(len(model.classes) > 0, "model.classes", model.classes, "name at least one class")
    _check(all(isinstance(name, str) for name in model.classes), "model.classes", model.classes, "must be names")
    _check_entries("model", model)
    repeated = sorted(name for name, count in Counter(model.classes).items() if count > 1)
    _check(not repeated, "model.classes", model.classes, f"repeats {', '.join(repeated)}")
    sizes = list(model.input_size)
    multiples = len(sizes) == 2 and all(side > 0 and side % 64 == 0 for side in sizes)
    _check(multiples, "model.input_size", sizes, "must be [height, width], both multiples of 64")
    _check(max(sizes) <= MAX_SIDE, "model.input_size", sizes, f"must be at most {MAX_SIDE} pixels a side")
    _check_choice("model.resize", model.resize, RESIZE_MODES)
    _validate_backbone(model.backbone)
    _check(model.width > 0, "model.width", model.width, "must be positive")
    _check_choice("model.upsampling", model.upsampling, UPSAMPLING)
    anchors = list(model.anchor_sizes)
    _check(
        len(anchors) == 4 and min(anchors) > 0,
        "model.anchor_sizes",
        anchors,
        "must be four positive sizes in pixels, for strides 8, 16, 32, 64",
    )
    _check(
        0 <= model.arm_negative_iou <= model.arm_positive_iou <= 1,
        "model.arm_negative_iou",
        model.arm_negative_iou,
        "needs 0 <= arm_negative_iou <= arm_positive_iou <= 1",
    )
    _check(
        0 <= model.objectness_threshold < 1,
        "model.objectness_threshold",
        model.objectness_threshold,
        "must be in [0, 1)",
    )
    _check(model.negative_ratio >= 0, "model.negative_ratio", model.negative_ratio, "must not be negative")
    _check_choice("model.odm_loss", model.odm_loss, ODM_LOSSES)
    _check(0 < model.focal_alpha < 1, "model.focal_alpha", model.focal_alpha, "must be in (0, 1)")
    _check(model.focal_gamma >= 0, "model.focal_gamma", model.focal_gamma, "must not be negative")
    detection = model.detection
    for key in ("score_threshold", "iou_threshold"):
        value = getattr(detection, key)
        _check(0 <= value <= 1, f"model.detection.{key}", value, "must be in [0, 1]")
    _check(
        detection.pre_suppression_top_k >= 0,
        "model.detection.pre_suppression_top_k",
        detection.pre_suppression_top_k,
        "must not be negative; 0 takes all",
    )
    _check(detection.max_detections > 0, "model.detection.max_detections", detection.max_detections, "must be positive")
    for name, threshold in model.score_thresholds.items():
        _check_choice("model.score_thresholds", name, tuple(model.classes))
        _check(0 <= threshold <= 1, f"model.score_thresholds.{name}", threshold, "must be in [0, 1]")
    _check_choice("model.detection.suppression", detection.suppression, SUPPRESSIONS)


def _check_entries(key: str, section: Any) -> None:
    """Checks that lists and mappings of numbers or texts hold no others: OmegaConf lets both stand for an entry."""
    for each in dataclasses.fields(section):
        value, kinds = getattr(section, each.name), get_args(each.type)
        if dataclasses.is_dataclass(value):
            _check_entries(f"{key}.{each.name}", value)
        elif kinds and kinds[-1] in (int, float, str) and isinstance(value, list | tuple | dict):
            entries = value.values() if isinstance(value, dict) else value
            nested = any(isinstance(entry, list | tuple | dict) for entry in entries)
            _check(not nested, f"{key}.{each.name}", value, "has a list or a mapping as an entry")


def _validate_backbone(backbone: BackboneConfig) -> None:
    _check_choice("model.backbone.name", backbone.name, tuple(BACKBONES))
    _check(backbone.alpha > 0, "model.backbone.alpha", backbone.alpha, "must be positive")
    if backbone.preprocessing is not None:
        _check_choice("model.backbone.preprocessing", backbone.preprocessing, PREPROCESSING_MODES)
    _check(backbone.frozen_stages >= 0, "model.backbone.frozen_stages", backbone.frozen_stages, "must not be negative")


def _validate_data(data: DataConfig) -> None:
    """Checks the settings that say how to read."""
    _check_choice("data.other_classes", data.other_classes, OTHER_CLASSES)
    for key in ("annotations", "images"):
        value = getattr(data, key)
        _check(value is None or data.format == "coco", f"data.{key}", value, "only data.format coco has it")
    _check(data.images is None or data.annotations is not None, "data.images", data.images, "needs data.annotations")
    _check(0 <= data.split.val < 1, "data.split.val", data.split.val, "must be in [0, 1)")
    _check(data.split.seed >= 0, "data.split.seed", data.split.seed, "must not be negative")
    if data.split.val:
        divisible = data.format in ("voc", "coco", "yolo")
        _check(divisible, "data.split.val", data.split.val, f"needs data.format voc, coco or yolo, not {data.format}")
        for key in ("train_splits", "val_splits"):
            names = getattr(data, key)
            _check(set(names) <= {"train", "val"}, f"data.{key}", names, "data.split makes only train and val")
    elif data.annotations is not None and data.val_splits:
        _check(
            "SPLIT" in data.annotations,
            "data.annotations",
            data.annotations,
            "is one file for all splits; give data.split, write SPLIT into it, or empty data.val_splits",
        )


def _check(condition: bool, key: str, value: object, requirement: str) -> None:
    if not condition:
        raise ConfigError(f"{key} = {value!r}: {requirement}.")


def _check_choice(key: str, value: str, known: tuple[str, ...]) -> None:
    _check(value in known, key, value, f"must be one of {', '.join(known)}{did_you_mean(value, known)}")
