"""The detection settings that every exported file states."""

from typing import Any

from refinedet_tf.config import ModelConfig, as_dict


def detection_settings(config: ModelConfig) -> dict[str, Any]:
    """Returns the thresholds that every export states, `score_thresholds` by class name among them."""
    return {
        "objectness_threshold": config.objectness_threshold,
        "score_thresholds": dict(config.score_thresholds),
        **as_dict(config.detection),
    }
