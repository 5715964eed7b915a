"""What is said of a recipe that cannot be used."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A recipe that cannot be used; the message names the key and what to do."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known word as a remark in parentheses, to follow an unknown one; empty if none is near."""
    nearest = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""
