"""Which operations have a GPU kernel, by TensorFlow's own registry; no GPU is needed."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras
from tensorflow.python.framework import kernels

from refinedet_tf.losses import RefineDetLoss
from refinedet_tf.model import RefineDet

# "DEFAULT" kernels, such as that of `While`, are for any device.
DEVICES = {"GPU", "DEFAULT"}

pytestmark = pytest.mark.skipif(
    all(kernel.device_type != "GPU" for kernel in kernels.get_registered_kernels_for_op("Conv2D").kernel),
    reason="this TensorFlow was built without GPU kernels",
)


def accepts(kernel, node):
    """Whether a kernel takes the types of a node."""
    return all(
        node.attr[constraint.name].type in constraint.allowed_values.list.type
        for constraint in kernel.constraint
        if constraint.name in node.attr and node.attr[constraint.name].HasField("type")
    )


def without_gpu_kernel(function, *arguments):
    """Operations of a function, and of all functions that it calls, for which a GPU has no kernel."""
    graph = tf.function(function).get_concrete_function(*arguments).graph.as_graph_def()
    nodes = [*graph.node, *(node for called in graph.library.function for node in called.node_def)]
    called = {function.signature.name for function in graph.library.function}
    missing = set()
    for node in nodes:
        registered = kernels.get_registered_kernels_for_op(node.op).kernel
        if node.op not in called and not any(k.device_type in DEVICES and accepts(k, node) for k in registered):
            missing.add(node.op)
    return missing


@pytest.fixture(scope="module")
def model(tiny_config):
    """The backbone has depthwise convolutions and batch normalization; more of them would add no operation."""
    keras.utils.set_random_seed(0)
    return RefineDet(dataclasses.replace(tiny_config, odm_loss="focal", separable=False, batch_norm=False))


def test_every_operation_of_a_training_step_has_one(model):
    images = tf.zeros([2, 64, 128, 3])
    targets = {"boxes": tf.zeros([2, 5, 4]), "classes": tf.zeros([2, 5], tf.int32)}
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    model.optimizer.build(model.trainable_variables)
    assert without_gpu_kernel(model.train_step, (images, targets, tf.ones([2]))) == set()
    # The paper's loss mines instead.
    loss = RefineDetLoss()
    predictions = model(images)
    assert without_gpu_kernel(lambda: loss(targets, predictions, model.anchors)) == set()


def test_of_detection_only_the_suppression_has_none(model):
    assert without_gpu_kernel(model.detect, tf.zeros([2, 64, 128, 3])) == {"CombinedNonMaxSuppression"}
    model.detection = dataclasses.replace(model.detection, suppression="across_classes")
    assert without_gpu_kernel(model.detect, tf.zeros([2, 64, 128, 3])) == {"CombinedNonMaxSuppression"}
    found = model.detect(np.zeros([2, 64, 128, 3], np.float32))
    assert found["boxes"].shape[0] == 2
