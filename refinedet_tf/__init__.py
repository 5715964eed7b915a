"""RefineDet, the single-shot refinement detector (CVPR 2018), for TensorFlow and Keras."""

from refinedet_tf.config import Config, ConfigError, ModelConfig, load_config
from refinedet_tf.losses import RefineDetLoss
from refinedet_tf.model import RefineDet, build_model

__all__ = ["Config", "ConfigError", "ModelConfig", "RefineDet", "RefineDetLoss", "build_model", "load_config"]
