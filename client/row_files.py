"""Files of new rows, read as training reads them; and the same rows written with predictions."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from client.prediction import Predictions
from common.errors import ConfigError, DataError
from common.sources.files import READERS, frame_columns, read_columns, read_parquet
from common.tables import Columns

if TYPE_CHECKING:
    import pandas as pd

WRITTEN = (".csv", ".parquet")


@dataclass(frozen=True)
class RowFile:
    """The rows of one file.

    Attributes:
        path: the file.
        columns: as `common.tables.ClientTable` holds them.
        frame: what is written beside predictions: a Parquet file's frame, else the columns that
            hold one value a row.
    """

    path: Path
    columns: Columns
    frame: "pd.DataFrame"


def check_paths(rows: Path, out: Path) -> None:
    """Check the names of both files before anything is computed.

    Raises:
        ConfigError: one is not a file that can be read, or written.
    """
    if not rows.is_file():
        raise ConfigError(f"--rows must be a file, got '{rows}', which is none")
    if rows.suffix.lower() not in READERS:
        raise ConfigError(f"--rows must be a {', '.join(READERS)} file, got '{rows}'")
    if out.suffix.lower() not in WRITTEN:
        raise ConfigError(f"--out must be a {' or '.join(WRITTEN)} file, got '{out}'")
    if not out.parent.is_dir():
        raise ConfigError(f"--out must be in a folder that exists, got '{out}'")
    if out.exists() and out.samefile(rows):
        raise ConfigError(f"--out must be another file than --rows, got '{out}' for both")


def read_rows(path: Path) -> RowFile:
    """Read a file of rows.

    Raises:
        DataError: it cannot be read, or is empty.
    """
    import pandas as pd  # half a second

    if path.suffix.lower() == ".parquet":
        try:
            frame = read_parquet(path)
        except (OSError, ValueError) as error:
            raise DataError(
                f"file '{path.name}' cannot be read as PARQUET ({type(error).__name__}); repair or "
                "replace it"
            ) from error
        except MemoryError as error:
            raise DataError(
                f"file '{path.name}' does not fit in memory; divide it, and predict its parts"
            ) from error
        if not len(frame):
            raise DataError(f"file '{path.name}' has no rows; fill it")
        return RowFile(path, frame_columns(frame), frame)
    columns = read_columns(path)
    flat = {name: column for name, column in columns.items() if column.ndim == 1}
    rows = len(next(iter(columns.values()), ()))  # a frame of no column has none of its own
    return RowFile(path, columns, pd.DataFrame(flat, index=range(rows)))


def write_predictions(rows: RowFile, predictions: Predictions, out: Path) -> None:
    """Write the rows with their predictions, whole or not at all.

    Raises:
        ConfigError: the file cannot be written.
    """
    import pandas as pd

    csv = out.suffix.lower() == ".csv"
    frame = _verbatim(rows.path) if csv and rows.path.suffix.lower() == ".csv" else rows.frame
    added = {n: _spread(c, predictions.usable) for n, c in predictions.columns.items()}
    whole = pd.concat([frame, pd.DataFrame(added).set_axis(frame.index)], axis=1)
    partial = out.with_name(out.name + ".partial")
    try:
        if csv:
            has_names = any(name is not None for name in frame.index.names)
            whole.to_csv(partial, index=has_names)
        else:
            whole.to_parquet(partial)
        os.replace(partial, out)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise ConfigError(f"--out '{out}' cannot be written: {error.strerror or error}") from error


def _verbatim(path: Path) -> "pd.DataFrame":
    """Read the cells of a CSV file as the text they are; numbers keep their spelling."""
    import pandas as pd

    frame = pd.read_csv(
        path, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig"
    )
    return frame.rename(columns=lambda name: "" if name.startswith("Unnamed: ") else name)


def _spread(column: NDArray[Any], usable: NDArray[np.bool_]) -> "pd.Series[Any]":
    """Put the values of usable rows in their places, and nothing in the others."""
    import pandas as pd

    series: pd.Series[Any] = pd.Series(column, index=np.flatnonzero(usable))
    if column.dtype.kind == "i":
        series = series.astype("Int64")  # which has room for nothing
    return series.reindex(range(len(usable)))
