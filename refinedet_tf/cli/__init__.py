"""Commands: each parses its flags and calls one function of the library."""

import functools
import sys
from collections.abc import Callable

from refinedet_tf.errors import ConfigError, DataError, ExportError, WeightFileError

# What a user can mend: anything else is a mistake of ours and keeps its traceback.
USER_ERRORS = (ConfigError, DataError, ExportError, WeightFileError, OSError)


def exit_on_error(main: Callable[[list[str]], None]) -> Callable[[list[str]], int]:
    """Makes a `main` for absl that prints a user's mistake as one line and exits with code 1."""

    @functools.wraps(main)
    def wrapped(argv: list[str]) -> int:
        if argv[1:]:
            print(f"error: unexpected arguments {' '.join(argv[1:])}; everything is said with flags.", file=sys.stderr)
            return 1
        try:
            main(argv)
        except USER_ERRORS as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        return 0

    return wrapped
