"""What the README tells a stranger to do, done: its blocks run as they stand, on a small data set and recipe."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from refinedet_tf.config import list_recipes, load_config
from tests.commands import run_lines, without_graphs
from tests.conftest import PROJECT

README = (PROJECT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, flags=re.DOTALL)


def block(language, word):
    """The one block of a language in which a word stands."""
    (text,) = [text for kind, text in BLOCKS if kind == language and word in text]
    return text


@pytest.fixture(scope="module")
def checkout(shapes_dir, tmp_path_factory):
    """A folder like a fresh checkout after the demo, with `photos` of one's own beside it."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "export", "train.py", "refinedet_tf"):
        os.symlink(PROJECT / name, root / name)
    shutil.copytree(shapes_dir, root / "photos")
    shutil.copytree(shapes_dir, root / "work/demo/shapes")
    (root / "work/demo/photos").mkdir()
    Image.new("RGB", (100, 80), "gray").save(root / "work/demo/photos/001600.jpg")
    return root


def test_the_pretrained_model_is_at_hand(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    assert " objects in 12 images (0 skipped)" in run_lines(block("bash", "voc-lite0-320"))
    assert (checkout / "gallery.png").is_file()


def test_the_five_lines_train_on_photos_of_ones_own(checkout, tiny_recipe, monkeypatch):
    recipe, train, *others = block("bash", "new-recipe").strip().splitlines()
    # The first line in a shell and a process of its own. Commands lie beside the Python that runs this test.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-c", recipe], cwd=checkout, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert load_config(checkout / "my.yaml").model.classes == ["circle", "square", "star", "triangle"]
    # The same classes in the smallest network, for the time it takes.
    (checkout / "my.yaml").write_text(tiny_recipe.read_text().replace("epochs: 2", "epochs: 1"))
    monkeypatch.chdir(checkout)
    with without_graphs():
        run_lines(train)
    run_lines("\n".join(others))
    assert len(list((checkout / "work/mine/pictures").glob("*.jpg"))) == 12


def test_the_example_in_python_runs(checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout)
    exec(compile(block("python", "import refinedet_tf"), "README.md", "exec"), {})
    assert "loss" in capsys.readouterr().out


def expanded(pattern):
    """All names of a pattern with alternatives in braces."""
    head, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    choices, _, tail = rest.partition("}")
    return [name for choice in choices.split(",") for name in expanded(head + choice + tail)]


def test_the_table_of_recipes_is_complete():
    patterns = re.findall(r"^\| `(refinedet\S+?)`", README, flags=re.MULTILINE)
    assert {name for pattern in patterns for name in expanded(pattern)} == set(list_recipes())


def test_the_two_commands_are_in_the_makefile():
    targets = re.findall(r"^(\w+):", (PROJECT / "Makefile").read_text(), flags=re.MULTILINE)
    commands = re.findall(r"^make (\w+)", block("bash", "make demo"), flags=re.MULTILINE)
    assert commands == ["demo", "test"] and set(commands) <= set(targets)
    assert all(command in (PROJECT / ".ci/run").read_text() for command in ("make test", "make demo"))
