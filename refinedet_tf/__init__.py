"""RefineDet, the single-shot refinement detector (CVPR 2018), for TensorFlow and Keras."""

from refinedet_tf.config import BackboneConfig, Config, DetectionConfig, ModelConfig, load_config
from refinedet_tf.errors import ConfigError, WeightFileError
from refinedet_tf.evaluation.evaluator import EvaluationResult, evaluate
from refinedet_tf.evaluation.images import ImageDetections
from refinedet_tf.inference.detector import Detections, Detector
from refinedet_tf.losses import RefineDetLoss
from refinedet_tf.model import RefineDet, build_model
from refinedet_tf.weights import WeightReport, load_model, load_weights

__all__ = [
    "BackboneConfig",
    "Config",
    "ConfigError",
    "DetectionConfig",
    "Detections",
    "Detector",
    "EvaluationResult",
    "ImageDetections",
    "ModelConfig",
    "RefineDet",
    "RefineDetLoss",
    "WeightFileError",
    "WeightReport",
    "build_model",
    "evaluate",
    "load_config",
    "load_model",
    "load_weights",
]
