"""Other people's weights, and our own, into these layers."""

from refinedet_tf.weights.assignment import WeightReport
from refinedet_tf.weights.keras_files import load_model
from refinedet_tf.weights.loading import load_weights

__all__ = ["WeightReport", "load_model", "load_weights"]
