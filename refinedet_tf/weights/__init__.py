"""Other people's weights, and our own, into these layers."""

from refinedet_tf.weights.assign import WeightReport
from refinedet_tf.weights.errors import WeightFileError
from refinedet_tf.weights.keras_files import load_model
from refinedet_tf.weights.loading import load_weights

__all__ = ["WeightFileError", "WeightReport", "load_model", "load_weights"]
