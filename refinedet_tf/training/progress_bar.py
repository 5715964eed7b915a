"""The progress line of a run."""

import time
from collections.abc import Callable

from tqdm import tqdm

INTERVAL = 1.0  # seconds between updates


class ProgressBar:
    """Shows an epoch: images per second, mean loss, learning rate, and the time left to the end of the run.

    The time left is that of the steps; evaluations come on top.
    """

    def __init__(
        self, *, epoch: int, epochs: int, step: int, steps: int, batch_size: int, learning_rate: Callable[[int], float]
    ):
        """Starts at a step of an epoch, both counted from 0; `learning_rate` is that of a step of the epoch."""
        self._batch_size = batch_size
        self._learning_rate = learning_rate
        self._step = step
        self._steps_left = (epochs - epoch) * steps - step
        self._first_end = self._shown = None
        self._steps_since = 0
        self._bar = tqdm(
            desc=f"Epoch {epoch + 1}/{epochs}",
            total=steps * batch_size,
            initial=step * batch_size,
            unit=" images",
            mininterval=INTERVAL,
        )

    def __enter__(self) -> "ProgressBar":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the line as it is."""
        self._bar.close()

    def show(self, logs: dict[str, float]) -> None:
        """Counts a step.

        Args:
            logs: the mean losses of the epoch.
        """
        now = time.monotonic()
        self._step += 1
        self._steps_left -= 1
        if self._first_end is None:
            self._first_end = self._shown = now  # the first step takes longer: TensorFlow builds its graph
        else:
            self._steps_since += 1
            if now - self._shown >= INTERVAL or self._bar.n + self._batch_size >= self._bar.total:
                left = self._steps_left * (now - self._first_end) / self._steps_since
                rate = f"{self._learning_rate(self._step - 1):.2g}"
                self._bar.set_postfix(
                    loss=f"{logs['loss']:.3f}", rate=rate, left=tqdm.format_interval(left), refresh=False
                )
                self._shown = now
        self._bar.update(self._batch_size)
