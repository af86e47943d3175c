"""The columns of one file, some rows at a time, for files that are larger than memory.

The rows of all pieces together are what `common.sources.files` reads at once. A column of a CSV
file has one type, whatever its length, so such a file is read once beforehand to find the types.
"""

import os
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.sources.files import (
    check_lengths,
    csv_pieces,
    frame_columns,
    matrix_columns,
    readable,
    text_as_objects,
)
from common.tables import Columns

if TYPE_CHECKING:
    import pandas as pd

BUFFER_BYTES = 2**18  # of each column of a Parquet file, whose row groups may be large
CELLS = 2**20  # of a piece: 8 MiB as numbers, several times that while a file is parsed


@dataclass(frozen=True)
class PiecedFile:
    """A file whose rows are read in pieces.

    Attributes:
        path: the file.
        rows: number of its rows.
        columns: names of its columns.
    """

    path: Path
    rows: int
    columns: tuple[str, ...]
    _read: Callable[[Collection[str] | None], Iterator[Columns]] = field(repr=False)
    _state: tuple[int, ...] = ()

    def read(self, only: Collection[str] | None = None) -> Iterator[Columns]:
        """Read the pieces in order; with `only`, of these columns.

        Raises:
            DataError: the file cannot be read, or has changed since it was opened.
        """
        self._require_same()
        found = 0
        try:
            with readable(self.path):
                for columns in self._read(only):
                    found += check_lengths(self.path, columns)
                    if found > self.rows:
                        break
                    yield columns
        except DataError:
            self._require_same()  # a fault may be that it is not the same
            raise
        self._require_same(found)

    def _require_same(self, found: int | None = None) -> None:
        if _state_of(self.path) != self._state or found not in (None, self.rows):
            raise DataError(
                f"file '{self.path.name}' changed while it was read in pieces; start again when "
                "nobody writes to it, and replace it by renaming a whole one"
            )


def open_pieces(path: Path) -> PiecedFile:
    """Look through a CSV, Parquet or NPZ file.

    Raises:
        DataError: it cannot be read as what its name says, or has no rows or columns.
    """
    with readable(path):
        state = _state_of(path)
        rows, columns, read = OPENERS[path.suffix.lower()](path)
    if not rows or not columns:
        raise DataError(f"file '{path.name}' has no rows; fill or remove it")
    return PiecedFile(path, rows, tuple(columns), read, state)


def _state_of(path: Path) -> tuple[int, ...]:
    try:
        facts = os.stat(path)
    except OSError:
        return ()
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


Opened = tuple[int, Sequence[str], Callable[[Collection[str] | None], Iterator[Columns]]]


def _open_csv(path: Path) -> Opened:
    kinds: dict[str, set[str]] = {}
    rows, size = 0, _piece_rows(next(csv_pieces(path, 1)).shape[1])
    for frame in csv_pieces(path, size):
        rows += len(frame)
        for name in frame.columns:
            kinds.setdefault(str(name), set()).add(_kind_of(frame[name]))
    types = {name: chosen for name, found in kinds.items() if (chosen := _type_of(found))}

    def read(only: Collection[str] | None) -> Iterator[Columns]:
        for frame in csv_pieces(path, size, types):
            yield _pick(frame_columns(frame), only)

    return rows, [name for name in kinds if not name.startswith("Unnamed: ")], read


def _kind_of(cells: "pd.Series[Any]") -> str:
    """Say what pandas found in some cells of a column."""
    from pandas.api.types import is_bool_dtype, is_float_dtype, is_numeric_dtype

    filled = cells.dropna()
    if not len(filled):
        return "nothing"
    if is_bool_dtype(filled.dtype) or all(isinstance(cell, bool) for cell in filled):
        return "truths"
    if not is_numeric_dtype(cells.dtype):
        return "text"
    return "decimals" if is_float_dtype(cells.dtype) else "whole numbers"


def _type_of(kinds: Collection[str]) -> str | None:
    """Choose the type that a column has when it is read at once; None for what pandas finds."""
    found = set(kinds)
    if "text" in found or ("truths" in found and found - {"truths", "nothing"}):
        return "str"
    if found > {"whole numbers"}:
        return "float64"
    return None


