"""The commands and the example of docs/evaluation.md, run as they stand with a detector that needs no network."""

import json
import re

import numpy as np
import pytest

from refinedet_tf.data.readers import read_data
from refinedet_tf.inference.detector import Detector
from tests.commands import run_lines
from tests.conftest import PROJECT

PAGE = (PROJECT / "docs/evaluation.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"(?<!-->\n)^```bash\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    for line in block.replace("\\\n", " ").strip().splitlines()
]


class FakeDetector:
    """Finds the objects of the images it is shown, without looking."""

    def __init__(self, root):
        self.data = read_data("voc", root, ["val"], None)
        self.classes = self.data.classes

    def predict(self, images):
        count, most = 0, max(len(each.classes) for each in self.data.examples)
        for _ in images:
            count += 1
        assert count == len(self.data)
        found = {
            "boxes": np.zeros([count, most, 4]),
            "scores": np.full([count, most], 0.9),
            "classes": np.full([count, most], -1),
            "num_detections": np.array([len(each.classes) for each in self.data.examples]),
        }
        for index, each in enumerate(self.data.examples):
            found["boxes"][index, : len(each.classes)] = each.boxes
            found["classes"][index, : len(each.classes)] = each.classes
        return found


@pytest.fixture
def demo(tmp_path, shapes_dir, monkeypatch):
    """A folder like a checkout after the demo."""
    (tmp_path / "work/demo").mkdir(parents=True)
    (tmp_path / "work/demo/shapes").symlink_to(shapes_dir)
    monkeypatch.setattr(Detector, "load", lambda path: FakeDetector(shapes_dir))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_run(demo):
    assert len(COMMANDS) == 4
    for line in COMMANDS:
        assert line.startswith("refinedet evaluate ")
        assert "AP50 1.000" in run_lines(line)
    assert json.loads((demo / "work/evaluation/evaluation.json").read_text())["coco_ap"] == pytest.approx(1.0)


def test_the_example_in_python_runs(demo, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(compile(example, "docs/evaluation.md", "exec"), {})
    assert "AP50 1.000" in capsys.readouterr().out
    assert (demo / "work/evaluation/evaluation.html").is_file()
