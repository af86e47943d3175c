"""Sorting names as people do: ``x2`` before ``x10``."""

import re
from collections.abc import Iterable

_DIGITS = re.compile(r"(\d+)")


def natural_key(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Make a sort key that compares runs of digits as numbers; the name itself breaks ties."""
    parts = tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in _DIGITS.split(name)
        if part
    )
    return parts, name


def natural_sort(names: Iterable[str]) -> list[str]:
    """Sort names as people do; the order given does not matter.

    >>> natural_sort(["x10", "x2", "a", "x"])
    ['a', 'x', 'x2', 'x10']
    """
    return sorted(names, key=natural_key)
