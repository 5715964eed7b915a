"""What the README tells a stranger to do, done: its blocks run as they stand, on a small data set and recipe."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from refinedet_tf.config import load_config
from tests.conftest import PROJECT
from tests.weights.caffe_writer import write_caffemodel
from tests.weights.random_nets import random_vgg16

BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", (PROJECT / "README.md").read_text(), flags=re.DOTALL)


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


def run(checkout, *command):
    # Commands say `python`; it is the one that runs this test.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(command, cwd=checkout, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


def test_the_five_lines_train_on_photos_of_ones_own(checkout, tiny_recipe):
    copy, *lines = block("bash", "cp configs/").strip().splitlines()
    assert (PROJECT / copy.split()[1]).exists()
    (checkout / "my.yaml").write_text(tiny_recipe.read_text().replace("epochs: 2", "epochs: 1"))
    for line in lines:
        run(checkout, "bash", "-c", line)
    assert len(list((checkout / "work/mine/pictures").glob("*.jpg"))) == 12


def test_the_data_commands_look_at_and_convert_the_photos(checkout, tiny_recipe):
    (checkout / "my.yaml").write_text(tiny_recipe.read_text())
    for line in block("bash", "inspect-data").strip().splitlines():
        run(checkout, "bash", "-c", line)
    assert (checkout / "samples.png").exists() and list((checkout / "records").glob("val.tfrecord-*"))


def test_the_example_in_python_runs(checkout):
    output = run(checkout, sys.executable, "-c", block("python", "import refinedet_tf"))
    assert "loss" in output
    shutil.copytree(checkout / "saved_model", checkout / "work/demo/saved_model")
    assert "detection_boxes" in run(checkout, "bash", "-c", block("bash", "saved_model_cli"))


def test_weights_of_the_authors_are_imported(checkout):
    command = block("bash", "import-weights")
    write_caffemodel(checkout / re.search(r"--weights=(\S+)", command)[1], random_vgg16(0, 21))
    assert "loaded: 98 of 98 variables, from 50 of 50 layers of the file" in run(checkout, "bash", "-c", command)
    assert (checkout / "model.keras").exists()


def test_recipes_in_tables_exist():
    found = set()
    for name in re.findall(r"`(refinedet\S+?)`", (PROJECT / "README.md").read_text()):
        for size in ("320", "512") if "{320,512}" in name else ("",):
            for data in ("voc07", "voc12", "coco") if "{voc07,voc12,coco}" in name else ("",):
                recipe = name.replace("{320,512}", size).replace("{voc07,voc12,coco}", data)
                load_config(PROJECT / "configs" / f"{recipe}.yaml")
                found.add(f"{recipe}.yaml")
    assert found == {path.name for path in (PROJECT / "configs").iterdir()}


def test_the_two_commands_are_in_the_makefile():
    targets = re.findall(r"^(\w+):", (PROJECT / "Makefile").read_text(), flags=re.MULTILINE)
    commands = re.findall(r"^make (\w+)", block("bash", "make demo"), flags=re.MULTILINE)
    assert commands == ["demo", "test"] and set(commands) <= set(targets)
    assert all(command in (PROJECT / ".ci/run").read_text() for command in ("make test", "make demo"))


def test_links_lead_somewhere():
    for page in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (PROJECT / page).read_text()):
            assert target.startswith("https://") or (PROJECT / target).exists(), f"{page}: {target}"
