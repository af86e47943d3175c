"""All sources of rows by name; listing them imports none of them."""

import os
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ConfigError

if TYPE_CHECKING:
    from common.experiment import Data
    from common.tables import TableSource

HOME_VARIABLE = "FEDMTL_DATA"  # names the folder that holds the folders of the public data sets


@dataclass(frozen=True)
class Source:
    """One line of the table of sources.

    Attributes:
        module: where its function lives.
        function: name of the function ``(Data) -> TableSource``.
        summary: one line on its clients and tasks.
        citation: the paper, or where the data set is described.
        folder: folder of a public data set under `FEDMTL_DATA`; empty where there is none.
    """

    module: str
    function: str
    summary: str
    citation: str = ""
    folder: str = ""


SOURCES: dict[str, Source] = {
    "digits": Source(
        "common.sources.digits",
        "open_digits",
        "scikit-learn's 1,797 handwritten digits, embedded; give it a [partition]",
        "Alpaydin & Kaynak 1998, https://archive.ics.uci.edu/dataset/80",
    ),
}


def open_source(data: "Data") -> "TableSource":
    """Open the source that `data.source` names; a second call with the same settings is free.

    Raises:
        ConfigError: there is no such source, or its folder is not given or does not exist.
        DataError: what is there cannot be read.
    """
    if data.source not in SOURCES:
        raise ConfigError(
            f"data.source must be one of {', '.join(SOURCES)}, got '{data.source}'; for data of "
            "your own take 'table' or 'folder'"
        )
    data = data.model_copy(update={"path": _resolve_path(data)})
    changed = os.stat(data.path).st_mtime_ns if data.path else 0
    return _open(data, changed)


@lru_cache(maxsize=2)
def _open(data: "Data", changed: int) -> "TableSource":
    """Open a source once per settings and per change of its file or folder."""
    source = SOURCES[data.source]
    opened: TableSource = getattr(import_module(source.module), source.function)(data)
    return opened


def _resolve_path(data: "Data") -> str:
    """Find where the raw data is: `data.path`, or the data set's folder under `FEDMTL_DATA`."""
    source = SOURCES[data.source]
    if data.source == "digits":
        return ""
    home = os.environ.get(HOME_VARIABLE, "")
    if not data.path and not source.folder:
        raise ConfigError(f"data.path must name the data of source '{data.source}', got nothing")
    if not data.path and not home:
        raise ConfigError(
            f"data.path must name the folder with the raw files of '{data.source}', got nothing; "
            f"set it, or set {HOME_VARIABLE} to the folder that holds '{source.folder}'"
        )
    path = Path(data.path or Path(home) / source.folder)
    if not path.exists():
        named = "data.path" if data.path else HOME_VARIABLE
        raise ConfigError(f"{named}: '{path}' does not exist; correct it, or put the files there")
    return str(path)
