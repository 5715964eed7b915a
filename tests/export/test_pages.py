"""The commands and the code of docs/serving.md and docs/edge.md, run as they stand.

Exports are copies of the session's, since other tests make and compare each of them; arguments are those that the real
functions take.
"""

import inspect
import json
import re
import shutil

import pytest

import refinedet_tf as rd
import refinedet_tf.export as exporting
from refinedet_tf import verification, weights
from refinedet_tf.verification import Agreement
from tests.commands import run_lines
from tests.conftest import PROJECT
from tests.data.conftest import VocFolder, voc_object


def blocks(page, language):
    """The blocks of a page; a comment above a block says why it is not run."""
    text = (PROJECT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"(?<!-->\n)^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def demo(tmp_path, tiny_model, exported, tflite_files, monkeypatch):
    """A folder like a checkout after the demo; in it the functions that take time are replaced."""
    shapes = VocFolder(tmp_path / "work/demo/shapes")
    for number in range(20):
        shapes.add(f"{number}", [voc_object("star", (5, 5, 30, 30))], split="train" if number < 18 else "val")
    monkeypatch.chdir(tmp_path)

    def replace(module, name, stand_in):
        signature = inspect.signature(getattr(module, name))

        def function(*given, **named):
            arguments = signature.bind(*given, **named)
            arguments.apply_defaults()
            return stand_in(**arguments.arguments)

        # The package keeps what it has imported once: it must get the real function back, too.
        monkeypatch.setattr(rd, name, function)
        monkeypatch.setattr(module, name, function)

    def export_tflite(path, quantize, postprocess, input_type, calibration, ranges, **_):
        assert len(list(calibration)) == (16 if quantize == "int8" else 0)
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copy(tflite_files("none", postprocess, input_type), tmp_path / path)
        if ranges:
            (tmp_path / ranges).write_text("layer,precision\n")
        return exporting.TFLiteExport(copy)

    def agreements(paths, **_):
        forms = ["model", *(str(path) for path in paths)]
        assert all((tmp_path / path).exists() for path in paths)
        return [Agreement(form, True, 100, 0, 1.0, 0.0, 0.0, 1.0, None, None, 1.0, 1.0, None, True) for form in forms]

    for module in (rd, weights):
        monkeypatch.setattr(module, "load_model", {"work/demo/run/model.keras": tiny_model}.__getitem__)
    replace(exporting, "export_saved_model",
            lambda **given: shutil.copytree(exported, tmp_path / given["path"]))  # fmt: skip
    replace(exporting, "export_tflite", export_tflite)
    replace(exporting, "export_onnx", lambda **given: (tmp_path / given["path"]).write_bytes(b"onnx"))
    replace(verification, "verify", agreements)
    return tmp_path


def run_page(page):
    for block in blocks(page, "bash"):
        run_lines(block)
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), {})


def test_serving(demo, capsys):
    run_page("serving.md")
    assert "work/serving/python True 0.0" in capsys.readouterr().out
    forms = [row["form"] for row in json.loads((demo / "work/serving/verify.json").read_text())]
    assert forms == ["model", "work/serving/refinedet/1"]


def test_edge(demo, capsys):
    run_page("edge.md")
    assert "['circle', 'square', 'star']" in capsys.readouterr().out
    written = {path.name for path in (demo / "work/edge").iterdir()}
    assert written == {"model.tflite", "int8.tflite", "ranges.csv", "python.tflite", "model.onnx"}
