"""A client's rows read in pieces into a mapped file, for rows that do not fit in memory.

What is left in memory is a mask or two a row, and the cells of the column that rows are split by.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.cells import ObjectArray
from common.errors import DataError
from common.experiment import Experiment
from common.features import Features, read_features
from common.tables import ClientTable, StreamedTable
from common.targets import Target, read_labels
from common.tensor_file import Layout, TensorFile
from common.text import encode_cells

CODE = np.dtype(np.int32)


@dataclass(frozen=True)
class NamedCells:
    """Cells of text, as codes in a file: what is taken of them is objects of str or None.

    Attributes:
        codes: int32 [N, columns], -1 where a cell is empty.
        names: each column's texts by their codes, and None behind them.
    """

    codes: NDArray[np.int32]
    names: list[ObjectArray]

    nbytes = 0  # in memory
    dtype = np.dtype(object)

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, columns]."""
        return self.codes.shape

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Any) -> ObjectArray:
        taken = self.codes[rows]
        return np.stack([own[taken[:, i]] for i, own in enumerate(self.names)], axis=1)


@dataclass
class Spool:
    """What is known of a client's rows once all were read.

    Attributes:
        inputs: as in `common.preparation.PreparedClient.inputs`; their values lie in a file.
        labels: the same for the tasks whose columns the client has.
        split_by: a table of as many rows, with nothing but the cells that decide on the split.
    """

    inputs: dict[str, Features]
    labels: dict[str, Target]
    split_by: ClientTable


def spool(table: StreamedTable, experiment: Experiment) -> Spool:
    """Read a client's rows piece by piece, and write what the experiment uses of them to a file.

    Raises:
        DataError: a piece cannot serve the experiment, or the file changes meanwhile.
        StateError: there is no room on the disk.
    """
    reader, start = _Reader(table, experiment), 0
    try:
        for piece in table.pieces():
            try:
                reader.read(piece, start)
            except DataError as error:
                if len(piece) == len(table):
                    raise
                raise DataError(
                    f"among its rows {start + 1} to {start + len(piece)}, {error}"
                ) from error
            start += len(piece)
        return reader.finish()
    finally:
        reader.close()


@dataclass
class _Reader:
    """Writes pieces to the file, which the first one shows how to lay out."""

    table: StreamedTable
    experiment: Experiment
    file: TensorFile | None = None
    columns: tuple[str, ...] = ()
    features: dict[str, Features] = field(default_factory=dict)  # of the first piece
    codes: dict[str, list[dict[str | None, int]]] = field(default_factory=dict)
    usable: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    labelled: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    cells: dict[str, list[NDArray[Any]]] = field(default_factory=dict)  # that rows are split by
    texts: dict[Any, Any] = field(default_factory=dict)  # in them, once each

    def read(self, piece: ClientTable, start: int) -> None:
        inputs = {name: self._read_input(piece, name) for name in self.experiment.inputs}
        found = {task: read_labels(piece, self.experiment, task) for task in self.experiment.tasks}
        labels = {task: target for task, target in found.items() if target is not None}
        if self.file is None:
            self._open(piece, inputs, labels)
        for name, own in inputs.items():
            values: Any = own.values
            if name in self.codes:
                values = _encode_names(values, self.codes[name])
            self._write(f"inputs/{name}", start, values)
            self.usable[name][start : start + len(piece)] = own.usable
        for task, target in labels.items():
            self._write(f"targets/{task}", start, target.values)
            self.labelled[task][start : start + len(piece)] = target.labelled
        for column, parts in self.cells.items():
            parts.append(_share_texts(piece.columns[column], self.texts))

    def _read_input(self, piece: ClientTable, name: str) -> Features:
        """Read an input; of a text its tokens, for which nothing has to be known of other rows."""
        own, settings = read_features(piece, self.experiment, name), self.experiment.inputs[name]
        if settings.kind != "text":
            return own
        numbers = encode_cells(own.values[:], self.experiment.trunk, settings)
        return Features(own.columns, numbers, own.usable)

    def finish(self) -> Spool:
        if self.file is None:
            raise RuntimeError("a table without rows was spooled")
        arrays = self.file.map()
        inputs = {}
        for name, first in self.features.items():
            values: Any = arrays[f"inputs/{name}"]
            if name in self.codes:
                values = NamedCells(values, [_list_names(own) for own in self.codes[name]])
            inputs[name] = Features(first.columns, values, self.usable[name])
        labels = {t: Target(arrays[f"targets/{t}"], own) for t, own in self.labelled.items()}
        nothing = np.broadcast_to(np.array(np.nan), len(self.table))  # takes no memory
        columns = dict.fromkeys(self.columns, nothing)
        columns |= {name: np.concatenate(parts) for name, parts in self.cells.items()}
        return Spool(inputs, labels, ClientTable(self.table.name, columns))

    def close(self) -> None:
        """Let go of the file; what was mapped stays."""
        if self.file is not None:
            self.file.close()

    def _open(
        self,
        piece: ClientTable,
        inputs: Mapping[str, Features],
        labels: Mapping[str, Target],
    ) -> None:
        count, layout = len(self.table), {}
        for name, own in inputs.items():
            is_text = own.values.dtype == object
            layout[f"inputs/{name}"] = CODE if is_text else own.values.dtype, own.values.shape[1:]
            if is_text:
                self.codes[name] = [{None: -1} for _ in own.columns]
            self.usable[name] = np.zeros(count, dtype=bool)
        for task, target in labels.items():
            layout[f"targets/{task}"] = target.values.dtype, target.values.shape[1:]
            self.labelled[task] = np.zeros(count, dtype=bool)
        whole: Layout = {name: (dtype, (count, *row)) for name, (dtype, row) in layout.items()}
        self.file = TensorFile(whole, self.table.scratch)
        self.features, self.columns = dict(inputs), tuple(piece.columns)
        data = self.experiment.data
        wanted = {data.split_column}
        if data.stratify:
            wanted |= set(self.experiment.targets(data.stratify))
        self.cells = {column: [] for column in wanted if column in piece.columns}

    def _write(self, name: str, start: int, rows: NDArray[Any]) -> None:
        if self.file is not None:
            self.file.write(name, start, rows)


def _encode_names(cells: ObjectArray, codes: list[dict[str | None, int]]) -> NDArray[np.int32]:
    """Code cells [N, columns] column by column; a text that was not seen gets the next number."""
    columns = [
        [own.setdefault(cell, len(own) - 1) for cell in cells[:, i]] for i, own in enumerate(codes)
    ]
    return np.array(columns, CODE).T


def _list_names(codes: Mapping[str | None, int]) -> ObjectArray:
    names = np.empty(len(codes), dtype=object)
    names[:] = [*(name for name in codes if name is not None), None]
    return names


def _share_texts(cells: NDArray[Any], texts: dict[Any, Any]) -> NDArray[Any]:
    """Let cells of the same text be one object."""
    if cells.dtype != object:
        return cells
    shared = np.empty(len(cells), dtype=object)
    shared[:] = [texts.setdefault(cell, cell) for cell in cells]
    return shared
