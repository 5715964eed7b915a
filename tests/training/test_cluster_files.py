"""The files for clusters start every worker with the right `TF_CONFIG`; stand-ins take the place of the cluster."""

import json
import os
import re
import subprocess

import pytest
import yaml

from refinedet_tf.config import list_recipes
from tests.conftest import PROJECT

FOLDER = PROJECT / "docs/cluster"
HOSTS = ["gpu-1", "gpu-2", "gpu-7", "gpu-8"]
# srun starts the command once for each machine and fails if one of them does; the first attempt fails here.
STAND_INS = {
    "refinedet": 'echo "$TF_CONFIG" "$@" >> started; test $(wc -l < started) -gt 1',
    "scontrol": f'test "$*" = "show hostnames gpu-[1-2,7-8]" && printf "%s\\n" {" ".join(HOSTS)}',
    "srun": 'test "$1" = --kill-on-bad-exit=1; shift\n'
    'for SLURM_PROCID in 0 1 2 3; do export SLURM_PROCID; "$@" || exit; done',
    "sleep": "",
}


@pytest.fixture
def start(tmp_path):
    """Runs a command with the stand-ins and returns what `refinedet` was started with: TF_CONFIG and arguments."""
    for name, script in STAND_INS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def run(command, **environment):
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        result = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PATH": path, **environment}, check=False)
        lines = (tmp_path / "started").read_text().splitlines()
        return result.returncode, [re.fullmatch(r"(\{.*\}) train (.*)", line).groups() for line in lines]

    return run


def check_workers(started, names):
    for index, (cluster, arguments) in enumerate(started):
        assert json.loads(cluster) == {"cluster": {"worker": names}, "task": {"type": "worker", "index": index}}
        recipe, *folders = re.fullmatch(r"--config=(\S+) --data_dir=(\S+) --work_dir=(\S+)", arguments).groups()
        assert recipe in list_recipes() and all(folder.startswith("/shared/") for folder in folders)


def test_slurm_starts_a_worker_on_each_machine_and_again_if_one_dies(start):
    environment = {"SLURM_JOB_NODELIST": "gpu-[1-2,7-8]"}
    code, started = start(["bash", FOLDER / "slurm.sh"], **environment)
    assert code == 0 and len(started) == 5
    check_workers(started[:1], [f"{name}:12355" for name in HOSTS])
    check_workers(started[1:], [f"{name}:12355" for name in HOSTS])


def test_kubernetes_starts_workers_that_find_each_other(start):
    service, job = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    name, spec, pod = job["metadata"]["name"], job["spec"], job["spec"]["template"]["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] == 4
    # The names of the pods: JOB-INDEX.SUBDOMAIN, where a headless service of that name selects the job's pods.
    assert service["metadata"]["name"] == pod["subdomain"] and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": name}
    (container,) = pod["containers"]
    started = []
    for index in range(4):
        _, started = start([*container["command"], *container["args"]], JOB_COMPLETION_INDEX=str(index))
    check_workers(started, [f"{name}-{index}.{pod['subdomain']}:12355" for index in range(4)])
