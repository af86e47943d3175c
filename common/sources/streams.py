"""Files that are read in pieces, as the tables of clients."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.cells import list_names, read_names
from common.errors import DataError
from common.natural_order import natural_sort
from common.sources.files import read_columns
from common.sources.pieces import PiecedFile, open_pieces
from common.tables import Columns, StreamedTable, TableSource


def stream_file(name: str, file: PiecedFile) -> StreamedTable:
    """Make one client of all rows of a file."""
    return StreamedTable(name, file.rows, file.read, lambda: read_columns(file.path))


def stream_table(path: Path, client_column: str) -> TableSource:
    """Make clients of one file; of all its rows one, where no column names clients.

    The file is passed through once to find the clients, and once for each of them.

    Raises:
        DataError: the file cannot be read, or its client column is missing or has gaps.
    """
    file = open_pieces(path)
    if not client_column:
        return TableSource((path.stem,), lambda name: stream_file(name, file))
    require_client_column(path, client_column, file.columns)
    where = f"file '{path.name}', column '{client_column}' (data.client-column)"
    counts: Counter[str | None] = Counter()
    for columns in file.read((client_column,)):
        counts.update(read_names(columns[client_column], where).tolist())
    if counts[None]:
        raise DataError(
            f"{where} must be filled in every row, got {counts[None]} empty cells of {file.rows}"
        )
    names = tuple(natural_sort(name for name in counts if name is not None))

    def read(name: str) -> StreamedTable:
        def own() -> Iterator[Columns]:
            for columns in file.read():
                mine = read_names(columns[client_column], where) == name
                if mine.any():
                    yield {key: cells[mine] for key, cells in columns.items()}

        def whole() -> Columns:
            columns = read_columns(path)
            mine = read_names(columns[client_column], where) == name
            return {key: cells[mine] for key, cells in columns.items()}

        return StreamedTable(name, counts[name], own, whole)

    return TableSource(names, read)


def require_client_column(path: Path, client_column: str, columns: Sequence[str]) -> None:
    """Check that a file has the column that names clients.

    Raises:
        DataError: it has none.
    """
    if client_column not in columns:
        raise DataError(
            f"file '{path.name}' has no column '{client_column}', which data.client-column "
            f"names; its columns are {list_names(columns)}"
        )
