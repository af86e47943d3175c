"""The columns of one file: CSV, Parquet or NPZ.

An empty cell, and the marks below, are missing. A column without a name (the row numbers that a
careless export saves) is dropped. An array [N, D] of an NPZ file is D columns.
"""

import errno
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.cells import list_names
from common.errors import DataError
from common.tables import Columns

if TYPE_CHECKING:
    import pandas as pd

# "None" is a word that people use for a category, so it is not among them.
MISSING_MARKS = ("", "?", "NA", "N/A", "NaN", "nan", "NULL", "null")

SEPARATORS = {";": "semicolons", "\t": "tabs"}  # of files that are called CSV too


def read_columns(path: Path) -> Columns:
    """Read a file's columns, as `common.tables.ClientTable` holds them.

    Raises:
        DataError: the file cannot be read as what its name says, or has no rows or columns.
    """
    try:
        with readable(path):
            columns = READERS[path.suffix.lower()](path)
    except MemoryError as error:
        raise DataError(
            f"file '{path.name}' does not fit in memory; set data.memory to 'disk', which reads it "
            "in pieces"
        ) from error
    if not check_lengths(path, columns):
        raise DataError(f"file '{path.name}' has no rows; fill or remove it")
    return columns


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say in a line which file could not be read; errors of ours pass.

    Raises:
        DataError: it cannot be read as what its name says.
    """
    try:
        yield
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"file '{path.name}' cannot be read as {path.suffix[1:].upper()} "
            f"({type(error).__name__}); repair or replace it"
        ) from error


def check_lengths(path: Path, columns: Columns) -> int:
    """Count the rows of columns.

    Raises:
        DataError: not all have as many.
    """
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        shortest, longest = (pick(lengths, key=lambda n: lengths[n]) for pick in (min, max))
        raise DataError(
            f"file '{path.name}': all columns must have the same number of rows, got "
            f"{lengths[shortest]} in '{shortest}' and {lengths[longest]} in '{longest}'"
        )
    return max(lengths.values(), default=0)


def frame_columns(frame: "pd.DataFrame") -> Columns:
    """Turn a frame into columns: numbers with NaN, or objects of str with None."""
    return {
        str(name): _series_column(frame[name])
        for name in frame.columns
        if not str(name).startswith("Unnamed: ")
    }


def _series_column(series: "pd.Series[Any]") -> NDArray[Any]:
    from pandas.api.types import is_numeric_dtype

    if is_numeric_dtype(series.dtype):
        if isinstance(series.dtype, np.dtype):
            return series.to_numpy()
        return series.to_numpy(dtype=np.float64, na_value=np.nan)
    column = np.empty(len(series), dtype=object)
    empty = series.isna()
    column[:] = [None if gap else str(cell) for cell, gap in zip(series, empty, strict=True)]
    return column


def read_csv(path: Path, required: Sequence[str] = (), names: Sequence[str] = ()) -> Columns:
    """Read a CSV file of any ending.

    Args:
        path: the file.
        required: columns that it must have.
        names: names of its columns where it has no header.

    Raises:
        DataError: it cannot be read, or lacks a column.
    """
    try:
        columns = _parse_csv(path, list(names) or None)
    except (OSError, ValueError) as error:
        raise DataError(
            f"file '{path.name}' cannot be read as CSV ({type(error).__name__}); fetch it again"
        ) from error
    if missing := [name for name in required if name not in columns]:
        raise DataError(f"file '{path.name}' lacks column {list_names(missing)}; fetch it again")
    return columns


def _parse_csv(path: Path, names: list[str] | None) -> Columns:
    import pandas as pd  # half a second, and NPZ files do without

    if names is None:
        _refuse_other_separators(path)
    with _refuse_long_rows(path):
        return frame_columns(pd.read_csv(path, names=names, **_csv_options()))


def csv_pieces(
    path: Path, rows: int, types: Mapping[str, str] | None = None
) -> Iterator["pd.DataFrame"]:
    """Read a CSV file so many rows at a time.

    Args:
        path: the file.
        rows: of each frame.
        types: of columns for which what pandas finds in a frame must not count.

    Raises:
        DataError: it is separated by something else than commas, or has rows that are too long.
    """
    import pandas as pd

    _refuse_other_separators(path)
    with pd.read_csv(path, chunksize=rows, dtype=dict(types or {}), **_csv_options()) as frames:
        while True:
            with _refuse_long_rows(path):
                frame = next(frames, None)
            if frame is None:
                return
            yield frame


def _csv_options() -> dict[str, Any]:
    # Left to itself pandas takes the first cells of rows that are longer than the header for names
    # of the rows, so that every column holds what its neighbour should.
    return {
        "index_col": False,
        "na_values": list(MISSING_MARKS),
        "keep_default_na": False,
        "low_memory": False,  # a column has one type, whatever its length
        "encoding": "utf-8-sig",
    }


@contextmanager
def _refuse_long_rows(path: Path) -> Iterator[None]:
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            yield
        except pd.errors.ParserWarning as error:
            raise DataError(
                f"file '{path.name}': its rows must have as many cells as its header, got more; "
                "name the columns that have no name, or remove them"
            ) from error


def _refuse_other_separators(path: Path) -> None:
    """Refuse a file that its header shows to be separated by something else than commas.

    Raises:
        DataError: it is; a single column would otherwise be found.
    """
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = file.readline()
    for mark, word in SEPARATORS.items():
        if mark in header and "," not in header:
            raise DataError(
                f"file '{path.name}': its cells must be separated by commas, got {word} in its "
                "header; save it again with commas, and with points in decimal numbers"
            )


def _read_csv(path: Path) -> Columns:
    return _parse_csv(path, None)


def _read_parquet(path: Path) -> Columns:
    return frame_columns(read_parquet(path))


def read_parquet(path: Path) -> "pd.DataFrame":
    """Read a Parquet file whole.

    Raises:
        MemoryError: it does not fit; also where Arrow has no memory for a thread, which it calls
            an unknown error.
        OSError, ValueError: it cannot be read.
    """
    import pandas as pd
    import pyarrow as pa

    try:
        return pd.read_parquet(path)
    except pa.ArrowException as error:
        if os.strerror(errno.EAGAIN) in str(error):
            raise MemoryError(str(error)) from error
        raise


def _read_npz(path: Path) -> Columns:
    with path.open("rb") as file:  # NumPy leaves a file open that it cannot read
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("a single array without a name")
        columns = {name: archive[name] for name in archive.files}
    if scalars := [name for name, column in columns.items() if column.ndim == 0]:
        raise DataError(
            f"file '{path.name}': arrays must have one entry per row, got single values in "
            f"{list_names(scalars)}; remove them"
        )
    return {
        part: text_as_objects(cells)
        for name, column in columns.items()
        for part, cells in matrix_columns(name, column)
    }


def matrix_columns(name: str, column: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Name the columns of an array [N, D]: ``name.0`` to ``name.D-1``, or ``name`` for D = 1."""
    if column.ndim != 2:
        yield name, column
    elif column.shape[1] == 1:
        yield name, column[:, 0]
    else:
        yield from ((f"{name}.{k}", column[:, k]) for k in range(column.shape[1]))


def text_as_objects(column: NDArray[Any]) -> NDArray[Any]:
    """Turn text of a fixed width into objects: str, or None where it is empty."""
    if column.dtype.kind not in "US":
        return column
    text = np.empty(column.shape, dtype=object)
    text[...] = column.astype(str)
    text[text == ""] = None
    return text


READERS: dict[str, Callable[[Path], Columns]] = {
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".npz": _read_npz,
}
