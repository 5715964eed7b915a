"""A training step across replicas, the devices of one machine or of many that share a batch."""

from typing import Any

import tensorflow as tf


def num_workers() -> int:
    """Returns the number of processes that train together under the current strategy."""
    strategy = tf.distribute.get_strategy()
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 1
    return max(1, sum(len(tasks) for tasks in strategy.cluster_resolver.cluster_spec().as_dict().values()))


def over_replicas(operation: tf.distribute.ReduceOp, values: Any) -> Any:
    """Returns the sum or the mean of tensors over all replicas; called in each of them."""
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return values
    return replica.all_reduce(operation, values)
