"""The commands of docs/detection.md, run as they stand with a detector that needs no network."""

import re

import pytest
from PIL import Image

from refinedet_tf.inference.results import WRITERS
from tests.commands import refinedet, run_lines
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
def test_commands_run(demo, block):
    assert block.startswith("refinedet detect ")
    run_lines(block)
    assert (demo / re.search(r"--output_dir=(\S+)", block)[1] / "detections.json").exists()
    known = re.findall(r"^  --(?:\[no\])?(\w+)", refinedet("detect", "--help")[1], flags=re.MULTILINE)
    assert set(re.findall(r"--(?:no)?(\w+)", PAGE.partition("## Millions of images")[0])) <= set(known)


def test_the_page_tells_of_all_formats():
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE)) == set(WRITERS)
    assert len(BLOCKS) == 2
