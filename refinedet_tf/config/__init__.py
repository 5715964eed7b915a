"""The typed recipe: everything that a training run or a model is built from.

A recipe is a YAML file with the sections `model`, `data`, `train` and `evaluation`. `schema` defines them, `recipes`
finds and reads files, `loading` turns their values into dataclasses, and `validation` checks what types alone cannot
express.
"""

from refinedet_tf.config.loading import as_dict, load_config, model_config, save_config
from refinedet_tf.config.recipes import list_recipes
from refinedet_tf.config.schema import (
    BACKBONES,
    DATA_FORMATS,
    EVALUATION_PROTOCOLS,
    NORMALIZE_POSITIVES,
    ODM_LOSSES,
    OTHER_CLASSES,
    PREPROCESSING_MODES,
    AugmentationConfig,
    BackboneConfig,
    Config,
    DataConfig,
    DetectionConfig,
    EvaluationConfig,
    KerasCvLayerConfig,
    ModelConfig,
    SplitConfig,
    TrainConfig,
)
from refinedet_tf.config.validation import validate, validate_model

__all__ = [
    "BACKBONES",
    "DATA_FORMATS",
    "EVALUATION_PROTOCOLS",
    "NORMALIZE_POSITIVES",
    "ODM_LOSSES",
    "OTHER_CLASSES",
    "PREPROCESSING_MODES",
    "AugmentationConfig",
    "BackboneConfig",
    "Config",
    "DataConfig",
    "DetectionConfig",
    "EvaluationConfig",
    "KerasCvLayerConfig",
    "ModelConfig",
    "SplitConfig",
    "TrainConfig",
    "as_dict",
    "list_recipes",
    "load_config",
    "model_config",
    "save_config",
    "validate",
    "validate_model",
]
