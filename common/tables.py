"""Raw rows before encoding: one client's named columns, and a source that reads many clients."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ClientTable:
    """One client's rows as named columns, as they stand in its file.

    Attributes:
        name: stable name of the client.
        columns: column name -> array [N, ...]: numbers (missing is NaN), or objects of str
            (missing is None); images are one column [N, height, width] or [N, channels, h, w].
    """

    name: str
    columns: Columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))


class StreamedTable(ClientTable):
    """One client's rows, read from its file some at a time.

    Args:
        name: stable name of the client.
        rows: their number.
        read: reads the columns of all rows, piece by piece, the same ones each time.
        whole: reads the columns of all rows into memory.
        scratch: folder for what is made of them; None for the system's temporary folder.
    """

    def __init__(
        self,
        name: str,
        rows: int,
        read: Callable[[], Iterator[Columns]],
        whole: Callable[[], Columns],
        scratch: Path | None = None,
    ) -> None:
        # Past the frozen dataclass, whose `columns` is a property here.
        self.__dict__.update(name=name, rows=rows, read=read, whole=whole, scratch=scratch)

    rows: int
    read: Callable[[], Iterator[Columns]]
    whole: Callable[[], Columns]
    scratch: Path | None

    @property
    def columns(self) -> Columns:
        """All columns, in memory: for who needs them whole."""
        return self.whole()

    def __len__(self) -> int:
        return self.rows

    def pieces(self) -> Iterator[ClientTable]:
        """Read the rows piece by piece."""
        for columns in self.read():
            yield ClientTable(self.name, columns)

    def beside(self, scratch: Path) -> "StreamedTable":
        """Make what is made of the rows lie in another folder."""
        return StreamedTable(self.name, self.rows, self.read, self.whole, scratch)


@dataclass(frozen=True)
class TableSource:
    """Where tables come from.

    Attributes:
        names: stable names of all clients, sorted naturally.
        read: reads one client's table by name.
    """

    names: tuple[str, ...]
    read: Callable[[str], ClientTable]
