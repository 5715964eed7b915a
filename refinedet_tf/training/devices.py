"""The devices of a run: one, all GPUs of this machine, or those of the workers that `TF_CONFIG` names."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from refinedet_tf.config import TrainConfig
from refinedet_tf.errors import ConfigError, TrainingError
from refinedet_tf.stacks import tf_variable

CLUSTER = "TF_CONFIG"
# What the steps of the other workers end with when one of them ends.
LOST_WORKER = (tf.errors.UnavailableError, tf.errors.AbortedError)


@dataclass(frozen=True)
class Devices:
    """Where a run trains.

    Attributes:
        strategy: over all devices.
        worker: the place of this process among the workers.
        num_workers: processes that train together.
    """

    strategy: tf.distribute.Strategy
    worker: int = 0
    num_workers: int = 1

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the results: the first worker."""
        return self.worker == 0

    @property
    def num_replicas(self) -> int:
        """The devices of all workers together."""
        return self.strategy.num_replicas_in_sync

    def agree(self, number: int) -> bool:
        """Waits for all workers; returns whether all gave the same number, which must be below 2^24."""
        if self.num_workers == 1:
            return True

        @tf.function
        def spread() -> Any:
            both = tf.constant([number, number * number], tf.float64)
            return self.strategy.run(lambda: _all_reduce(tf.identity(both)))  # a copy on each device

        total, squares = self.strategy.experimental_local_results(spread())[0].numpy() / self.num_replicas
        return total == number and squares == number * number


def find_devices() -> Devices:
    """Returns the workers of `TF_CONFIG`, or else all GPUs of this machine, or else its one device.

    With `TF_CONFIG` it must come before anything else that uses TensorFlow's runtime, and it waits for all workers.

    Raises:
        ConfigError: `TF_CONFIG` cannot be used, or TensorFlow has been used before.
    """
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    try:
        jobs, task, index = resolver.cluster_spec().as_dict(), resolver.task_type, resolver.task_id
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{CLUSTER} is not what TensorFlow expects: {error}.") from error
    workers = [("chief", place) for place in range(len(jobs.get("chief", ())))]
    workers += [("worker", place) for place in range(len(jobs.get("worker", ())))]
    if len(workers) < 2:
        if len(tf.config.list_physical_devices("GPU")) > 1:
            return Devices(tf.distribute.MirroredStrategy())
        return Devices(tf.distribute.get_strategy())
    if set(jobs) - {"chief", "worker"} or (task, index) not in workers:
        raise ConfigError(
            f"{CLUSTER} has the jobs {json.dumps(jobs)} and makes this process {task} {index}. Name all machines under "
            '"worker" and give each process its own "index" there, from 0.'
        )
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise ConfigError(
            f"{CLUSTER} names {len(workers)} workers, and TensorFlow can set up their connections only before it is "
            f"used for anything else ({error}). Start the training in a new process."
        ) from error
    return Devices(strategy, workers.index((task, index)), len(workers))


def check_shared_training(train: TrainConfig, devices: Devices) -> None:
    """Checks that a recipe can be trained on several devices.

    Raises:
        ConfigError: it cannot.
    """
    count = devices.num_replicas
    if count == 1:
        return
    if train.batch_size % count:
        raise ConfigError(
            f"train.batch_size = {train.batch_size}: must be a multiple of {count}, the number of devices."
        )
    if train.accumulation_steps > 1:
        raise ConfigError(
            f"train.accumulation_steps = {train.accumulation_steps}: Keras accumulates gradients on one device only; "
            f"there are {count}. Use 1."
        )
    if train.jit_compile is True:
        raise ConfigError(f"train.jit_compile = true: XLA compiles for one device, and there are {count}. Use auto.")


@contextlib.contextmanager
def lost_workers_explained(devices: Devices) -> Iterator[None]:
    """Turns the error of a step whose other workers are gone into one that says how to go on.

    Raises:
        TrainingError: another worker has ended.
    """
    try:
        yield
    except LOST_WORKER as error:
        if devices.num_workers == 1:
            raise
        raise TrainingError(
            f"Another of the {devices.num_workers} workers has ended or cannot be reached. Start all of them again "
            "with the same command; the run goes on from its last checkpoint."
        ) from error


def local_parts(variable: Any, strategy: tf.distribute.Strategy) -> tuple[tf.Variable, ...]:
    """Returns the copies of a variable that this process holds, one for each of its devices."""
    return strategy.experimental_local_results(tf_variable(variable))


def _all_reduce(value: tf.Tensor) -> tf.Tensor:
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)
