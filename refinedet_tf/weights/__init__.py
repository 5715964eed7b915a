"""Loads weight files, the library's own and those of others, and opens saved models."""

from refinedet_tf.weights.assignment import WeightReport
from refinedet_tf.weights.loading import load_weights
from refinedet_tf.weights.saved_models import load_model

__all__ = ["WeightReport", "load_model", "load_weights"]
