"""The commands and the code of docs/data.md, run as they stand on a small data set."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from refinedet_tf.config import load_config
from tests.conftest import PROJECT

PAGE = (PROJECT / "docs/data.md").read_text()


@pytest.fixture(scope="module")
def after_the_demo(shapes_dir, tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    shutil.copytree(shapes_dir, root / "work/demo/shapes")
    return root


def test_every_command_runs(after_the_demo):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(PROJECT)
    scripts = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    programs = re.findall(r"(?<!-->\n)```python\n(.*?)```", PAGE, flags=re.DOTALL)
    (after_the_demo / "page.py").write_text("\n".join(programs))
    commands = "set -e\n" + "\n".join([*scripts, "python page.py"])
    result = subprocess.run(
        ["bash", "-c", commands], cwd=after_the_demo, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert (after_the_demo / "work/samples.png").exists()
    assert "(4, 128, 128, 3)" in result.stdout


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL))
def test_every_recipe_is_valid(tmp_path, text):
    recipe = yaml.safe_load(text)
    recipe.setdefault("model", {"classes": ["cat"]})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    load_config(tmp_path / "recipe.yaml")
