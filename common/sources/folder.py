"""A folder with one file per client; the file's name is the client's."""

from pathlib import Path

from common.cells import list_names
from common.errors import ConfigError, DataError
from common.natural_order import natural_sort
from common.sections.rows import Data
from common.sources.files import READERS, read_columns
from common.sources.pieces import open_pieces
from common.sources.streams import stream_file
from common.tables import ClientTable, TableSource


def open_folder(data: Data) -> TableSource:
    """Open a folder of CSV, Parquet or NPZ files, which are read one at a time.

    The arrays of an NPZ file are its columns; images are [N, height, width] or
    [N, channels, height, width]. Other files, and hidden ones, are passed over.

    Raises:
        ConfigError: `data.path` is no folder.
        DataError: it holds no such file, or two that name the same client.
    """
    folder = Path(data.path)
    if not folder.is_dir():
        raise ConfigError(
            f"data.path must be a folder with one file per client for source 'folder', got the "
            f"file '{folder}'; for one file with a client column set data.source to 'table'"
        )
    present = [path for path in folder.iterdir() if path.is_file() and path.name[0] != "."]
    files: dict[str, Path] = {}
    for path in sorted(present):
        if path.suffix.lower() not in READERS:
            continue
        if path.stem in files:
            raise DataError(
                f"data.path: files '{files[path.stem].name}' and '{path.name}' name the same "
                f"client '{path.stem}'; rename or remove one"
            )
        files[path.stem] = path
    if not files:
        others = f"{len(present)} others: {list_names(sorted(p.name for p in present))}"
        raise DataError(
            f"data.path: folder '{folder}' must hold one {', '.join(READERS)} file per client, got "
            f"{others if present else 'none'}"
        )
    names = tuple(natural_sort(files))
    if data.memory == "disk":
        return TableSource(names, lambda name: stream_file(name, open_pieces(files[name])))
    return TableSource(names, lambda name: ClientTable(name, read_columns(files[name])))
