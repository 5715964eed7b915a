"""The dispatcher: help texts, flags, errors and exit codes."""

import ast
import errno
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags

from refinedet_tf import __version__
from refinedet_tf.cli import main as dispatcher
from refinedet_tf.errors import DataError
from refinedet_tf.serving import inputs, saved_model, tflite
from tests.conftest import PROJECT


def refinedet(*arguments, **options):
    command = [sys.executable, "-m", "refinedet_tf", *map(str, arguments)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, **options)


def test_help_lists_every_command_module_with_its_summary():
    result = refinedet("--help")
    assert result.returncode == 0 and result.stderr == ""
    modules = {path.stem for path in (PROJECT / "refinedet_tf/cli").glob("*.py")} - {"__init__", "main", "data_flags"}
    assert {name.replace("-", "_") for name in dispatcher.COMMANDS} == modules
    for name in dispatcher.COMMANDS:
        source = (PROJECT / f"refinedet_tf/cli/{name.replace('-', '_')}.py").read_text()
        summary = ast.get_docstring(ast.parse(source)).splitlines()[0]
        (line,) = [line for line in result.stdout.splitlines() if line.split()[:1] == [name]]
        assert line.endswith(f"  {summary}") and summary.endswith(".")
    assert refinedet().returncode == 2 and refinedet().stdout == result.stdout
    assert refinedet("--version").stdout == f"refinedet-tf {__version__}\n"


@pytest.mark.parametrize("name", dispatcher.COMMANDS)
def test_help_of_a_command_has_its_flags_only(name):
    module = importlib.import_module(f"refinedet_tf.cli.{name.replace('-', '_')}")
    known = set(flags.FLAGS)
    module.define_flags()
    own = [flag for flag in flags.FLAGS if flag not in known]
    try:
        text = dispatcher.usage(name, module, own)
        required = [flag for flag in own if dispatcher._is_required(flags.FLAGS[flag])]
    finally:
        for flag in own:
            delattr(flags.FLAGS, flag)
    shown = re.findall(r"^  --(?:\[no\])?(\w+)", text, flags=re.MULTILINE)
    assert sorted(shown) == sorted(own) and shown[: len(required)] == required
    assert text.startswith(f"usage: refinedet {name} " + "".join(f"--{flag}=... " for flag in required))
    assert required, "every command needs something"
    assert f"refinedet {name} --" in module.__doc__, "an example"
    assert max(map(len, text.splitlines())) <= 120


def test_help_does_not_import_tensorflow():
    code = "import sys; from refinedet_tf.cli import main; main.overview(); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert not {"tensorflow", "keras", "matplotlib", "keras_cv"} & set(modules.stdout.split())


def test_choices_are_those_of_the_library():
    """The help texts spell them out because importing them would import TensorFlow."""
    expected = {
        "export-tflite": {
            "quantize": tflite.QUANTIZATIONS,
            "postprocess": tflite.POSTPROCESSES,
            "input_type": inputs.INPUT_TYPES,
        },
        "export-savedmodel": {"weights": saved_model.WEIGHTS},
    }
    for name, choices in expected.items():
        text = re.sub(r"\s+", " ", refinedet(name, "--help").stdout)
        for flag, values in choices.items():
            assert f"One of {', '.join(values)}." in text, flag


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["trian"], "refinedet has no command 'trian' (did you mean 'train'?); `refinedet --help` lists them."),
        (["draw-shapes", "--output_dir=o", "--trains=3"], "--help`"),
        (["draw-shapes", "--train=3"], "output_dir"),
        (["draw-shapes", "--output_dir=o", "--train=-1"], "--train"),
        (["draw-shapes", "--output_dir=o", "more"], "unexpected arguments: more"),
    ],
)
def test_wrong_usage_is_one_line_with_exit_code_2(arguments, message):
    result = refinedet(*arguments)
    assert result.returncode == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line
    assert not (PROJECT / "o").exists()


def test_an_error_of_the_user_is_a_line_and_a_bug_keeps_its_traceback(tmp_path):
    def of(function):
        try:
            function()
        except Exception as error:
            return dispatcher.user_message(error)

    def wrong_data():
        raise DataError("no boxes")

    missing, folder = tmp_path / "missing", tmp_path
    assert of(wrong_data) == "no boxes"
    assert of(missing.read_bytes) == f"No such file or directory: {missing}"
    assert of(folder.read_bytes) == f"Is a directory: {folder}"
    assert of(lambda: Path("/dev/full").write_text("x")) == "No space left on device"
    assert of(lambda: {}["x"]) is None
    assert of(lambda: os.read(-1, 1)) is None  # an OSError without a file

    def broken_device():
        raise OSError(errno.EIO, "Input/output error", "photo.jpg")

    assert of(broken_device) is None  # nor one that the user has not caused
    (tmp_path / "setup.cfg").write_text("")
    result = refinedet("draw-shapes", f"--output_dir={tmp_path / 'setup.cfg' / 'new'}", "--train=1", "--val=0")
    assert result.returncode == 1
    assert result.stderr == f"error: Not a directory: {tmp_path / 'setup.cfg/new/Annotations'}\n"


def test_an_interrupt_is_one_line_with_exit_code_130(tmp_path):
    command = [sys.executable, "-m", "refinedet_tf", "draw-shapes", f"--output_dir={tmp_path / 'o'}", "--train=10000"]
    process = subprocess.Popen(
        command,
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs, and so perhaps these tests, with interrupts ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (tmp_path / "o").exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "error: interrupted" and "Traceback" not in errors
