"""A run: epoch after epoch, with checkpoints and evaluations."""

import contextlib
import functools
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow import keras

from refinedet_tf.config import Config
from refinedet_tf.data.examples import ExampleSet
from refinedet_tf.data.pipeline import epoch_order, epoch_variable, training_pipeline
from refinedet_tf.errors import TrainingError
from refinedet_tf.evaluation.evaluator import EvaluationResult, evaluate
from refinedet_tf.losses import RefineDetLoss
from refinedet_tf.model import RefineDet, build_model
from refinedet_tf.ops.resizing import Resizing
from refinedet_tf.stacks import assign_averages, create_optimizer_variables, synchronize_batch_norm
from refinedet_tf.training.callbacks import Steps
from refinedet_tf.training.checkpoints import Progress, RunVariables
from refinedet_tf.training.devices import Devices, check_shared_training, local_parts
from refinedet_tf.training.files import explained_errors
from refinedet_tf.training.optimizers import averaged_weights, build_optimizer, build_schedule
from refinedet_tf.training.progress_bar import ProgressBar
from refinedet_tf.training.report import best_evaluation, draw_comparisons, write_report
from refinedet_tf.training.run_folder import RunFolder
from refinedet_tf.training.stopping import StopRequests
from refinedet_tf.visualization.curves import save_loss_curves
from refinedet_tf.weights import load_weights

AP_LOG = "val_ap"
SUMMARY_IMAGES = 4  # pictures for TensorBoard


