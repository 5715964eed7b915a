"""RefineDet as a Keras model: the graph of both modules, its training step, detection and export."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow import keras

from refinedet_tf.backbones import build_backbone, check_offline, normalization_of, without_download
from refinedet_tf.config import Config, ModelConfig, as_dict, model_config, validate_model
from refinedet_tf.layers import ZeroOffsets, head_block, join_levels, prediction_head, transfer_connection_block
from refinedet_tf.losses import COUNT_NAMES, LOSS_NAMES, RefineDetLoss
from refinedet_tf.ops.anchors import generate_anchors
from refinedet_tf.ops.detections import decode_predictions, suppress
from refinedet_tf.ops.resizing import Resizing
from refinedet_tf.serving import export_saved_model

LEVELS = (3, 4, 5, 6)


@keras.utils.register_keras_serializable("refinedet_tf")
class RefineDet(keras.Model):
    """The single-shot refinement detector (Zhang et al., CVPR 2018).

    Called on images it returns raw predictions, in training and in inference: `arm_objectness` `[b, n, 2]`,
    `arm_offsets` `[b, n, 4]`, `odm_classes` `[b, n, 1 + c]` (logits, background first) and `odm_offsets` `[b, n, 4]`,
    float32. `predict` and `detect` return detections. `fit` needs no loss: `compile(optimizer)` is enough, and the data
    are `(images, {"boxes": [b, m, 4], "classes": [b, m]})` with -1 as padding.

    Attributes:
        config: the `ModelConfig` it was built from.
        anchors: float32 `[n, 4]`, relative corners.
        resizing: the input size, and how images are brought to it.
        loss_function: the `RefineDetLoss` it trains with.
    """

    def __init__(self, config: ModelConfig, **kwargs: Any):
        """Builds the graph.

        Args:
            config: the `model` section of a recipe.
            **kwargs: `name`, `dtype` and the like, for `keras.Model`.

        Raises:
            ConfigError: the configuration is unusable.
        """
        validate_model(config)
        inputs = keras.Input(shape=(*config.input_size, 3), name="images")
        super().__init__(inputs=inputs, outputs=_build_graph(inputs, config), **{"name": "refinedet", **kwargs})
        self.config = dataclasses.replace(config, backbone=without_download(config.backbone))
        self.anchors = tf.constant(generate_anchors(config.input_size, config.anchor_sizes))
        self.resizing = Resizing(*config.input_size, config.resize)
        self.loss_function = RefineDetLoss.from_config(config)
        self._trackers = [keras.metrics.Mean(name=name) for name in ("loss", *LOSS_NAMES, *COUNT_NAMES)]

    def compile(self, optimizer: Any = "rmsprop", *, jit_compile: bool = False, **kwargs: Any) -> None:
        """As in Keras, without a loss, which is the model's own.

        Args:
            optimizer: a Keras optimizer or its name.
            jit_compile: compile the training step with XLA. Off unless asked for: it pays on GPUs, while on two CPU
                cores the compiled step took 6 times as long as TensorFlow's own kernels.
            **kwargs: Keras's other arguments, such as `steps_per_execution`.
        """
        super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a model that is being loaded as it was when it was saved; Keras leaves that to custom `compile`s."""
        self.compile(**keras.utils.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Running means of the losses and of the positives in a batch."""
        return self._trackers

    def compute_losses(self, images: tf.Tensor, targets: dict[str, Any], training: bool) -> dict[str, tf.Tensor]:
        """The losses of a batch, `loss` being the sum that is trained (with the losses that layers add)."""
        predictions = self(images, training=training)
        losses = self.loss_function(dense_targets(targets), predictions, self.anchors)
        loss = tf.add_n([losses[name] for name in LOSS_NAMES] + [tf.cast(extra, tf.float32) for extra in self.losses])
        return {"loss": loss, **losses}

    def train_step(self, data: tuple) -> dict[str, tf.Tensor]:
        """One step of `fit`: the losses of both modules and a step of the optimizer."""
        images, targets, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            losses = self.compute_losses(images, targets, training=True)
            # Each replica normalises by its own positives; the replicas' gradients are averaged, as in the original.
            loss = losses["loss"] / tf.distribute.get_strategy().num_replicas_in_sync
        _minimize(self.optimizer, loss, self.trainable_variables, tape)
        return self._track(losses)

    def test_step(self, data: tuple) -> dict[str, tf.Tensor]:
        """One step of `evaluate`: the losses, without training."""
        images, targets, _ = keras.utils.unpack_x_y_sample_weight(data)
        return self._track(self.compute_losses(images, targets, training=False))

    def predict_step(self, data: tuple) -> dict[str, tf.Tensor]:
        """One step of `predict`: detections of a batch of images."""
        images, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return self.detect(images)

    def predict(self, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        """As in Keras, but never under XLA, for which TensorFlow's suppression has no kernel."""
        with _without_xla(self):
            return super().predict(*args, **kwargs)

    def predict_on_batch(self, x: Any) -> dict[str, np.ndarray]:
        """As in Keras, but never under XLA."""
        with _without_xla(self):
            return super().predict_on_batch(x)

    def detect(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detections of images that already have the input size.

        Args:
            images: `[b, h, w, 3]`, RGB, 0..255.

        Returns:
            `boxes` float32 `[b, k, 4]` (xmin, ymin, xmax, ymax), relative and unclipped; `scores` `[b, k]`, descending;
            `classes` int32 `[b, k]`, `num_detections` int32 `[b]`. Padding has score 0 and class -1.
        """
        predictions = self(images, training=False)
        boxes, scores = decode_predictions(predictions, self.anchors, self.config.objectness_threshold)
        return suppress(boxes, scores, **as_dict(self.config.detection))

    def export(self, filepath: str | os.PathLike) -> None:
        """Writes a SavedModel that takes uint8 images of any size; see `serving.export_saved_model`."""
        export_saved_model(self, os.fspath(filepath))

    def get_config(self) -> dict[str, Any]:
        """The recipe's `model` section as plain values, which is all there is to rebuild the model from."""
        return {"config": as_dict(self.config), "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict | None = None) -> "RefineDet":
        """The inverse of `get_config`."""
        del custom_objects
        settings = model_config(config["config"])
        # A file must not make the machine reach for the network.
        check_offline(settings.backbone)
        return cls(settings, name=config["name"])

    def _track(self, values: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        for tracker in self._trackers:
            tracker.update_state(values[tracker.name])
        return {tracker.name: tracker.result() for tracker in self._trackers}


def build_model(config: Config | ModelConfig) -> RefineDet:
    """Builds the model of a recipe, or of its `model` section, with random weights.

    Raises:
        ConfigError: the configuration is unusable.
    """
    return RefineDet(config.model if isinstance(config, Config) else config)


def dense_targets(targets: dict[str, Any]) -> dict[str, tf.Tensor]:
    """Targets as padded tensors; ragged ones, as KerasCV's layers give, are padded with -1."""
    return {name: _pad(targets[name]) for name in ("boxes", "classes")}


def _pad(rows: Any) -> Any:
    if not isinstance(rows, tf.RaggedTensor):
        return rows
    dense = rows.to_tensor(-1)
    # One row more than the fullest image has: a batch without any object must have one, too.
    return tf.pad(dense, [[0, 0], [0, 1], [0, 0]][: dense.shape.rank], constant_values=-1)


def _build_graph(images: tf.Tensor, config: ModelConfig) -> dict[str, tf.Tensor]:
    sources = dict(zip(LEVELS, build_backbone(images, config.backbone), strict=True))

    # Anchor refinement module.
    arm_inputs = _head_inputs(sources, "arm", config)
    arm_objectness = _heads(arm_inputs, 2, "arm{}_objectness", config)
    if config.two_step_regression:
        arm_offsets = _heads(arm_inputs, 4, "arm{}_offsets", config)
    else:
        arm_offsets = [ZeroOffsets(name=f"arm{k}_offsets")(x) for k, x in zip(LEVELS, arm_objectness, strict=True)]

    # Transfer connection blocks, from the top down.
    pyramid = _transfer_connections(sources, config) if config.transfer_connection else sources

    # Object detection module.
    odm_inputs = _head_inputs(pyramid, "odm", config)
    odm_classes = _heads(odm_inputs, 1 + len(config.classes), "odm{}_classes", config)
    odm_offsets = _heads(odm_inputs, 4, "odm{}_offsets", config)

    return {
        "arm_objectness": join_levels(arm_objectness, "arm_objectness"),
        "arm_offsets": join_levels(arm_offsets, "arm_offsets"),
        "odm_classes": join_levels(odm_classes, "odm_classes"),
        "odm_offsets": join_levels(odm_offsets, "odm_offsets"),
    }


def _transfer_connections(sources: dict[int, tf.Tensor], config: ModelConfig) -> dict[int, tf.Tensor]:
    """P3 to P6 by level."""
    pyramid, above = {}, None
    for level in reversed(LEVELS):
        above = pyramid[level] = transfer_connection_block(
            sources[level],
            above,
            level,
            width=config.width,
            separable=config.separable,
            batch_norm=config.batch_norm,
            upsampling=config.upsampling,
            normalization=normalization_of(config.backbone),
        )
    return pyramid


def _head_inputs(maps: dict[int, tf.Tensor], module: str, config: ModelConfig) -> dict[int, tf.Tensor]:
    """What the heads of a module see, by level: the maps, or what the block before the heads makes of them."""
    if not config.head_blocks:
        return maps
    normalization = normalization_of(config.backbone)
    return {level: head_block(maps[level], f"{module}{level}", normalization) for level in LEVELS}


def _heads(maps: dict[int, tf.Tensor], values: int, name: str, config: ModelConfig) -> list[tf.Tensor]:
    """The heads of all levels, `values` numbers for each anchor; `name` has a place for the level."""
    return [prediction_head(maps[k], values, name.format(k), separable=config.separable) for k in LEVELS]


def _minimize(
    optimizer: keras.optimizers.Optimizer, loss: tf.Tensor, variables: list[tf.Variable], tape: tf.GradientTape
) -> None:
    """A step of the optimizer, with the loss scaled if it does that (mixed_float16)."""
    if hasattr(optimizer, "minimize"):  # Keras 2, which scales the loss there
        optimizer.minimize(loss, variables, tape=tape)
        return
    with tape:
        loss = optimizer.scale_loss(loss)
    optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))


@contextlib.contextmanager
def _without_xla(model: keras.Model) -> Iterator[None]:
    """Keeps XLA from what Keras builds or traces meanwhile."""
    # Not by the public property, whose setter in Keras 2 takes the training function from under a running `fit`.
    jit_compile, model._jit_compile = model._jit_compile, False
    try:
        yield
    finally:
        model._jit_compile = jit_compile
