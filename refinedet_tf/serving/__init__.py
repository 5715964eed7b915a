"""What leaves the project: SavedModels for servers and TFLite files for devices."""

from refinedet_tf.serving.labels import read_labels
from refinedet_tf.serving.signatures import OUTPUT_NAMES, WEIGHTS, export_saved_model
from refinedet_tf.serving.warmup import write_warmup_requests

__all__ = ["OUTPUT_NAMES", "WEIGHTS", "export_saved_model", "read_labels", "write_warmup_requests"]