class Run:
    """A model and the data it is trained on.

    Attributes:
        model: compiled.
        dataset: one epoch of training batches; with several workers, this one's share.
        steps: of an epoch.
        variables: everything that training changes.
    """

    def __init__(self, config: Config, train_set: ExampleSet, val_set: ExampleSet | None, devices: Devices):
        """Builds the data, the model with its initial weights, and the optimizer.

        Raises:
            ConfigError, DataError, WeightFileError: they do not fit the recipe or the devices.
        """
        check_shared_training(config.train, devices)
        self._config = config
        self._devices = devices
        self._train_set = train_set
        self._val_set = val_set
        self._epoch = epoch_variable(0)
        self.dataset = self._build_dataset(first_step=0)
        self.steps = len(train_set) // config.train.batch_size
        with devices.strategy.scope(), _precision_policy(config.train.precision):
            self.model = build_model(config)
            if config.train.weights:
                logging.info("%s", load_weights(self.model, config.train.weights, config.train.class_map).summary())
            if config.train.synchronize_batch_norm and devices.num_replicas > 1:
                synchronize_batch_norm(self.model)
            optimizer = build_optimizer(config.train, self.steps, self.model)
            jit_compile = config.train.jit_compile
            if jit_compile == "auto":  # XLA compiles for one device
                jit_compile = devices.num_replicas == 1 and bool(tf.config.list_physical_devices("GPU"))
            loss = RefineDetLoss.for_model(config.model, normalize_positives=config.train.normalize_positives)
            self.model.compile(optimizer, loss, jit_compile=jit_compile)
            create_optimizer_variables(self.model.optimizer, self.model.trainable_variables)
        self._schedule = build_schedule(config.train, self.steps)
        self.variables = RunVariables(self.model)
        self._result: EvaluationResult | None = None

    def train(self, folder: RunFolder, stop_requests: StopRequests) -> None:
        """Goes on from the folder's last checkpoint, or from the start, and leaves the results in the folder.

        Raises:
            TrainingError: the loss is not finite, a file cannot be written, or the run was stopped.
        """
        progress = self._restore(folder)
        if progress.epoch >= self._config.train.epochs:
            logging.warning(
                "The run in %s is finished: it has trained for %d epochs. To go on, raise train.epochs.",
                folder.path,
                progress.epoch,
            )
        while progress.epoch < self._config.train.epochs:
            if progress.step < self.steps:
                progress = self._train_epoch(progress, folder, stop_requests)
            progress = self._complete_epoch(progress, folder, stop_requests)
            self._write_results(progress, folder)
            stop_requests.stop()
        assign_averages(self.model.optimizer, self.model.trainable_variables)
        self._write_report(progress, folder)

    def _restore(self, folder: RunFolder) -> Progress:
        """Sets all variables to those of the last checkpoint and brings the results in line with it."""
        values, progress = folder.checkpoints.load_latest() or (None, Progress())
        if not self._devices.agree(progress.epoch * self.steps + progress.step):
            raise TrainingError(
                "The workers found different checkpoints. The work folder must be on storage that all of them share."
            )
        if values is None:
            return progress
        self.variables.assign(values)
        logging.info("Going on after %d epochs and %d steps.", progress.epoch, progress.step)
        self._write_results(progress, folder)
        return progress

    def _train_epoch(self, progress: Progress, folder: RunFolder, stop_requests: StopRequests) -> Progress:
        """Takes the steps that are left of an epoch."""
        train, steps = self._config.train, self.steps
        self._epoch.assign(progress.epoch)
        dataset = self._build_dataset(progress.step) if progress.step else self.dataset
        bar = ProgressBar(
            epoch=progress.epoch,
            epochs=train.epochs,
            step=progress.step,
            steps=steps,
            batch_size=train.batch_size,
            learning_rate=lambda step: float(self._schedule(progress.epoch * steps + step)),
        )
        watch = Steps(
            progress,
            self.variables,
            folder.checkpoints,
            steps=steps,
            checkpoint_steps=train.checkpoint_steps,
            stop_requests=stop_requests,
            name_images=self._image_names,
            show=bar.show,
        )
        with bar:
            self.model.fit(  # the pipeline shuffles
                dataset, steps_per_epoch=steps - progress.step, shuffle=False, verbose=0, callbacks=[watch]
            )
        # At its end `fit` replaces the weights by their moving averages, if the optimizer keeps them.
        self.variables.assign(watch.values)
        return watch.progress

    def _complete_epoch(self, progress: Progress, folder: RunFolder, stop_requests: StopRequests) -> Progress:
        """Evaluates if it is time, and saves a checkpoint with the epoch's history."""
        train, number, values = self._config.train, progress.epoch + 1, self.variables.read()
        row = {"epoch": progress.epoch, **progress.logs, AP_LOG: None}
        evaluations = progress.evaluations
        if self._val_set is not None and self._is_evaluated(number):
            folder.checkpoints.save(values, progress)
            with stop_requests.at_once(), self._evaluated_model() as model:
                result = self._evaluate(model)
            logging.info("Epoch %d, validation:\n%s", number, result.table())
            self._result = result
            figures = result.as_dict()
            row[AP_LOG] = figures[train.best_metric]
            evaluations = [*evaluations, {"epoch": number, AP_LOG: row[AP_LOG], **figures}]
        progress = Progress(epoch=number, rows=[*progress.rows, row], evaluations=evaluations)
        folder.checkpoints.save(values, progress)
        self._write_summaries(progress, folder)
        return progress

    def _write_results(self, progress: Progress, folder: RunFolder) -> None:
        """Writes the histories, and the model if it has just been evaluated."""
        folder.write_history(progress)
        if self._val_set is None and not progress.step and self._is_evaluated(progress.epoch):
            with self._evaluated_model() as model:
                folder.write_models(model, best=False)
        if progress.step or not progress.evaluations or progress.evaluations[-1]["epoch"] != progress.epoch:
            return
        best = best_evaluation(progress.evaluations)
        with self._evaluated_model() as model:
            folder.write_models(model, best=best["epoch"] == progress.epoch)

    def _is_evaluated(self, epoch: int) -> bool:
        """Whether the model is evaluated and written after so many epochs."""
        train = self._config.train
        return epoch > 0 and (epoch % train.evaluate_every == 0 or epoch == train.epochs)

    def _write_summaries(self, progress: Progress, folder: RunFolder) -> None:
        """Writes the last epoch's numbers for TensorBoard, with pictures if it has been evaluated."""
        row, evaluations = progress.rows[-1], progress.evaluations
        with tf.summary.create_file_writer(str(folder.path / "tensorboard")).as_default(step=progress.epoch):
            for name, value in row.items():
                if name != "epoch" and value is not None:
                    tf.summary.scalar(name, value)
            tf.summary.scalar("learning_rate", self._schedule(progress.epoch * self.steps - 1))
            if evaluations and evaluations[-1]["epoch"] == progress.epoch:
                for index, picture in enumerate(draw_comparisons(self._result, self._val_set, {}, SUMMARY_IMAGES)):
                    tf.summary.image(f"ground truth and detections/{index}", picture[np.newaxis])

    def _write_report(self, progress: Progress, folder: RunFolder) -> None:
        """Draws the curves and writes the report, unless it exists or there are no validation images."""
        if self._val_set is None:
            with explained_errors(folder.path):
                save_loss_curves(folder.path / "log.csv", folder.path / "curves.png")
            return
        if self._result is None:
            if (folder.path / "report.html").exists():
                return
            with self._evaluated_model() as model:
                self._result = self._evaluate(model)
        with explained_errors(folder.path):
            save_loss_curves(folder.path / "log.csv", folder.path / "curves.png")
            write_report(folder.path, self._config, progress, self._result, len(self._train_set), self._val_set)

    @contextlib.contextmanager
    def _evaluated_model(self) -> Iterator[RefineDet]:
        """The model to evaluate and write, with averages in place of the weights if the optimizer keeps them.

        With several workers it is a copy outside their strategy, under which all of them would have to take part.
        """
        with averaged_weights(self.model):
            if self._devices.num_workers == 1:
                yield self.model
                return
            for variable, trained in zip(self._copy.weights, self.model.weights, strict=True):
                variable.assign(local_parts(trained, self._devices.strategy)[0].numpy())
            yield self._copy

    @functools.cached_property
    def _copy(self) -> RefineDet:
        with _precision_policy(self._config.train.precision):
            return build_model(self._config)

    def _evaluate(self, model: RefineDet) -> EvaluationResult:
        """Evaluates a model on the validation images."""
        return evaluate(
            model,
            self._val_set,
            batch_size=self._config.train.batch_size,
            protocol=self._config.evaluation.protocol,
        )

    def _build_dataset(self, first_step: int) -> tf.data.Dataset | tf.distribute.DistributedDataset:
        """The batches of an epoch from a step on; with several workers, this one's, a batch for each of its devices."""
        config, devices = self._config, self._devices
        share = config.train.batch_size // devices.num_workers
        batches = functools.partial(
            training_pipeline,
            self._train_set.examples,
            Resizing(*config.model.input_size, config.model.resize),
            augmentation=config.data.augmentation,
            max_boxes=config.data.max_boxes,
            seed=config.train.seed,
            cache=config.data.cache,
            shard=(devices.worker, devices.num_workers),
            epoch=self._epoch,
            start=first_step * share,
        )
        if devices.num_workers == 1:
            return batches(batch_size=share)
        return devices.strategy.distribute_datasets_from_function(
            lambda context: batches(batch_size=context.get_per_replica_batch_size(config.train.batch_size))
        )

    def _image_names(self, progress: Progress) -> list[str]:
        """The image files of the step after `progress`."""
        examples, batch_size = self._train_set.examples, self._config.train.batch_size
        order = epoch_order(len(examples), self._config.train.seed, progress.epoch).numpy()
        first = progress.step * batch_size
        return [examples[index].image_id for index in order[first : first + batch_size]]


@contextlib.contextmanager
def _precision_policy(name: str) -> Iterator[None]:
    """Builds layers under a precision policy."""
    previous = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(previous)
