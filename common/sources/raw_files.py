"""The raw files of public data sets, found and opened with errors that say what is wrong."""

from pathlib import Path
from typing import Any

from common.errors import DataError
from common.sections.rows import Data


def find_file(data: Data, name: str) -> Path:
    """Find a raw file or folder in `data.path`.

    Raises:
        DataError: it is not there.
    """
    path = Path(data.path) / name
    if not path.exists():
        raise DataError(
            f"data.path: source '{data.source}' needs '{name}' in '{data.path}', which is not "
            "there; `fedmtl list` names where the data set is described"
        )
    return path


def load_cells(data: Data, name: str, *keys: str) -> list[list[Any]]:
    """Load cell arrays of a MATLAB file: for each key, one array per client.

    Raises:
        DataError: the file is missing, or not what it should be.
    """
    from scipy.io import loadmat

    path = find_file(data, name)
    try:
        content = loadmat(path)
        return [list(content[key].flat) for key in keys]
    except Exception as error:  # a file that is no such file can lead scipy to any of them
        raise DataError(
            f"file '{name}' must be a MATLAB file with {', '.join(keys)}, cannot be read "
            f"({type(error).__name__}); fetch it again"
        ) from error
