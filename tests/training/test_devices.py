"""Many devices train as one does on the same batches. CPUs stand in: logical devices, and processes on loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import tensorflow as tf

from refinedet_tf.config import TrainConfig
from refinedet_tf.errors import ConfigError
from refinedet_tf.stacks import KERAS_MAJOR
from refinedet_tf.training.checkpoints import Checkpoints
from refinedet_tf.training.devices import check_shared_training, find_devices
from tests.conftest import PROJECT
from tests.robustness.conftest import saved_weights

keras_3 = pytest.mark.skipif(KERAS_MAJOR == 2, reason="many devices have been tried with Keras 3 only")
PLAIN = "{photometric: false, expand_max_ratio: 1.0, random_crop: false, random_interpolation: false}"
# The paper's network, narrowed: it has no batch normalization, whose statistics would depend on the devices.
OVERRIDES = [
    "model.backbone={name: vgg16, alpha: 1.0}",
    "model.batch_norm=false",
    "model.separable=false",
    f"data.augmentation={PLAIN}",
    "train.optimizer=sgd",
    "train.schedule=multistep",
    "train.clip_norm=10",
    "train.normalize_positives=global",
    "train.evaluate_every=2",
]


def start(devices, recipe, shapes_dir, work_dir, *overrides, **environment):
    """Starts a training in a process of its own."""
    command = [sys.executable, "-m", "tests.training.train_on_devices", str(devices), recipe, shapes_dir, work_dir]
    return subprocess.Popen(
        [*command, *OVERRIDES, *overrides],
        cwd=PROJECT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Returns the mean losses after each step, and what was logged."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(output.splitlines()[-1]), errors


def final_values(work_dir):
    values, progress = Checkpoints(work_dir / "checkpoints", keep=2).load_latest()
    assert (progress.epoch, progress.step) == (2, 0)
    return values


@pytest.fixture(scope="module")
def one_device(tiny_recipe, shapes_dir, tmp_path_factory):
    """The losses and the final variables of a single device."""
    work_dir = tmp_path_factory.mktemp("one")
    losses, _ = finish(start(1, tiny_recipe, shapes_dir, work_dir, "data.val_splits=[]"))
    assert len(losses) == 4
    return losses, final_values(work_dir)


def check_like_one(one_device, losses, values):
    """Sums are taken in another order, and later steps make more of that, most in the smallest momenta."""
    expected_losses, expected_values = one_device
    np.testing.assert_allclose(losses, expected_losses[-len(losses) :], rtol=1e-4)
    if len(losses) == len(expected_losses):
        np.testing.assert_allclose(losses[0], expected_losses[0], rtol=1e-6)
    for value, expected in zip(values, expected_values, strict=True):
        # The norms of the smallest are 4e-4.
        assert np.linalg.norm(value - expected) <= 2e-3 * np.linalg.norm(expected) + 1e-6


@keras_3
def test_two_devices_train_like_one_on_the_same_batches(one_device, tiny_recipe, shapes_dir, tmp_path):
    losses, _ = finish(start(2, tiny_recipe, shapes_dir, tmp_path, "data.val_splits=[]"))
    check_like_one(one_device, losses, final_values(tmp_path))


@keras_3
def test_clipping_loss_scale_and_batch_norm_go_by_the_whole_batch():
    command = [sys.executable, "-m", "tests.training.two_devices"]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.endswith("equal\n"), result.stderr[-3000:]


def free_ports(count):
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_workers(*arguments):
    names = [f"localhost:{port}" for port in free_ports(2)]
    clusters = [{"cluster": {"worker": names}, "task": {"type": "worker", "index": index}} for index in range(2)]
    return [start(1, *arguments, TF_CONFIG=json.dumps(cluster)) for cluster in clusters]


@keras_3
def test_two_workers_train_like_one_device_though_one_is_killed(one_device, tiny_recipe, shapes_dir, tmp_path):
    arguments = tiny_recipe, shapes_dir, tmp_path / "run"
    chief, other = start_workers(*arguments)
    while not list(tmp_path.glob("run/checkpoints/0*")) and chief.poll() is None:
        time.sleep(0.05)
    other.send_signal(signal.SIGKILL)
    other.communicate()
    _, errors = chief.communicate(timeout=300)
    assert chief.returncode != 0
    assert "TrainingError: Another of the 2 workers has ended" in errors, errors[-3000:]
    written = {path.name for path in tmp_path.glob("run/*")}

    (losses, log), (same, others_log) = map(finish, start_workers(*arguments))
    assert "Going on after" in log and "Going on after" in others_log
    assert losses == same
    check_like_one(one_device, losses, final_values(tmp_path / "run"))
    # Only the chief has written; the model is that of the last checkpoint.
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    assert written <= {path.name for path in tmp_path.glob("run/*")}
    assert [row.split(",")[0] for row in (tmp_path / "run/log.csv").read_text().splitlines()] == ["epoch", "0", "1"]
    weights = saved_weights(tmp_path / "run/best.keras").values()
    values = final_values(tmp_path / "run")
    assert all(any(np.array_equal(weight, value) for value in values) for weight in weights)


@pytest.mark.parametrize(
    "value, message",
    [
        ("{", "is not what TensorFlow expects"),
        ('{"cluster": {"worker": ["a:1", "b:1"], "ps": ["c:1"]}, "task": {"type": "ps", "index": 0}}', '"worker"'),
        ('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}', "worker 2"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}', "in a new process"),
    ],
)
def test_what_cannot_be_a_cluster_is_refused(monkeypatch, value, message):
    tf.constant(0)  # TensorFlow has been used
    monkeypatch.setenv("TF_CONFIG", value)
    with pytest.raises(ConfigError, match=message):
        find_devices()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch_size": 6}, "must be a multiple of 4"),
        ({"accumulation_steps": 2}, "train.accumulation_steps = 2"),
        ({"jit_compile": True}, "train.jit_compile = true"),
    ],
)
def test_what_several_devices_cannot_do_is_refused(change, message):
    four = types.SimpleNamespace(num_replicas=4)
    check_shared_training(TrainConfig(), four)
    check_shared_training(TrainConfig(**change), types.SimpleNamespace(num_replicas=1))
    with pytest.raises(ConfigError, match=message):
        check_shared_training(TrainConfig(**change), four)


def test_one_worker_alone_is_no_cluster(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}')
    devices = find_devices()
    assert devices.is_chief and devices.num_workers == devices.num_replicas == 1 and devices.agree(3)
