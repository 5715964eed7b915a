"""The commands and the code of docs/serving.md and docs/edge.md, run as they stand with the smallest model."""

import functools
import importlib
import json
import re
import shlex

import pytest
from absl import flags

from refinedet_tf import verification
from refinedet_tf.cli import data_flags, verify
from refinedet_tf.inference.detector import Detector
from tests.conftest import PROJECT

MARK = "(?<!-->\n)"  # a comment above a block says why it is not run


def blocks(page, language):
    text = (PROJECT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"{MARK}^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def demo(tmp_path, finished_run, shapes_dir, monkeypatch):
    """A folder like a checkout after the demo."""
    (tmp_path / "work/demo/run").mkdir(parents=True)
    (tmp_path / "work/demo/run/model.keras").symlink_to(finished_run / "model.keras")
    (tmp_path / "work/demo/shapes").symlink_to(shapes_dir)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verification, "COMPARED_IMAGES", 1)
    monkeypatch.setattr(verification, "TIMED_RUNS", 1)
    return tmp_path


def run(line, monkeypatch):
    """Runs a command of `refinedet` in this process."""
    program, name, *arguments = shlex.split(line)
    assert program == "refinedet"
    command = importlib.import_module(f"refinedet_tf.cli.{name.replace('-', '_')}")
    values = flags.FlagValues()
    with monkeypatch.context() as patch:
        for define in [define for define in vars(flags) if define.startswith("DEFINE_")]:
            patch.setattr(flags, define, functools.partial(getattr(flags, define), flag_values=values))
        command.define_flags()
        assert values([name, *arguments]) == [name], "nothing is left over"
        for module in (command, data_flags, verify):
            patch.setattr(module, "FLAGS", values)
        command.main()


def run_page(page, monkeypatch):
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").strip().splitlines():
            run(line, monkeypatch)
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), {})


def test_serving(demo, monkeypatch, capsys):
    run_page("serving.md", monkeypatch)
    output = capsys.readouterr().out
    assert "saved_model serving_bytes" in output and "python serving_default True" in output
    forms = [row["form"] for row in json.loads((demo / "work/serving/verify.json").read_text())]
    assert forms[0] == "model" and len(forms) == 5


def test_edge(demo, monkeypatch, capsys):
    pytest.importorskip("tf2onnx")
    run_page("edge.md", monkeypatch)
    assert "['circle', 'square', 'star', 'triangle']" in capsys.readouterr().out
    assert (demo / "work/edge/ranges.csv").is_file()
    for name in ("model.tflite", "int8.tflite", "python.tflite", "model.onnx"):
        assert len(Detector.load(demo / "work/edge" / name).classes) == 4
