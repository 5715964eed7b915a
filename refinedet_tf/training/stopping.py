"""SIGTERM and Ctrl-C as requests, which a run meets where its state is complete."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from refinedet_tf.errors import TrainingError


class StopRequests:
    """Notes SIGTERM and SIGINT while it is entered; the second signal interrupts at once.

    Outside the main thread, where Python does not deliver signals, it notes nothing. Of several workers only the chief
    meets a request; the others go on until the chief has ended, or a second signal comes.
    """

    def __init__(self, is_chief: bool = True):
        """Nothing is caught before it is entered."""
        self._is_chief = is_chief
        self._signal: str | None = None
        self._at_once = False
        self._previous = {}

    def __enter__(self) -> "StopRequests":
        """Takes over the signals."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @property
    def requested(self) -> bool:
        """Whether a signal has come that this process must meet."""
        return self._is_chief and self._signal is not None

    def stop(self) -> None:
        """Ends the run if a signal has come; its state must be saved.

        Raises:
            TrainingError: says so.
        """
        if self.requested:
            name, self._signal = self._signal, None
            raise TrainingError(f"Stopped by {name}. The state is saved; the same command goes on from here.")

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Lets a signal end what is done inside immediately; the state must be saved before."""
        self.stop()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = signal.Signals(number).name
        if self._at_once:
            self.stop()
