"""The commands of docs/training.md, run as they stand on a few images."""

import os
import re
import subprocess
import sys
from pathlib import Path

from refinedet_tf.config import load_config
from tests.conftest import PROJECT

PAGE = (PROJECT / "docs/training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?<!-->\n)```bash\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_commands_of_the_page_run(shapes_dir, tmp_path):
    (tmp_path / "work/demo").mkdir(parents=True)
    os.symlink(shapes_dir, tmp_path / "work/demo/shapes")
    command = tmp_path / "bin/refinedet"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from refinedet_tf.cli.main import run; run()" "$@"\n')
    command.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(PROJECT),
    }
    assert len(BLOCKS) == 2
    for block in BLOCKS:
        result = subprocess.run(
            ["bash", "-ec", block], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert result.returncode == 0, result.stderr[-2000:]
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
