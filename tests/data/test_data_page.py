"""The commands and the code of docs/data.md, run as they stand on a small data set."""

import re
import shutil

import pytest
import yaml

from refinedet_tf.config import load_config
from tests.commands import run_lines
from tests.conftest import PROJECT

PAGE = (PROJECT / "docs/data.md").read_text()


@pytest.fixture(scope="module")
def after_the_demo(shapes_dir, tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    shutil.copytree(shapes_dir, root / "work/demo/shapes")
    return root


def test_every_command_runs(after_the_demo, monkeypatch, capsys):
    monkeypatch.chdir(after_the_demo)
    for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL):
        run_lines(block)
    assert (after_the_demo / "work/samples.png").exists()
    programs = re.findall(r"(?<!-->\n)```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(compile("\n".join(programs), "docs/data.md", "exec"), {})
    assert "(4, 128, 128, 3)" in capsys.readouterr().out


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL))
def test_every_recipe_is_valid(tmp_path, text):
    recipe = yaml.safe_load(text)
    recipe.setdefault("model", {"classes": ["cat"]})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    load_config(tmp_path / "recipe.yaml")
