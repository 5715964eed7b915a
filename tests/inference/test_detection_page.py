"""The commands of docs/detection.md, run as they stand with a detector that needs no network."""

import functools
import re
import shlex

import pytest
from absl import flags
from PIL import Image

from refinedet_tf.cli import detect as command
from refinedet_tf.inference.results import WRITERS
from tests.conftest import PROJECT
from tests.inference.fake_detector import fake_detector

PAGE = (PROJECT / "docs/detection.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?<!-->\n)^```bash\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """A folder like a checkout after the demo, with a model that knows the demo's classes."""
    (tmp_path / "work/demo/photos").mkdir(parents=True)
    Image.new("RGB", (100, 80), "gray").save(tmp_path / "work/demo/photos/001600.jpg")
    detector = fake_detector()
    detector.classes = ["circle", "square", "star"]
    models = []
    monkeypatch.setattr("refinedet_tf.inference.detector.Detector.load", lambda path: models.append(path) or detector)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert models == ["work/demo/saved_model"]


@pytest.mark.parametrize("block", BLOCKS)
def test_commands_run(demo, block, monkeypatch):
    program, name, *arguments = shlex.split(block.replace("\\\n", " "))
    assert (program, name) == ("refinedet", "detect")
    values = flags.FlagValues()
    for define in (
        "DEFINE_string",
        "DEFINE_multi_string",
        "DEFINE_list",
        "DEFINE_float",
        "DEFINE_integer",
        "DEFINE_bool",
    ):
        monkeypatch.setattr(flags, define, functools.partial(getattr(flags, define), flag_values=values))
    command.define_flags()
    assert values(["detect", *arguments]) == ["detect"], "nothing is left over"
    monkeypatch.setattr(command, "FLAGS", values)
    command.main()
    assert (demo / values.output_dir / "detections.json").exists()
    for flag in re.findall(r"--(?:no)?(\w+)", PAGE.partition("## Millions of images")[0]):
        assert flag in values or f"no{flag}" in values


def test_the_page_tells_of_all_formats():
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE)) == set(WRITERS)
    assert len(BLOCKS) == 2
