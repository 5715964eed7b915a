"""Text tables, and numbers that may be undefined."""

import math
from collections.abc import Iterable, Sequence


def text_table(rows: Sequence[Sequence[str]], *, mean_row: bool = True) -> str:
    """Aligns the cells of a table: the first row is the header, the first column text, the others numbers.

    Args:
        rows: the cells, the same number in each row.
        mean_row: draw a rule above the last row.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *numbers in rows:
        right = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *right]))
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], *[rule] * mean_row, lines[-1]])


def mean(values: Iterable[float]) -> float:
    """Returns the mean of the values that are not nan; nan if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def decimals(value: float) -> str:
    """Formats a number from 0 to 1 for a table; "-" stands for nan."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def or_none(value: float) -> float | None:
    """Returns the number for JSON, which has no nan."""
    return None if math.isnan(value) else float(value)
