"""The commands of docs/training.md, run as they stand on a few images."""

import re
from pathlib import Path

from refinedet_tf.config import load_config
from refinedet_tf.data.shapes import draw_shapes
from tests.commands import run_lines, without_graphs
from tests.conftest import PROJECT

PAGE = (PROJECT / "docs/training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?<!-->\n)```bash\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_commands_of_the_page_run(tmp_path, monkeypatch):
    batch_size = load_config("refinedet128_mobilenet_shapes").train.batch_size
    draw_shapes(tmp_path / "work/demo/shapes", {"train": batch_size, "val": 4}, image_size=(128, 128))
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) == 2
    for block in BLOCKS:
        with without_graphs():
            run_lines(block)
    written = {path.name for path in (tmp_path / "work/training").iterdir()}
    named = set(re.findall(r"^\| `([\w.]+)/?`", PAGE, flags=re.MULTILINE)) | {"curves.png", "tensorboard"}
    assert named <= written
    load_config(tmp_path / "work/my.yaml")


def test_the_report_needs_no_other_files(finished_run):
    page = Path(finished_run / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert page.count('src="data:image/jpeg') == 4  # the validation images
    for part in ("Curves", "Precision and recall", "Recipe", "circle", "max_detections: 500"):
        assert part in page
