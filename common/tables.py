"""Raw rows before encoding: one client's named columns, and a source that reads many clients."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True)
class ClientTable:
    """One client's rows as named columns, as they stand in its file.

    Attributes:
        name: stable name of the client.
        columns: column name -> array [N, ...]: numbers (missing is NaN), or objects of str
            (missing is None); images are one column [N, height, width] or [N, channels, h, w].
    """

    name: str
    columns: dict[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))


@dataclass(frozen=True)
class TableSource:
    """Where tables come from.

    Attributes:
        names: stable names of all clients, sorted naturally.
        read: reads one client's table by name.
    """

    names: tuple[str, ...]
    read: Callable[[str], ClientTable]
