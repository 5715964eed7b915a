"""What disks and other processes do to the folder of a run."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refinedet_tf.data.pipeline import epoch_order
from refinedet_tf.errors import TrainingError
from refinedet_tf.training import checkpoints
from refinedet_tf.training.callbacks import Steps
from refinedet_tf.training.run_folder import RunFolder
from tests.robustness.conftest import before_each_change, saved_weights


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def half(small_run, tmp_path_factory):
    """A run whose first epoch is complete."""
    folder = tmp_path_factory.mktemp("half") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Steps, "on_train_batch_end", stop_in_second_epoch(Steps.on_train_batch_end))
        with pytest.raises(InterruptedError):
            small_run.start(folder)
    return folder


def stop_in_second_epoch(original):
    def stop(self, batch, logs=None):
        if self.progress.epoch == 1:
            raise InterruptedError
        original(self, batch, logs)

    return stop


def test_a_full_disk_at_any_change_to_a_checkpoint_leaves_the_last_one(tmp_path):
    def fail():
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(tmp_path))

    saved = checkpoints.Checkpoints(tmp_path / "checkpoints", keep=2)
    for done in (1, 2, 3):
        saved.save([np.float32([done])], checkpoints.Progress(epoch=done))
    count = failures = 0
    while True:
        count, left = count + 1, count + 1
        try:
            with before_each_change(tmp_path, fail):
                saved.save([np.float32([done + 1])], checkpoints.Progress(epoch=done + 1))
            done += 1
        except TrainingError as error:
            assert "No space left on device" in str(error) and "\n" not in str(error)
            failures += 1
        if left > 0:
            break
        values, progress = saved.load_latest()
        assert values[0] == [progress.epoch] and progress.epoch in (done, done + 1)
        done = progress.epoch
    assert failures >= 6  # a folder, three files, its renaming, the oldest one's removal


def test_a_full_disk_while_results_are_written_is_named_and_made_up_for(half, small_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(half, folder)
    intact = contents(folder)

    failed = []

    def fail():
        if "~model.keras" in os.listdir(folder) and not failed:
            failed.append(True)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(folder))

    with before_each_change(folder, fail), pytest.raises(TrainingError, match="No space left on device"):
        small_run.start(folder)
    assert contents(folder)[Path("model.keras")] == intact[Path("model.keras")]
    assert "~model.keras" not in os.listdir(folder)
    small_run.start(folder)
    assert saved_weights(folder / "model.keras").keys()


def test_files_that_cannot_grow_are_named_and_leave_what_is_older(half, small_run, tmp_path):
    """The system's own error in the middle of a write: a limit to the size of files, as a quota has it."""
    largest = max(path.stat().st_size for path in half.rglob("*.npz"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100, largest // 2, largest - 1):
        folder = tmp_path / str(limit)
        shutil.copytree(half, folder)
        intact = contents(folder / "checkpoints")
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(TrainingError, match="File too large"):
                small_run.start(folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert contents(folder / "checkpoints") == intact
        assert not list(folder.rglob("~*"))


@pytest.mark.parametrize("damage", ["cut", "bit", "missing", "manifest"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage, half, small_run, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(half, folder)
    older, newest = sorted((folder / "checkpoints").iterdir())
    variables = newest / checkpoints.VARIABLES
    content = bytearray(variables.read_bytes())
    if damage == "cut":
        variables.write_bytes(content[:-1])
    elif damage == "bit":
        content[len(content) // 2] ^= 1
        variables.write_bytes(content)
    elif damage == "missing":
        variables.unlink()
    else:
        (newest / checkpoints.MANIFEST).write_text('{"files": [')
    expected = checkpoints.Checkpoints(folder / "checkpoints", keep=2)
    values, progress = expected.load_latest()
    assert f"{newest} is damaged" in caplog.text
    assert progress == checkpoints._load(older)[1] and not newest.exists()
    with np.load(older / checkpoints.VARIABLES) as arrays:
        assert all(np.array_equal(arrays[f"{index:05d}"], value) for index, value in enumerate(values))


def test_checkpoints_that_are_all_damaged_are_not_silently_trained_over(half, small_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(half, folder)
    for path in folder.glob("checkpoints/*/variables.npz"):
        path.write_bytes(b"")
    with pytest.raises(TrainingError, match=r"No checkpoint in .* is intact"):
        small_run.start(folder)


def test_only_so_many_checkpoints_are_kept(half):
    assert len(list((half / "checkpoints").iterdir())) == 2


def test_a_second_run_in_the_folder_is_refused_until_the_first_is_dead(small_run, tmp_path):
    holder = (
        "import sys, time, pathlib; from refinedet_tf.config import load_config\n"
        "from refinedet_tf.training.run_folder import RunFolder\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "with RunFolder(folder, load_config(folder / 'recipe.yaml')):\n"
        "    print('locked', flush=True); time.sleep(600)"
    )
    with RunFolder(tmp_path, small_run.config):
        pass
    with subprocess.Popen([sys.executable, "-c", holder, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(TrainingError, match="Another process trains"), RunFolder(tmp_path, small_run.config):
            pass
        process.kill()
    with RunFolder(tmp_path, small_run.config):
        pass


@pytest.mark.skipif(os.access("/sys", os.W_OK), reason="/sys is not read-only here")
def test_a_read_only_folder_is_named(small_run):
    with pytest.raises(TrainingError, match="/sys/run cannot be written"):
        small_run.start(Path("/sys/run"))


@pytest.mark.parametrize(
    "when, message", [("begin", "loss is nan in epoch 2, step 1"), ("end", "weights are not finite")]
)
def test_a_diverging_run_ends_with_an_error_and_keeps_the_last_good_state(
    when, message, half, small_run, tmp_path, monkeypatch, shapes_dir
):
    folder = tmp_path / "run"
    shutil.copytree(half, folder)
    intact = contents(folder / "checkpoints"), saved_weights(folder / "model.keras")
    original = getattr(Steps, f"on_train_batch_{when}")

    def diverge(self, batch, logs=None):
        for variable in small_run.run.model.trainable_variables:
            variable.assign(np.full(variable.shape, np.nan))
        original(self, batch, logs)

    monkeypatch.setattr(Steps, f"on_train_batch_{when}", diverge)
    with pytest.raises(TrainingError, match=message) as error:
        small_run.start(folder)
    assert contents(folder / "checkpoints") == intact[0]
    for name in ("model.keras", "best.keras"):
        weights = saved_weights(folder / name)
        assert all(np.array_equal(weights[key], intact[1][key]) for key in weights)
    if when == "begin":  # the images of the first step of the second epoch
        names = {path.stem for path in (shapes_dir / "JPEGImages").iterdir() if path.stem in str(error.value)}
        order = np.asarray(epoch_order(8, seed=small_run.config.train.seed, epoch=1))
        listed = (shapes_dir / "ImageSets/Main/train.txt").read_text().split()
        assert names == {listed[index] for index in order[:4]}
