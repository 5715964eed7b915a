"""The console command `refinedet`: finds the subcommand, parses its flags and turns errors into exit codes."""

import errno
import importlib
import os
import shutil
import sys
import tempfile
import textwrap
from logging import INFO
from types import ModuleType

from absl import flags, logging

from refinedet_tf import __version__
from refinedet_tf.errors import RefineDetError, did_you_mean

# The module of a command has its name, with underscores.
COMMANDS = (
    "new-recipe",
    "train",
    "evaluate",
    "detect",
    "export-savedmodel",
    "export-tflite",
    "export-onnx",
    "verify",
    "inspect-data",
    "make-tfrecords",
    "import-weights",
    "pack-model",
    "draw-shapes",
)
WITHOUT_TENSORFLOW = ("draw-shapes",)  # starts at once
HELP = ("-h", "--help")
SUCCESS, FAILURE, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130

# Raised for a path that the user gave; the exception names it.
FILE_ERRORS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)


def run() -> None:
    """Runs the subcommand that the first argument names, and exits."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in HELP:
        print(overview())
        sys.exit(SUCCESS if arguments else WRONG_USAGE)
    name = arguments[0]
    if name == "--version":
        print(f"refinedet-tf {__version__}")
        sys.exit(SUCCESS)
    if name not in COMMANDS:
        fail(f"refinedet has no command {name!r}{did_you_mean(name, COMMANDS)}; `refinedet --help` lists them.")
    run_command(name, arguments[1:])


def run_command(name: str, arguments: list[str]) -> None:
    """Runs one subcommand and exits: 0 if it succeeded, 1 if it failed, 2 for wrong flags, 130 after Ctrl-C."""
    command = _module(name)
    known = set(flags.FLAGS)
    command.define_flags()
    names = [flag for flag in flags.FLAGS if flag not in known]
    if any(argument in HELP for argument in arguments):
        print(usage(name, command, names))
        sys.exit(SUCCESS)
    _show_own_messages()
    try:
        unparsed = flags.FLAGS([name, *arguments])[1:]
    except flags.Error as error:
        fail(f"{str(error).rstrip('.')}; see `refinedet {name} --help`.")
    if unparsed:
        fail(f"unexpected arguments: {' '.join(unparsed)}; everything is given as --flag=value.")
    try:
        if name not in WITHOUT_TENSORFLOW:
            _quiet_tensorflow()
        result = command.main()
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        fail(message, FAILURE)
    sys.exit(result or SUCCESS)


def user_message(error: Exception) -> str | None:
    """Returns the line to print for an error that the user can fix; None for a bug, which keeps its traceback."""
    if isinstance(error, RefineDetError):
        return str(error)
    if isinstance(error, FILE_ERRORS) and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return error.strerror + (f": {error.filename}" if error.filename is not None else "")
    return None


def overview() -> str:
    """Returns the help text of `refinedet`: every command with its summary."""
    width = max(map(len, COMMANDS))
    lines = ["usage: refinedet COMMAND [--flag=value ...]", "", "commands:"]
    lines += [f"  {name:{width}}  {summary(_module(name))}" for name in COMMANDS]
    return "\n".join([*lines, "", "`refinedet COMMAND --help` prints the flags of a command."])


def usage(name: str, command: ModuleType, names: list[str]) -> str:
    """Returns the help text of one command: its docstring and its flags, those that are required first."""
    own = [flags.FLAGS[flag] for flag in names]
    required = [flag for flag in own if _is_required(flag)]
    optional = [flag for flag in own if flag not in required]
    call = " ".join([f"usage: refinedet {name}", *(f"--{flag.name}=..." for flag in required), "[flags]"])
    parts = [call, command.__doc__.strip()]
    for title, group in (("required flags:", required), ("flags:", optional)):
        if group:
            parts.append("\n".join([title, *map(_flag_help, group)]))
    return "\n\n".join(parts)


def summary(command: ModuleType) -> str:
    """Returns the first line of a command's docstring."""
    return command.__doc__.splitlines()[0]


def fail(message: str, code: int = WRONG_USAGE) -> None:
    """Prints an error as one line and exits."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"refinedet_tf.cli.{name.replace('-', '_')}")


def _is_required(flag: flags.Flag) -> bool:
    """Whether `required=True` was given; absl keeps that only as a validator of the flag."""
    return any("other than None" in validator.message for validator in flag.validators)


def _flag_help(flag: flags.Flag) -> str:
    """Returns the entry of one flag: its form, its description, its choices and its default."""
    choices = getattr(flag.parser, "enum_values", None) or []
    kinds = {"bool": None, "int": "N", "float": "X", "string": "TEXT", "comma separated list of strings": "A,B"}
    kind = "NAME" if choices else kinds.get(flag.flag_type().removeprefix("multi "), "TEXT")
    form = f"--[no]{flag.name}" if kind is None else f"--{flag.name}={kind}"
    # absl puts its own list of choices before the text, and a remark on repeating the flag after it.
    text = flag.help.split(";\n")[0].removeprefix(f"<{'|'.join(choices)}>: ")
    if choices:
        text += f" One of {', '.join(choices)}."
    if flag.default not in (None, [], False, True):
        text += f" Default: {flag.default_as_str.strip(chr(39))}."
    if flag.default is True:
        text += " On by default."
    width = min(shutil.get_terminal_size().columns, 100)
    indented = textwrap.fill(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return f"  {form}\n{indented}"


def _quiet_tensorflow() -> None:
    """Imports TensorFlow without what its libraries write while they look for devices.

    They write straight to file descriptor 2, whatever TF_CPP_MIN_LOG_LEVEL says. If the import fails, it is shown.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as chatter:
        os.dup2(chatter.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()
        except BaseException:
            chatter.seek(0)
            os.write(terminal, chatter.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def _show_own_messages() -> None:
    """Shows this package's log from INFO on, without a prefix, and that of other packages from WARNING on."""
    flags.FLAGS.set_default("verbosity", logging.INFO)
    flags.FLAGS.set_default("showprefixforinfo", False)
    logging.use_absl_handler()
    logging.get_absl_handler().python_handler.addFilter(
        lambda record: record.levelno > INFO or "refinedet_tf" in record.pathname
    )
