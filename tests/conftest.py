"""One small model for all tests that need any: building graphs is what costs time here."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest

from refinedet_tf.config import BackboneConfig, ModelConfig
from refinedet_tf.model import RefineDet


@pytest.fixture(scope="session")
def tiny_config():
    """MobileNet 0.25 at 64 x 128: 510 anchors."""
    return ModelConfig(
        classes=["circle", "square", "star"],
        input_size=[64, 128],
        backbone=BackboneConfig("mobilenet_v1", 0.25),
        width=16,
        separable=True,
        batch_norm=True,
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_config):
    """Random weights, shared by all tests: call it, do not train it and do not compile it."""
    return RefineDet(tiny_config)


@pytest.fixture(scope="session")
def tiny_images():
    """A batch of three images for it."""
    return np.random.default_rng(7).uniform(0, 255, (3, 64, 128, 3)).astype(np.float32)
