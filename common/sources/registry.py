"""All sources of rows by name; listing them imports none of them."""

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from stat import S_ISDIR
from typing import TYPE_CHECKING

from common.errors import ConfigError, DataError

if TYPE_CHECKING:
    from common.sections.rows import Data
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
        embedded: whether it ships with a library, so that `data.path` is not used.
    """

    module: str
    function: str
    summary: str
    citation: str = ""
    folder: str = ""
    embedded: bool = False


SOURCES: dict[str, Source] = {
    "digits": Source(
        "common.sources.digits",
        "open_digits",
        "scikit-learn's 1,797 handwritten digits, embedded; needs a [partition]",
        "Alpaydin & Kaynak 1998, https://archive.ics.uci.edu/dataset/80",
        embedded=True,
    ),
    "table": Source(
        "common.sources.table",
        "open_table",
        "one CSV, Parquet or NPZ file; data.client-column names the client of each row",
    ),
    "folder": Source(
        "common.sources.folder",
        "open_folder",
        "a folder with one CSV, Parquet or NPZ file per client, named after it",
    ),
    "school": Source(
        "common.sources.school",
        "open_school",
        "139 London schools, exam score of 15,362 students",
        "Bakker & Heskes 2003, https://github.com/jiayuzhou/MALSAR",
        folder="school",
    ),
    "landmine": Source(
        "common.sources.landmine",
        "open_landmine",
        "29 fields, mine or clutter, 14,820 radar signatures",
        "Xue, Liao, Carin & Krishnapuram, JMLR 8, 2007",
        folder="landmine",
    ),
    "parkinsons": Source(
        "common.sources.parkinsons",
        "open_parkinsons",
        "42 patients, two symptom scores, 5,875 voice recordings",
        "Tsanas et al. 2010, https://archive.ics.uci.edu/dataset/189",
        folder="parkinsons",
    ),
    "cmu_faces": Source(
        "common.sources.cmu_faces",
        "open_cmu_faces",
        "20 persons, pose, eyes and expression, 624 images",
        "Mitchell 1997, https://archive.ics.uci.edu/dataset/124",
        folder="cmu_faces",
    ),
    "heart_disease": Source(
        "common.sources.heart_disease",
        "open_heart_disease",
        "4 hospitals, disease, severity, angina, heart rate, 920 patients",
        "Detrano et al. 1989, https://archive.ics.uci.edu/dataset/45; split of FLamby, 2022",
        folder="heart_disease",
    ),
    "communities_crime": Source(
        "common.sources.communities_crime",
        "open_communities_crime",
        "48 US states, ten crime rates with gaps, 2,215 communities",
        "Redmond & Baveja 2002, https://archive.ics.uci.edu/dataset/211",
        folder="communities_crime",
    ),
    "mnist": Source(
        "common.sources.mnist",
        "open_mnist",
        "70,000 digits: digit, parity, ink; needs a [partition]",
        "LeCun et al. 1998",
        folder="mnist",
    ),
    "mnist_pairs": Source(
        "common.sources.mnist",
        "open_mnist_pairs",
        "35,000 pairs of digits, left and right; needs a [partition]",
        "LeCun et al. 1998; Sabour et al. 2017",
        folder="mnist",
    ),
    "mnist_rotated": Source(
        "common.sources.mnist",
        "open_mnist_rotated",
        "4 clients, 70,000 digits turned by 0, 90, 180 or 270 degrees",
        "LeCun et al. 1998; Ghosh et al. 2020",
        folder="mnist",
    ),
}


def open_source(data: "Data") -> "TableSource":
    """Open the source that `data.source` names; a second call with the same settings is free.

    Raises:
        ConfigError: there is no such source, or its folder is not given or does not exist.
        DataError: what is there cannot be read.
    """
    try:
        data = data.model_copy(update={"path": _resolve_path(data)})
        changed = os.stat(data.path).st_mtime_ns if data.path else 0
        return _open(data, changed)
    except OSError as error:
        raise DataError(
            f"data.path: '{data.path}' cannot be opened ({error.strerror or error}); correct its "
            "permissions, or name another"
        ) from error


def source_signature(data: "Data") -> str:
    """Name the state of a source's raw files: their names, sizes and times, not their content.

    Raises:
        ConfigError: the source does not exist, or its folder is not given or does not exist.
        DataError: the folder cannot be listed.
    """
    root = _resolve_path(data)
    if not root:
        return ""
    found = []
    try:
        paths = sorted(Path(root).rglob("*")) if Path(root).is_dir() else [Path(root)]
    except OSError as error:
        raise DataError(
            f"data.path: '{root}' cannot be listed ({error.strerror or error}); correct its "
            "permissions, or name another"
        ) from error
    for path in paths:
        try:
            facts = path.stat()
        except OSError as error:  # gone meanwhile, or a link to nothing
            found.append(f"{path.relative_to(root)} {error.strerror}")
            continue
        if not S_ISDIR(facts.st_mode):
            parts = (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
            found.append(f"{path.relative_to(root)} {parts}")
    return hashlib.sha256("\n".join([root, *found]).encode()).hexdigest()[:16]


@lru_cache(maxsize=2)
def _open(data: "Data", changed: int) -> "TableSource":
    """Open a source once per settings and per change of its file or folder."""
    source = SOURCES[data.source]
    opened: TableSource = getattr(import_module(source.module), source.function)(data)
    return opened


def _require_source(data: "Data") -> None:
    if data.source not in SOURCES:
        raise ConfigError(
            f"data.source must be one of {', '.join(SOURCES)}, got '{data.source}'; for data of "
            "your own take 'table' or 'folder'"
        )


def _resolve_path(data: "Data") -> str:
    """Find where the raw data is: `data.path`, or the data set's folder under `FEDMTL_DATA`."""
    _require_source(data)
    source = SOURCES[data.source]
    if source.embedded:
        if data.path:
            raise ConfigError(
                f"data.path must be empty for source '{data.source}', which is embedded, got "
                f"'{data.path}'; for data of your own take 'table' or 'folder'"
            )
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
