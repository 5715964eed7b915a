"""Commands in this process, for tests that do not need one of their own: importing TensorFlow again takes seconds."""

import contextlib
import io
import logging
import shlex

import pytest
import tensorflow as tf
from absl import flags
from absl import logging as absl_logging
from absl.testing import flagsaver

from refinedet_tf.cli import main


def refinedet(*arguments):
    """Runs `refinedet COMMAND --flag=value ...`; returns the exit code, the output and the errors, without the log."""
    name, *given = map(str, arguments)
    output, errors = io.StringIO(), io.StringIO()
    with (
        _flags_and_log_restored(),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        pytest.raises(SystemExit) as end,
    ):
        main.run_command(name, given)
    return end.value.code, output.getvalue(), errors.getvalue()


def run_lines(text):
    """Runs a block of a page, in which every line is a `refinedet` command; returns their output."""
    outputs = []
    for line in text.replace("\\\n", " ").strip().splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "refinedet", line
        code, output, errors = refinedet(*arguments)
        assert code == 0, f"{line}\n{errors}"
        outputs.append(output)
    return "".join(outputs)


@contextlib.contextmanager
def without_graphs():
    """Trains and predicts operation by operation: for a few steps, building the graphs takes nearly all the time."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


@contextlib.contextmanager
def _flags_and_log_restored():
    """A command defines flags and sets up the log for the process that it usually has for itself."""
    handler, verbosity = absl_logging.get_absl_handler().python_handler, absl_logging.get_verbosity()
    filters, handlers = list(handler.filters), list(logging.root.handlers)
    try:
        with flagsaver.flagsaver():
            yield
    finally:
        flags.FLAGS.unparse_flags()
        absl_logging.set_verbosity(verbosity)
        handler.filters[:] = filters
        logging.root.handlers[:] = handlers
