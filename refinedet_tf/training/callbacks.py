"""The callback that accompanies the steps of an epoch."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from tensorflow import keras

from refinedet_tf.errors import TrainingError
from refinedet_tf.training.checkpoints import Checkpoints, Progress, RunVariables
from refinedet_tf.training.stopping import StopRequests


class Steps(keras.callbacks.Callback):
    """Counts the steps of one epoch, saves checkpoints, and stops on bad numbers and on request.

    Attributes:
        progress: how far the run is.
        values: all variables after the last step of the epoch, before Keras puts moving averages in their place.
    """

    def __init__(
        self,
        progress: Progress,
        variables: RunVariables,
        checkpoints: Checkpoints,
        *,
        steps: int,
        checkpoint_steps: int,
        stop_requests: StopRequests,
        name_images: Callable[[Progress], Sequence[str]],
        show: Callable[[dict[str, float]], None],
    ):
        """Goes on from `progress`.

        Args:
            progress: how far the run is, within an epoch or at its beginning.
            variables: of the run, as they are at that point.
            checkpoints: where to save.
            steps: of a whole epoch.
            checkpoint_steps: between checkpoints; 0: none before the end of the epoch.
            stop_requests: checked after each step.
            name_images: from the progress before a step to the names of the step's images.
            show: called after each step with the mean losses.
        """
        super().__init__()
        self.progress = progress
        self.values = variables.read()
        self._variables = variables
        self._checkpoints = checkpoints
        self._steps = steps
        self._checkpoint_steps = checkpoint_steps
        self._stop_requests = stop_requests
        self._name_images = name_images
        self._show = show

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the means of the losses again, which Keras has just reset, if the epoch has steps already."""
        if self.progress.step:
            self._variables.assign(self.values)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Checks the loss, saves if it is time, and stops if that is requested."""
        if not math.isfinite(logs["loss"]):
            raise TrainingError(self._bad_loss(float(logs["loss"])))
        self.progress = dataclasses.replace(self.progress, step=self.progress.step + 1)
        self._show(logs)
        due = self._checkpoint_steps and self.progress.step % self._checkpoint_steps == 0
        if self.progress.step < self._steps and (due or self._stop_requests.requested):
            self._checkpoints.save(self._variables.read(), self.progress)
            self._stop_requests.stop()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Keeps the mean losses and the variables."""
        self.progress = dataclasses.replace(self.progress, logs={name: float(value) for name, value in logs.items()})
        self.values = self._variables.read()

    def _bad_loss(self, loss: float) -> str:
        names = ", ".join(self._name_images(self.progress))
        return (
            f"The loss is {loss} in epoch {self.progress.epoch + 1}, step {self.progress.step + 1}, on the images "
            f"{names}. The last checkpoint is kept, as are model.keras and best.keras. Train in another folder with a "
            "lower train.learning_rate, a longer train.warmup_steps or a train.clip_norm, if the images are sound."
        )
