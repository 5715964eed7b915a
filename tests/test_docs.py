"""The documentation: commands name real flags, links lead somewhere, the API page is complete, the tutorial runs."""

import importlib
import re
import shlex

import nbformat
import pytest
from absl import flags
from nbclient import NotebookClient

from refinedet_tf.cli import main
from tests.commands import run_lines
from tests.conftest import PROJECT
from tests.weights.caffe_writer import write_caffemodel
from tests.weights.random_nets import random_vgg16

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md")), PROJECT / "export/serving/README.md"]


def commands():
    """Each `refinedet` command in a bash block, as (page, arguments)."""
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                for command in re.findall(r"(?:^|&& |srun )refinedet (.*)", line.strip()):
                    yield page.name, shlex.split(command, comments=True)


@pytest.mark.parametrize("page, arguments", [pytest.param(*one, id=f"{one[0]} {one[1][0]}") for one in commands()])
def test_commands_have_known_flags_and_the_required_ones(page, arguments, monkeypatch):
    name, *given = arguments
    if name.startswith("-"):
        return
    assert name in main.COMMANDS
    values = flags.FlagValues()
    for kind in [kind for kind in dir(flags) if kind.startswith("DEFINE_")]:
        define = getattr(flags, kind)
        monkeypatch.setattr(flags, kind, lambda *a, _define=define, **k: _define(*a, **{"flag_values": values, **k}))
    importlib.import_module(f"refinedet_tf.cli.{name.replace('-', '_')}").define_flags()
    assert values([name, *given]) == [name], "nothing is left over"


def test_weights_of_the_authors_are_imported(tmp_path, monkeypatch):
    page = (PROJECT / "docs/weights.md").read_text(encoding="utf-8")
    (command,) = [text for text in re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL) if ".caffemodel" in text]
    write_caffemodel(tmp_path / re.search(r"--weights=(\S+)", command)[1], random_vgg16(0, 21))
    monkeypatch.chdir(tmp_path)
    assert "loaded: 98 of 98 variables, from 50 of 50 layers of the file" in run_lines(command)
    assert (tmp_path / "model.keras").exists()


def test_links_lead_somewhere():
    for page in [*PAGES, PROJECT / "CONTRIBUTING.md", PROJECT / "ARCHITECTURE.md", PROJECT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page}: {target}"


def test_the_api_page_lists_every_public_name():
    stub = (PROJECT / "refinedet_tf/__init__.pyi").read_text(encoding="utf-8")
    public = {f"{module}.{name}" for module, name in re.findall(r"^from (\S+) import (\w+)", stub, flags=re.MULTILINE)}
    page = (PROJECT / "docs/python.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^::: refinedet_tf(\S+)", page, flags=re.MULTILINE)) == public


def test_the_tutorial_runs(tmp_path):
    notebook = nbformat.read(PROJECT / "docs/tutorial.ipynb", as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    parameters.source = f'IMAGES, EPOCHS, FOLDER = 24, 1, "{tmp_path}"'
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": PROJECT}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert any("mean" in output.get("text", "") for output in outputs)  # the table of average precision
