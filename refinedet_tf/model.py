"""RefineDet as a Keras model: training, detection and export."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow import keras

from refinedet_tf.backbones import check_offline, without_download
from refinedet_tf.config import Config, DetectionConfig, ModelConfig, as_dict, model_config, validate_model
from refinedet_tf.errors import ConfigError
from refinedet_tf.losses import COUNT_NAMES, LOSS_NAMES, RefineDetLoss
from refinedet_tf.network import build_network
from refinedet_tf.ops.anchors import generate_anchors
from refinedet_tf.ops.detections import decode_predictions, suppress
from refinedet_tf.ops.replicas import num_workers, over_replicas
from refinedet_tf.ops.resizing import Resizing
from refinedet_tf.ops.targets import checked, faults_as_data_errors, find_fault, pad_targets
from refinedet_tf.serving.saved_model import export_saved_model
from refinedet_tf.stacks import RunningMean, Untracked, create_optimizer_variables, minimize, step_results


@keras.utils.register_keras_serializable("refinedet_tf")
class RefineDet(keras.Model):
    """The single-shot refinement detector (Zhang et al., CVPR 2018).

    Called on images it returns raw predictions, in training and in inference: `arm_objectness` `[b, n, 2]`,
    `arm_offsets` `[b, n, 4]`, `odm_classes` `[b, n, 1 + c]` (logits, background first) and `odm_offsets` `[b, n, 4]`,
    float32. `predict` and `detect` return detections. `compile(optimizer)` is enough to train. The data of `fit` and
    `evaluate` are `(images, {"boxes": [b, m, 4], "classes": [b, m]})`, optionally with one sample weight for each
    image; class -1 is padding, class -2 an object to ignore.

    `fit`, `evaluate`, `train_on_batch` and `test_on_batch` check their data and raise a `DataError` that names the
    first fault: images of the wrong size or with pixels that are not finite, boxes in pixels, inverted or not finite,
    and unknown classes. Arrays are checked once; batches of a dataset or generator are checked where they are made, on
    the host, and never inside the compiled step. Of a `PyDataset`, only the first batch is checked.

    Attributes:
        config: the `ModelConfig` it was built from.
        anchors: float32 `[n, 4]`, relative corners.
        resizing: the input size, and how images are brought to it.
        loss_function: the `RefineDetLoss` it trains with.
    """

    def __init__(self, config: ModelConfig, *, name: str = "refinedet", dtype: Any = None):
        """Builds the graph.

        Args:
            config: the `model` section of a recipe.
            name: name of the model.
            dtype: precision policy of all layers, such as `mixed_bfloat16`, or its name; by default Keras's global
                policy. A policy that is given here is saved with the model. Predictions are float32 in any case.

        Raises:
            ConfigError: the configuration is unusable.
        """
        validate_model(config)
        with _global_policy(dtype):
            inputs = keras.Input(shape=(*config.input_size, 3), name="images", dtype="float32")
            super().__init__(inputs=inputs, outputs=build_network(inputs, config), name=name)
        self._dtype_argument = dtype
        self.config = dataclasses.replace(config, backbone=without_download(config.backbone))
        self.anchors = tf.constant(generate_anchors(config.input_size, config.anchor_sizes))
        self.resizing = Resizing(*config.input_size, config.resize)
        self.loss_function = RefineDetLoss.for_model(config)
        self._means = Untracked([RunningMean(name=name) for name in ("loss", *LOSS_NAMES, *COUNT_NAMES)])
        self._user_metrics = []
        self._traced_settings = _detection_settings(self.config)

    @property
    def detection(self) -> DetectionConfig:
        """The detection settings. A new value takes effect in `predict`, `detect` and `export`, and is saved."""
        return self.config.detection

    @detection.setter
    def detection(self, settings: DetectionConfig) -> None:
        config = dataclasses.replace(self.config, detection=settings)
        validate_model(config)
        self.config = config

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: RefineDetLoss | None = None,
        *,
        metrics: Sequence[keras.metrics.Metric] | None = None,
        jit_compile: bool | str = False,
        **kwargs: Any,
    ) -> None:
        """Configures training, as in Keras.

        Args:
            optimizer: a Keras optimizer or its name.
            loss: a `RefineDetLoss`; by default the one that the model's configuration describes.
            metrics: Keras metrics whose `update_state(targets, detections)` runs in a graph. They are updated by
                `evaluate` and in `fit` on the validation data, since a training step makes no detections. For average
                precision use `refinedet_tf.evaluate`.
            jit_compile: compile the training step with XLA. Off unless asked for: it pays on GPUs, while on two CPU
                cores the compiled step took 6 times as long as TensorFlow's own kernels.
            **kwargs: Keras's `run_eagerly`, `steps_per_execution` and `auto_scale_loss`.

        Raises:
            ConfigError: an argument has no meaning for this model.
        """
        if not isinstance(loss, RefineDetLoss | None):
            raise ConfigError(
                f"loss = {loss!r}: RefineDet trains with a RefineDetLoss; leave it out for the model's own."
            )
        for key in ("loss_weights", "weighted_metrics"):
            if kwargs.pop(key, None) is not None:
                raise ConfigError(f"{key}: RefineDet has no use for it. Its four losses are summed with weight 1.")
        for metric in metrics or ():
            if not isinstance(metric, keras.metrics.Metric):
                raise ConfigError(
                    f"metrics = {metric!r}: must be keras.metrics.Metric objects that compare targets with detections."
                )
        self._user_metrics = list(metrics or ())
        self.loss_function = loss or RefineDetLoss.for_model(self.config)
        super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)

    def get_compile_config(self) -> dict[str, Any]:
        """Returns the arguments of `compile` as plain values."""
        config = super().get_compile_config()
        if config:
            own = {"loss": self.loss_function, "metrics": self._user_metrics or None}
            config.update(keras.utils.serialize_keras_object(own))
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a model that is being loaded as it was when it was saved."""
        self.compile(**keras.utils.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Running means of the losses and of the positives in a batch, and the metrics that `compile` was given."""
        return [*self._means.value, *self._user_metrics]

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains the model, as in Keras.

        Raises:
            DataError: the data cannot be trained on.
            ConfigError: `class_weight` is given.
        """
        if kwargs.get("class_weight") is not None:
            raise ConfigError("class_weight: an image holds objects of many classes; use sample_weight for images.")
        x = self._checked(x, y, kwargs.get("sample_weight"))
        validation_data = kwargs.get("validation_data")
        if isinstance(validation_data, tuple | list):
            self._checked(*validation_data)
        elif validation_data is not None:
            kwargs["validation_data"] = self._checked(validation_data)
        with faults_as_data_errors():
            return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Computes losses and metrics, as in Keras.

        Raises:
            DataError: the data are not what the model was built for.
        """
        if not kwargs.get("_use_cached_eval_dataset"):  # of `fit`, which has checked it
            x = self._checked(x, y, kwargs.get("sample_weight"))
        # Metrics need detections.
        with faults_as_data_errors(), self._detecting() if self._user_metrics else contextlib.nullcontext():
            return super().evaluate(x, y, *args, **kwargs)

    def make_train_function(self, force: bool = False) -> Callable:
        """As in Keras, but creates the optimizer's variables first: inside the graph they would cost a second trace."""
        with self.distribute_strategy.scope():
            create_optimizer_variables(self.optimizer, self.trainable_variables)
        return super().make_train_function(force)

    def train_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in Keras, after checking the batch; see `fit`."""
        if kwargs.get("class_weight") is not None:
            raise ConfigError("class_weight: an image holds objects of many classes; use sample_weight for images.")
        self._checked(x, y, kwargs.get("sample_weight"))
        return super().train_on_batch(x, y, *args, **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in Keras, after checking the batch; see `evaluate`."""
        self._checked(x, y, kwargs.get("sample_weight"))
        with self._detecting() if self._user_metrics else contextlib.nullcontext():
            return super().test_on_batch(x, y, *args, **kwargs)

    def compute_losses(
        self, images: tf.Tensor, targets: dict[str, Any], training: bool, sample_weight: Any = None
    ) -> dict[str, tf.Tensor]:
        """Computes the losses of a batch; `loss` is their sum, plus the losses that layers add."""
        return self._sum_losses(self(images, training=training), targets, sample_weight)

    def train_step(self, data: tuple) -> dict[str, tf.Tensor]:
        """Performs one step of `fit`: the losses of both modules and a step of the optimizer."""
        images, targets, sample_weight = _unpack(data)
        with tf.GradientTape() as tape:
            losses = self.compute_losses(images, targets, training=True, sample_weight=sample_weight)
            # The gradients of the replicas are added up; training follows the mean of their losses.
            loss = losses["loss"] / tf.distribute.get_strategy().num_replicas_in_sync
        minimize(self.optimizer, loss, self.trainable_variables, tape)
        return step_results(self._track(losses), num_workers())

    def test_step(self, data: tuple) -> dict[str, tf.Tensor]:
        """Performs one step of `evaluate`: the losses, and the metrics that `compile` was given."""
        images, targets, sample_weight = _unpack(data)
        predictions = self(images, training=False)
        results = self._track(self._sum_losses(predictions, targets, sample_weight))
        detections = self._decode_and_suppress(predictions) if self._user_metrics else None
        for metric in self._user_metrics:
            metric.update_state(pad_targets(targets), detections)
            result = metric.result()
            results.update(result if isinstance(result, dict) else {metric.name: result})
        return step_results(results, num_workers())

    def predict_step(self, data: tuple) -> dict[str, tf.Tensor]:
        """Performs one step of `predict`: detections of a batch of images."""
        images, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return self.detect(images)

    def predict(self, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        """As in Keras, but never under XLA, for which TensorFlow's suppression has no kernel."""
        with self._detecting():
            return super().predict(*args, **kwargs)

    def predict_on_batch(self, x: Any) -> dict[str, np.ndarray]:
        """As in Keras, but never under XLA."""
        with self._detecting():
            return super().predict_on_batch(x)

    def detect(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detects objects in images that already have the input size.

        Args:
            images: `[b, h, w, 3]`, RGB, 0..255.

        Returns:
            `boxes` float32 `[b, k, 4]` (xmin, ymin, xmax, ymax), relative and unclipped; `scores` `[b, k]`, descending;
            `classes` int32 `[b, k]`, `num_detections` int32 `[b]`. Padding has score 0 and class -1.
        """
        return self._decode_and_suppress(self(images, training=False))

    def export(self, filepath: str | os.PathLike) -> None:
        """Writes a SavedModel that takes uint8 images of any size; see `rd.export_saved_model`."""
        export_saved_model(self, filepath)

    def get_config(self) -> dict[str, Any]:
        """Returns what the model is rebuilt from: the recipe's `model` section as plain values, name and precision."""
        dtype = getattr(self._dtype_argument, "name", self._dtype_argument)
        return {"config": as_dict(self.config), "name": self.name, "dtype": dtype}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict | None = None) -> "RefineDet":
        """Rebuilds a model from what `get_config` returned."""
        del custom_objects
        settings = model_config(config["config"])
        # A file must not make the machine reach for the network.
        check_offline(settings.backbone)
        return cls(settings, name=config["name"], dtype=config.get("dtype"))

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Builds the optimizer before `fit` and `evaluate` if replicas share it. All else is built already.

        Keras 3 would also average a batch over the replicas, which fails with several workers for targets in a dict.
        """
        if self.distribute_strategy.num_replicas_in_sync > 1 and self.optimizer and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)

    def _sum_losses(self, predictions: dict[str, tf.Tensor], targets: dict, sample_weight: Any) -> dict[str, tf.Tensor]:
        losses = self.loss_function(targets, predictions, self.anchors, sample_weight)
        loss = tf.add_n([losses[name] for name in LOSS_NAMES] + [tf.cast(extra, tf.float32) for extra in self.losses])
        return {"loss": loss, **losses}

    def _decode_and_suppress(self, predictions: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        boxes, scores = decode_predictions(predictions, self.anchors, self.config.objectness_threshold)
        return suppress(boxes, scores, **as_dict(self.config.detection))

    def _track(self, values: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Counts a step. All replicas count the whole batch: the mean of their losses, the sum of their positives."""
        losses = {name: value for name, value in values.items() if name not in COUNT_NAMES}
        values = {
            **over_replicas(tf.distribute.ReduceOp.MEAN, losses),
            **over_replicas(tf.distribute.ReduceOp.SUM, {name: values[name] for name in COUNT_NAMES}),
        }
        for mean in self._means.value:
            mean.update_state(values[mean.name])
        return {mean.name: mean.result() for mean in self._means.value}

    def _checked(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """The data, which are checked now or as they are used; see `ops.targets.checked`."""
        find = functools.partial(
            find_fault, input_size=tuple(self.config.input_size), num_classes=len(self.config.classes)
        )
        return checked(x, y, sample_weight, find=find)

    @contextlib.contextmanager
    def _detecting(self) -> Iterator[None]:
        """Sees to it that Keras traces detection without XLA, and again if its settings have changed since."""
        settings = _detection_settings(self.config)
        if settings != self._traced_settings:
            self._traced_settings = settings
            self.predict_function = self.test_function = None
        # Not by the public property, whose setter in Keras 2 takes the training function from under a running `fit`.
        jit_compile, self._jit_compile = self._jit_compile, False
        try:
            yield
        finally:
            self._jit_compile = jit_compile


def build_model(config: Config | ModelConfig, *, name: str = "refinedet", dtype: Any = None) -> RefineDet:
    """Builds the model of a recipe, or of its `model` section, with random weights; see `RefineDet`.

    Raises:
        ConfigError: the configuration is unusable.
    """
    return RefineDet(config.model if isinstance(config, Config) else config, name=name, dtype=dtype)


def _unpack(data: tuple) -> tuple:
    """Images, targets and one weight for each image, or None."""
    images, targets, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    if isinstance(sample_weight, dict):  # Keras gives each of the targets a copy
        sample_weight = sample_weight["boxes"]
    return images, targets, sample_weight


def _detection_settings(config: ModelConfig) -> tuple:
    return (config.objectness_threshold, *dataclasses.astuple(config.detection))


@contextlib.contextmanager
def _global_policy(dtype: Any) -> Iterator[None]:
    """Makes a precision policy Keras's global one for a while; None changes nothing."""
    if dtype is None:
        yield
        return
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(dtype)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)
