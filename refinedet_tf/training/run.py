"""A run: epoch after epoch, with checkpoints and evaluations."""

import contextlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow import keras

from refinedet_tf.config import Config
from refinedet_tf.data.examples import ExampleSet
from refinedet_tf.data.pipeline import epoch_order, epoch_variable, training_pipeline
from refinedet_tf.evaluation.evaluator import EvaluationResult, evaluate
from refinedet_tf.losses import RefineDetLoss
from refinedet_tf.model import build_model
from refinedet_tf.ops.resizing import Resizing
from refinedet_tf.stacks import assign_averages, create_optimizer_variables
from refinedet_tf.training.callbacks import Steps
from refinedet_tf.training.checkpoints import Progress, RunVariables
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
        dataset: one epoch of training batches.
        variables: everything that training changes.
    """

    def __init__(
        self, config: Config, train_set: ExampleSet, val_set: ExampleSet | None, strategy: tf.distribute.Strategy
    ):
        """Builds the data, the model with its initial weights, and the optimizer.

        Raises:
            ConfigError, DataError, WeightFileError: they do not fit the recipe.
        """
        self._config = config
        self._train_set = train_set
        self._val_set = val_set
        self._epoch = epoch_variable(0)
        self.dataset = self._build_dataset(first_step=0)
        with strategy.scope(), _precision_policy(config.train.precision):
            self.model = build_model(config)
            if config.train.weights:
                logging.info("%s", load_weights(self.model, config.train.weights, config.train.class_map).summary())
            optimizer = build_optimizer(config.train, len(self.dataset), self.model)
            jit_compile = config.train.jit_compile
            if jit_compile == "auto":
                jit_compile = bool(tf.config.list_physical_devices("GPU"))
            loss = RefineDetLoss.for_model(config.model, normalize_positives=config.train.normalize_positives)
            self.model.compile(optimizer, loss, jit_compile=jit_compile)
            create_optimizer_variables(self.model.optimizer, self.model.trainable_variables)
        self._schedule = build_schedule(config.train, len(self.dataset))
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
            if progress.step < len(self.dataset):
                progress = self._train_epoch(progress, folder, stop_requests)
            progress = self._complete_epoch(progress, folder, stop_requests)
            self._write_results(progress, folder)
            stop_requests.stop()
        assign_averages(self.model.optimizer, self.model.trainable_variables)
        self._write_report(progress, folder)

    def _restore(self, folder: RunFolder) -> Progress:
        """Sets all variables to those of the last checkpoint and brings the results in line with it."""
        found = folder.checkpoints.load_latest()
        if found is None:
            return Progress()
        values, progress = found
        self.variables.assign(values)
        logging.info("Going on after %d epochs and %d steps.", progress.epoch, progress.step)
        self._write_results(progress, folder)
        return progress

    def _train_epoch(self, progress: Progress, folder: RunFolder, stop_requests: StopRequests) -> Progress:
        """Takes the steps that are left of an epoch."""
        train, steps = self._config.train, len(self.dataset)
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
            self.model.fit(dataset, shuffle=False, verbose=0, callbacks=[watch])  # the pipeline shuffles
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
            with stop_requests.at_once(), averaged_weights(self.model):
                result = self._evaluate()
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
            with averaged_weights(self.model):
                folder.write_models(self.model, best=False)
        if progress.step or not progress.evaluations or progress.evaluations[-1]["epoch"] != progress.epoch:
            return
        best = best_evaluation(progress.evaluations)
        with averaged_weights(self.model):
            folder.write_models(self.model, best=best["epoch"] == progress.epoch)

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
            tf.summary.scalar("learning_rate", self._schedule(progress.epoch * len(self.dataset) - 1))
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
            self._result = self._evaluate()
        with explained_errors(folder.path):
            save_loss_curves(folder.path / "log.csv", folder.path / "curves.png")
            write_report(folder.path, self._config, progress, self._result, len(self._train_set), self._val_set)

    def _evaluate(self) -> EvaluationResult:
        """Evaluates the model on the validation images."""
        return evaluate(
            self.model,
            self._val_set,
            batch_size=self._config.train.batch_size,
            protocol=self._config.evaluation.protocol,
        )

    def _build_dataset(self, first_step: int) -> tf.data.Dataset:
        """The batches of an epoch from a step on."""
        config = self._config
        return training_pipeline(
            self._train_set.examples,
            Resizing(*config.model.input_size, config.model.resize),
            config.train.batch_size,
            config.data.augmentation,
            config.data.max_boxes,
            config.train.seed,
            cache=config.data.cache,
            epoch=self._epoch,
            start=first_step * config.train.batch_size,
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
