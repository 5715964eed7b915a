import threading
import time

import pytest

from refinedet_tf.inference.background import in_background


def counted(count, made, closed=None):
    try:
        for number in range(count):
            made.append(number)
            yield number
    finally:
        if closed is not None:
            closed.append(True)


def test_items_come_in_order_and_no_more_than_asked_for_wait():
    made = []
    items = in_background(counted(50, made), 3)
    assert next(items) == 0
    time.sleep(0.3)
    assert len(made) <= 5, "one used, three waiting, one at the door"
    assert list(items) == list(range(1, 50))


def test_an_error_comes_at_its_place():
    def failing():
        yield 1
        raise OSError("broken")

    items = in_background(failing(), 3)
    assert next(items) == 1
    with pytest.raises(OSError, match="broken"):
        next(items)


def test_whoever_stops_early_leaves_no_thread_and_an_ended_generator():
    closed, before = [], threading.active_count()
    items = in_background(counted(10**9, [], closed), 2)
    assert next(items) == 0
    items.close()
    assert closed == [True] and threading.active_count() == before


def test_a_live_source_does_not_wait_and_loses_the_oldest():
    used_first, ended, before = threading.Event(), [], threading.active_count()

    def live():
        yield 0
        used_first.wait()
        yield from counted(100, [], ended)

    items = in_background(live(), 2, drop_oldest=True)
    assert next(items) == 0
    used_first.set()
    while threading.active_count() > before:
        time.sleep(0.01)
    assert ended and list(items) == [99], "98 made way for the end"
