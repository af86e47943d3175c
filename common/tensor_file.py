"""Arrays in one file, written piece by piece and mapped: memory holds the pages that are in use.

The format is that of safetensors. A file without a name has vanished from its folder before the
first row is in it: it is this process's alone, and gone with it, however it ends.
"""

import json
import mmap
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import StateError

Layout = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]  # array name -> type, shape

CODES = {"F64": "float64", "I64": "int64", "F32": "float32", "I32": "int32", "BOOL": "bool"}
NAMES = {name: code for code, name in CODES.items()}
ALIGNMENT = 8


class TensorFile:
    """A new file of arrays, to be filled and then mapped.

    Args:
        layout: what it holds.
        folder: where a file without a name lies; None for the system's temporary folder.
        path: the name of the file, whose folder exists; None for a file without one.
        metadata: text that goes with the arrays.

    Raises:
        StateError: it cannot be made.
    """

    def __init__(
        self,
        layout: Layout,
        folder: Path | None = None,
        *,
        path: Path | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = Path(folder or tempfile.gettempdir()) if path is None else path.parent
        header, self._places = _lay_out(layout, metadata)
        opened = None
        try:
            opened = self._file = (
                tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115 (`close`)
                if path is None
                else open(path, "w+b", buffering=0, opener=_open_private)  # noqa: SIM115
            )
            self._write(header, 0)
            os.ftruncate(self._file.fileno(), _end(self._places, len(header)))
        except OSError as error:
            if opened is not None:
                opened.close()
            raise self._failure(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, name: str, start: int, rows: NDArray[Any]) -> None:
        """Write rows of an array, from row `start` on.

        Raises:
            StateError: there is no room for them.
        """
        dtype, shape, offset = self._places[name]
        if rows.shape[1:] != shape[1:] or start + len(rows) > shape[0]:
            raise RuntimeError(f"rows {start} on, {rows.shape}, do not fit '{name}', {shape}")
        content = np.ascontiguousarray(rows, dtype=dtype)
        row_bytes = content.nbytes // max(1, len(rows))
        try:
            self._write(content.reshape(-1).view(np.uint8).data, offset + start * row_bytes)
        except OSError as error:
            raise self._failure(error) from error

    def map(self) -> dict[str, NDArray[Any]]:
        """Map the arrays, for reading only; they keep the file alive."""
        return _map(self._file.fileno(), self._places)

    def close(self) -> None:
        """Let go of the file; what was mapped stays."""
        self._file.close()

    def _write(self, content: memoryview | bytes, offset: int) -> None:
        # Not through the map: on a full disk that would end the process, without a word.
        left = memoryview(content)
        while left:
            written = os.pwrite(self._file.fileno(), left[: 2**30], offset)
            left, offset = left[written:], offset + written

    def _failure(self, error: OSError) -> StateError:
        return StateError(
            f"data.memory 'disk': rows cannot be written to folder '{self.folder}' "
            f"({error.strerror or error}); make room, correct its permissions, or name another: a "
            "node's by state=, a simulation's by the variable TMPDIR"
        )


def map_file(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Map the arrays of a file for reading only, and read the text that goes with them.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, or not whole.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = 8 + int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(max(0, min(start, size) - 8)))
            metadata = header.pop("__metadata__", {})
            places = {
                name: (
                    np.dtype(CODES[entry["dtype"]]),
                    tuple(entry["shape"]),
                    start + entry["data_offsets"][0],
                )
                for name, entry in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError("no file of arrays") from error
        if _end(places, start) != size:
            raise ValueError("a file of arrays that is not whole")
        return _map(file.fileno(), places), metadata


def as_tensor(array: NDArray[Any]) -> Tensor:
    """Make a tensor of a mapped array without a copy; nobody may write into it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


Places = dict[str, tuple[np.dtype[Any], tuple[int, ...], int]]  # name -> type, shape, first byte


def _lay_out(layout: Layout, metadata: Mapping[str, str] | None) -> tuple[bytes, Places]:
    """Write the header, and find each array's place in the file: the widest numbers first."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset, offsets = 0, {}
    for name, (dtype, shape) in sorted(layout.items(), key=lambda item: -item[1][0].itemsize):
        end = offset + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        entries[name] = {
            "dtype": NAMES[dtype.name],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offsets[name], offset = offset, end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    places = {
        name: (dtype, shape, len(header) + offsets[name]) for name, (dtype, shape) in layout.items()
    }
    return header, places


def _end(places: Places, empty: int) -> int:
    """Say how long the file is; `empty`, of one without arrays."""
    ends = (
        offset + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        for dtype, shape, offset in places.values()
    )
    return max(ends, default=empty)


def _map(file: int, places: Places) -> dict[str, NDArray[Any]]:
    content = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
    return {
        name: np.ndarray(shape, dtype, buffer=content, offset=offset)
        for name, (dtype, shape, offset) in places.items()
    }


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
