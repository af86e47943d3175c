"""One file with the rows of all clients, and a column that names the client of each row."""

from pathlib import Path

from common.errors import ConfigError
from common.partition import rows_by_name
from common.sections.rows import Data
from common.sources.files import READERS, read_columns
from common.sources.streams import require_client_column, stream_table
from common.splits import IndexArray
from common.tables import ClientTable, TableSource


def open_table(data: Data) -> TableSource:
    """Open a CSV, Parquet or NPZ file.

    Without `data.client-column` the file is one client, named after it: a node's own rows, or all
    rows of a simulation that a [partition] deals out.

    Raises:
        ConfigError: `data.path` is no such file.
        DataError: the file cannot be read, or its client column is missing or has gaps.
    """
    path = Path(data.path)
    if path.is_dir() or path.suffix.lower() not in READERS:
        raise ConfigError(
            f"data.path must be a {', '.join(READERS)} file for source 'table', got '{path}'; for "
            "a folder with one file per client set data.source to 'folder'"
        )
    if data.memory == "disk":
        return stream_table(path, data.client_column)
    columns = read_columns(path)
    if not data.client_column:
        return TableSource((path.stem,), lambda name: ClientTable(name, columns))
    require_client_column(path, data.client_column, tuple(columns))
    names = columns[data.client_column]
    where = f"file '{path.name}', column '{data.client_column}' (data.client-column)"
    rows = {name: _neighbours(own) for name, own in rows_by_name(names, where).items()}

    def read(name: str) -> ClientTable:
        return ClientTable(name, {key: column[rows[name]] for key, column in columns.items()})

    return TableSource(tuple(rows), read)


def _neighbours(rows: IndexArray) -> IndexArray | slice:
    """Turn rows that stand together into a slice, which copies nothing."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first == len(rows) - 1 else rows
