"""The errors that a user can fix. Anything else that is raised is a bug and keeps its traceback."""

import difflib
from collections.abc import Iterable


class RefineDetError(ValueError):
    """Base class of all errors that a user can fix; the message names the cause and the remedy."""


class ConfigError(RefineDetError):
    """An invalid recipe; the message names the key."""


class DataError(RefineDetError):
    """An unusable data set or image; the message names the file or folder."""


class TrainingError(RefineDetError):
    """A run that cannot start, or had to stop; the message says how to go on."""


class WeightFileError(RefineDetError):
    """An unusable weight file or saved model; the message names the file and the layer."""


class ExportError(RefineDetError):
    """An exported model that cannot be written or opened."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns ` (did you mean 'x'?)` for the known word closest to an unknown one, or an empty string."""
    nearest = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""