def _open_parquet(path: Path) -> Opened:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def open_file() -> Any:
        # Not mapped: a file that is cut short meanwhile would end the process without a word.
        return pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)

    try:
        with open_file() as file:
            rows, schema = file.metadata.num_rows, file.schema_arrow
    except pa.ArrowException as error:
        raise ValueError("no Parquet file") from error
    # What pandas saved as the names of rows is no column.
    columns = [str(name) for name in schema.empty_table().to_pandas().columns]
    columns = [name for name in columns if not name.startswith("Unnamed: ")]

    def read(only: Collection[str] | None) -> Iterator[Columns]:
        chosen = [name for name in columns if only is None or name in only]
        with open_file() as file:
            for batch in file.iter_batches(_piece_rows(len(chosen)), columns=chosen):
                yield frame_columns(pa.Table.from_batches([batch]).to_pandas())

    return rows, columns, read


def _open_npz(path: Path) -> Opened:
    with zipfile.ZipFile(path) as archive:
        heads = {n.removesuffix(".npy"): _NpyRows.open(archive, n) for n in archive.namelist()}
        lengths = {name: head.shape[0] for name, head in heads.items()}
        parts = [
            part
            for name, head in heads.items()
            for part, _ in matrix_columns(name, np.empty((0, *head.shape[1:]), head.dtype))
        ]
        width = sum(int(np.prod(head.shape[1:])) for head in heads.values())
        for head in heads.values():
            head.close()
    check_lengths(path, {n: np.broadcast_to(np.int8(0), length) for n, length in lengths.items()})
    rows = next(iter(lengths.values()), 0)

    def read(only: Collection[str] | None) -> Iterator[Columns]:
        with zipfile.ZipFile(path) as archive:
            arrays = {
                name: _NpyRows.open(archive, name + ".npy")
                for name in heads
                if only is None or any(p == name or p.startswith(name + ".") for p in only)
            }
            for start in range(0, rows, size := _piece_rows(width)):
                count = min(size, rows - start)
                yield _pick(
                    {
                        part: text_as_objects(cells)
                        for name, array in arrays.items()
                        for part, cells in matrix_columns(name, array.take(count))
                    },
                    only,
                )

    return rows, parts, read


@dataclass(frozen=True)
class _NpyRows:
    """An array of an NPZ file, read from its first row on."""

    stream: IO[bytes]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def open(cls, archive: zipfile.ZipFile, name: str) -> "_NpyRows":
        stream = archive.open(name)
        version = np.lib.format.read_magic(stream)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in readers:
            raise ValueError("an array of another version of the format")
        shape, by_column, dtype = readers[version](stream)
        file, array = Path(str(archive.filename)).name, name.removesuffix(".npy")
        if dtype.hasobject:
            raise ValueError("an array of Python objects")
        if not shape:
            raise DataError(
                f"file '{file}': arrays must have one entry per row, got a single value in "
                f"'{array}'; remove it"
            )
        if by_column and sum(length > 1 for length in shape) > 1:
            raise DataError(
                f"file '{file}': data.memory 'disk' reads arrays row by row, got '{array}' stored "
                "column by column; save it again through numpy.ascontiguousarray"
            )
        return cls(stream, shape, dtype)

    def take(self, rows: int) -> NDArray[Any]:
        """Read the next rows."""
        shape = (rows, *self.shape[1:])
        wanted = int(np.prod(shape)) * self.dtype.itemsize
        content = self.stream.read(wanted)
        if len(content) < wanted:
            raise EOFError("an array that ends early")
        return np.frombuffer(content, self.dtype).reshape(shape)

    def close(self) -> None:
        self.stream.close()


def _piece_rows(columns: int) -> int:
    return max(1, CELLS // max(1, columns))


def _pick(columns: Columns, only: Collection[str] | None) -> Columns:
    return {name: cells for name, cells in columns.items() if only is None or name in only}


OPENERS: dict[str, Callable[[Path], Opened]] = {
    ".csv": _open_csv,
    ".parquet": _open_parquet,
    ".npz": _open_npz,
}
