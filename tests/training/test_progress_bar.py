import pytest

from refinedet_tf.training import progress_bar
from refinedet_tf.training.progress_bar import ProgressBar


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets, for the bar and for the images per second of tqdm."""
    now = [100.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    return now


def test_it_shows_the_loss_the_rate_of_the_step_and_the_time_left_of_the_run(clock, capfd):
    """Going on at step 2 of 5 in the second of three epochs: eight steps are left, of half a second each."""
    with ProgressBar(
        epoch=1, epochs=3, step=2, steps=5, batch_size=4, learning_rate=lambda step: 0.01 * (step + 1)
    ) as bar:
        bar.show({"loss": 9.0})  # the first step, which is not timed: its graph is built
        for _ in range(2):
            clock[0] += 0.5
            bar.show({"loss": 1.25})
    shown = capfd.readouterr().err
    assert "Epoch 2/3" in shown and "20/20" in shown and "images/s" in shown
    last = shown.rsplit("Epoch 2/3", 1)[1]
    assert "loss=1.250" in last and "rate=0.05" in last
    assert "left=00:02" in last  # five steps of the third epoch
