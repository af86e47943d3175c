"""The cells of one raw column, read as numbers or as names.

A raw column holds what its file gave: numbers, booleans, or text; empty is NaN or None. What a
column means is for the experiment to say, so the same column can be read either way.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError

FloatArray = NDArray[np.float64]
ObjectArray = NDArray[np.object_]

SHOWN = 5  # names that one message lists
LARGEST = float(np.finfo(np.float32).max)  # what a model's numbers can hold
NUMBER_KINDS = "biufO"  # dtype kinds; objects may spell numbers


TRUTHS = {"true": 1.0, "false": 0.0}  # how a column of booleans with gaps is spelt
FOR_INPUTS = "correct the file, exclude the column, or make it an input of kind 'categorical'"


def count_rows(count: int) -> str:
    """Write a number of rows in a message.

    >>> count_rows(1), count_rows(2)
    ('1 row', '2 rows')
    """
    return f"{count} row" if count == 1 else f"{count} rows"


def read_numbers(column: NDArray[Any], where: str, way_out: str = FOR_INPUTS) -> FloatArray:
    """Read a column as numbers; text that spells numbers, or true and false, will do.

    Args:
        column: [N] numbers, booleans, or objects of str and None.
        where: names the column in messages, such as ``client 'a', column 'age'``.
        way_out: says in messages what to do about text.

    Returns:
        [N] float64; empty cells are NaN.

    Raises:
        DataError: a cell is no finite number, or too large for float32.

    >>> read_numbers(np.array(["1", None, "2.5"], dtype=object), "column 'x'")
    array([1. , nan, 2.5])
    """
    if column.ndim != 1:
        raise DataError(f"{where} must hold one number a row, got arrays of {column.shape[1:]}")
    if column.dtype.kind not in NUMBER_KINDS:
        raise DataError(f"{where} must hold numbers, got {column.dtype}; convert or exclude it")
    try:
        numbers = column.astype(np.float64)
    except (TypeError, ValueError):
        spelt = [_spelt_number(cell) for cell in column]
        if wrong := spelt.count(None):
            raise DataError(
                f"{where} must hold numbers, got text in {wrong} of {len(column)} rows; {way_out}"
            ) from None
        numbers = np.array(spelt, dtype=np.float64)
    if infinite := int((np.abs(numbers) > LARGEST).sum()):  # NaN is not larger
        raise DataError(
            f"{where} must hold finite numbers below {LARGEST:.1e}, got infinite or larger ones in "
            f"{infinite} of {len(numbers)} rows; correct these cells or empty them"
        )
    return numbers


def read_names(column: NDArray[Any], where: str) -> ObjectArray:
    """Read a column as names; a whole number reads the same whether its file had gaps or not.

    Returns:
        [N] objects: str, or None where the cell is empty.

    Raises:
        DataError: the column holds arrays.

    >>> read_names(np.array([1.0, np.nan]), "column 'x'").tolist()
    ['1', None]
    """
    if column.ndim != 1:
        raise DataError(f"{where} must hold one name a row, got arrays of {column.shape[1:]}")
    names = np.empty(len(column), dtype=object)
    names[:] = [_name(cell) for cell in column.tolist()]
    return names


def list_names(names: Sequence[str]) -> str:
    """Quote names for a message, the first few of many.

    >>> list_names(["a", "b"]), list_names(list("abcdefgh"))
    ("'a', 'b'", "'a', 'b', 'c', 'd', 'e' and 3 more")
    """
    shown = ", ".join(f"'{name}'" for name in names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def _spelt_number(cell: object) -> float | None:
    """Read one cell as a number; None where it is other text."""
    if cell is None:
        return math.nan
    if isinstance(cell, str) and cell.strip().lower() in TRUTHS:
        return TRUTHS[cell.strip().lower()]
    try:
        return float(cell)  # type: ignore[arg-type]  # that is what is being tried
    except (TypeError, ValueError):
        return None


def _name(cell: object) -> str | None:
    if cell is None or cell != cell:  # NaN is unlike itself
        return None
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    text = str(cell).strip()
    return text or None
