"""A run that is killed goes on as if nothing had happened."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from refinedet_tf.errors import TrainingError
from refinedet_tf.training.callbacks import Steps
from refinedet_tf.training.checkpoints import Checkpoints
from refinedet_tf.training.stopping import StopRequests
from tests.conftest import PROJECT
from tests.robustness.conftest import Finished, before_each_change, saved_weights


@pytest.fixture(scope="module")
def finished(small_run, tmp_path_factory):
    folder, copies = tmp_path_factory.mktemp("whole") / "run", tmp_path_factory.mktemp("snapshots")
    snapshots = []

    def copy():
        if folder.exists():
            snapshots.append(copies / f"{len(snapshots):03d}")
            shutil.copytree(folder, snapshots[-1])

    with before_each_change(folder, copy):
        values = small_run.start(folder)
    return Finished(folder, values, snapshots)


def position(folder):
    """Epochs, steps and whether the evaluation is all that is missing of the epoch, in the last intact checkpoint."""
    found = Checkpoints(folder / "checkpoints", keep=2).load_latest()
    return (0, 0, False) if found is None else (found[1].epoch, found[1].step, bool(found[1].logs))


def test_a_kill_at_any_change_to_a_file_loses_at_most_one_step_and_changes_nothing(finished, small_run):
    # What a SIGKILL leaves on disk before the n-th change to a file is a copy of the folder at that moment.
    last = {}
    for snapshot in finished.snapshots:
        last[position(snapshot)] = snapshot
    assert list(last) == [
        (0, 0, False), (0, 1, False), (0, 2, True), (1, 0, False), (1, 1, False), (1, 2, True), (2, 0, False)
    ]  # fmt: skip
    assert len(finished.snapshots) > 50
    for place in ((0, 1, False), (0, 2, True), (1, 0, False), (1, 1, False)):
        snapshot = last[place]
        values = small_run.start(snapshot)
        assert all(np.array_equal(a, b) for a, b in zip(values, finished.values, strict=True)), snapshot
        for name in ("log.csv", "evaluations.json", "recipe.yaml"):
            assert (snapshot / name).read_text() == (finished.folder / name).read_text(), (snapshot, name)
        for name in ("model.keras", "best.keras"):
            expected, weights = saved_weights(finished.folder / name), saved_weights(snapshot / name)
            assert weights.keys() == expected.keys()
            assert all(np.array_equal(weights[key], expected[key]) for key in expected), (snapshot, name)
        assert not list(snapshot.rglob("~*"))


def test_the_same_seed_twice_gives_the_same_weights_to_the_last_bit(finished, small_run, tmp_path):
    """In one process; `test_the_command_killed_at_a_random_moment...` compares two."""
    values = small_run.start(tmp_path)
    assert any(value.dtype.kind == "f" and np.ptp(value) for value in values)
    for value, expected in zip(values, finished.values, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_each_epoch_stands_once_in_the_histories(finished):
    rows = (finished.folder / "log.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "0", "1"]
    assert [entry["epoch"] for entry in json.loads((finished.folder / "evaluations.json").read_text())] == [1, 2]


def test_the_same_command_after_the_end_trains_nothing_and_says_how_to_go_on(finished, small_run, tmp_path, caplog):
    shutil.copytree(finished.folder, tmp_path / "run")
    values = small_run.start(tmp_path / "run")
    assert "is finished" in caplog.text and "raise train.epochs" in caplog.text
    assert all(np.array_equal(a, b) for a, b in zip(values, finished.values, strict=True))
    assert position(tmp_path / "run") == (2, 0, False)


def test_a_finished_run_is_extended_by_more_epochs(finished, small_run, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    longer = dataclasses.replace(small_run.config, train=dataclasses.replace(small_run.config.train, epochs=3))
    monkeypatch.setattr(small_run, "config", longer)
    monkeypatch.setattr(small_run.run, "_config", longer)
    small_run.start(folder)
    assert position(folder) == (3, 0, False)
    assert [entry["epoch"] for entry in json.loads((folder / "evaluations.json").read_text())] == [1, 2, 3]
    assert (folder / "log.csv").read_text().startswith((finished.folder / "log.csv").read_text())
    assert "epochs: 3" in (folder / "recipe.yaml").read_text()


def test_a_signal_saves_the_state_and_the_run_goes_on(finished, small_run, tmp_path, monkeypatch):
    original = Steps.on_train_batch_end

    def interrupted(self, batch, logs=None):
        if (self.progress.epoch, self.progress.step) == (1, 0):
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, batch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(Steps, "on_train_batch_end", interrupted)
        with pytest.raises(TrainingError, match="Stopped by SIGTERM"):
            small_run.start(tmp_path)
    assert position(tmp_path) == (1, 1, False)
    values = small_run.start(tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(values, finished.values, strict=True))


def test_a_signal_ends_an_evaluation_at_once(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr("refinedet_tf.training.run.evaluate", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrainingError, match="Stopped by SIGTERM"):
        small_run.start(tmp_path)
    assert position(tmp_path) == (0, 2, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_noted_and_given_back(number):
    before = signal.getsignal(number)
    with StopRequests() as requests:
        requests.stop()
        os.kill(os.getpid(), number)
        assert requests.requested
        with pytest.raises(KeyboardInterrupt):  # the second one
            os.kill(os.getpid(), number)
        with pytest.raises(TrainingError, match=f"Stopped by {number.name}"):
            requests.stop()
    assert signal.getsignal(number) is before


def test_the_command_killed_at_a_random_moment_ends_with_the_same_weights(
    finished_run, tiny_recipe, shapes_dir, tmp_path
):
    command = [sys.executable, "train.py", f"--config={tiny_recipe}", f"--data_dir={shapes_dir}"]
    command += [f"--work_dir={tmp_path}", "--set=train.epochs=1", "--set=train.checkpoint_steps=1"]
    process = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("checkpoints/0*")) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 1))
    process.send_signal(signal.SIGKILL)
    process.wait()
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Going on after" in result.stderr
    for name in ("model.keras", "best.keras"):
        weights, expected = saved_weights(tmp_path / name), saved_weights(finished_run / name)
        assert all(np.array_equal(weights[key], expected[key]) for key in expected)
    assert (tmp_path / "log.csv").read_text() == (finished_run / "log.csv").read_text()
