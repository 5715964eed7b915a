"""Reading ahead in a thread, and in batches."""

import contextlib
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

from refinedet_tf.errors import RefineDetError

Item = TypeVar("Item")

_END = object()


def in_background(items: Generator[Item, None, None], ahead: int, *, drop_oldest: bool = False) -> Iterator[Item]:
    """Iterates over items in a thread of its own, so that producing them runs beside using them.

    Args:
        items: a generator, which is closed in the end; an error in it is raised where its item would have come.
        ahead: how many items wait at most.
        drop_oldest: give up the item that waited longest instead of making the producer wait, for live sources.

    Yields:
        The items in their order. The thread ends when the iterator is closed.
    """
    waiting = queue.Queue(ahead)
    closed = threading.Event()

    def put(entry: tuple[object, BaseException | None]) -> None:
        while not closed.is_set():
            try:
                waiting.put(entry, timeout=0 if drop_oldest else 0.1)
                return
            except queue.Full:
                if drop_oldest:
                    with contextlib.suppress(queue.Empty):
                        waiting.get_nowait()

    def produce() -> None:
        try:
            with contextlib.closing(items):
                for item in items:
                    put((item, None))
                    if closed.is_set():
                        return
            put((_END, None))
        except BaseException as error:  # raised in the thread that uses the items
            put((_END, error))

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        closed.set()
        thread.join()


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yields lists of `size` items, the last one shorter. An error in `items` is raised after the items before it."""
    batch = []
    try:
        for item in items:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except RefineDetError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch
