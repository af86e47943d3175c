"""Turn a client's raw rows into the tensors it trains on, by what the clients agreed on.

Everything that is fitted (a mean, a deviation, a set of categories) is fitted on training rows, and
kept in `Fitted`: rows that come later are encoded by the same numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.agreement import Agreement, columns_misfit
from common.blocks import blocks, rows_at_once
from common.cells import count_rows
from common.dataset import ClientData, Rows, TargetScale
from common.errors import DataError
from common.experiment import Experiment
from common.features import Features, read_named
from common.fitted import Fitted
from common.preparation import PreparedClient, prepare
from common.scaling import Scaling, scaling_of
from common.sections.rows import Input
from common.tables import ClientTable
from common.targets import Target
from common.tensor_file import Layout, TensorFile, as_tensor
from common.text import encode_cells

Places = tuple[str | None, ...]  # of a column: its categories, then None where empty is one


def encode(table: ClientTable, experiment: Experiment, agreement: Agreement) -> ClientData:
    """Read, split and encode a client's rows; see `prepare` and `encode_prepared`."""
    return encode_prepared(prepare(table, experiment), experiment, agreement)


def encode_prepared(
    prepared: PreparedClient, experiment: Experiment, agreement: Agreement
) -> ClientData:
    """Encode a client's rows.

    Returns:
        Contiguous float32 inputs and targets, int64 classes, and a label mask per task.

    Raises:
        DataError: the data cannot serve the experiment, or does not fit the agreement.
    """
    for name, features in prepared.inputs.items():
        if reason := columns_misfit(name, features.columns, agreement.columns[name]):
            raise DataError(f"client '{prepared.name}': {reason}")
    fitted = fit(prepared, experiment)
    with _open_store(prepared, experiment, agreement) as store:
        for split, rows in prepared.splits.items():
            for name in prepared.inputs:
                _write_input(store, prepared, split, name, experiment, agreement, fitted)
            for name, target in prepared.targets.items():
                _write_target(store, target, f"{split}/targets/{name}", rows, fitted, name)
                store.write(f"{split}/labelled/{name}", 0, target.labelled[rows])
        tensors = {key: as_tensor(array) for key, array in store.map().items()}
    splits = {
        split: Rows(
            {name: tensors[f"{split}/inputs/{name}"] for name in prepared.inputs},
            {task: tensors[f"{split}/targets/{task}"] for task in prepared.targets},
            {task: tensors[f"{split}/labelled/{task}"] for task in prepared.targets},
        )
        for split in prepared.splits
    }
    scales, resident = target_scales(fitted), prepared.disk is None
    return ClientData(prepared.name, splits, scales, prepared.notes, fitted, resident)


def fit(prepared: PreparedClient, experiment: Experiment) -> Fitted:
    """Fit what the experiment leaves to the client: scalings of inputs and of targets."""
    return Fitted(
        {
            name: scaling_of(features.values, prepared.splits["train"])
            for name, features in prepared.inputs.items()
            if is_fitted(experiment.inputs[name])
        },
        {
            name: scaling_of(target.values, _labelled_rows(prepared, target))
            for name, target in prepared.targets.items()
            if experiment.tasks[name].standardise == "client"
        },
    )


def _labelled_rows(prepared: PreparedClient, target: Target) -> NDArray[np.int64]:
    train = prepared.splits["train"]
    rows: NDArray[np.int64] = train[target.labelled[train]]
    return rows


def is_fitted(settings: Input) -> bool:
    """Whether an input needs a scaling from the client's own training rows."""
    if settings.kind in ("categorical", "text") or settings.standardise == "federation":
        return False
    return settings.standardise == "client" or settings.missing == "mean"


def target_scales(fitted: Fitted) -> dict[str, TargetScale]:
    """Tell how standardised targets return to their unit."""
    return {
        task: TargetScale(_float_tensor(scaling.mean), _float_tensor(scaling.deviation))
        for task, scaling in fitted.targets.items()
    }


@dataclass(frozen=True)
class NewRows:
    """Encoded rows of a table that nobody trained on.

    Attributes:
        inputs: as in `common.dataset.Rows.inputs`, of the rows that can be used, [M, ...].
        usable: bool [N], False for the rows that ``missing = "drop-row"`` drops.
        unknown: "input, column" -> number of rows with a category that training did not know; as in
            held-out rows, it is encoded as none.
    """

    inputs: dict[str, Tensor]
    usable: NDArray[np.bool_]
    unknown: dict[tuple[str, str], int]


def encode_rows(
    table: ClientTable, experiment: Experiment, agreement: Agreement, fitted: Fitted
) -> NewRows:
    """Encode new rows of a client exactly as its held-out rows were.

    The table needs the columns that the clients agreed on; others, targets too, are not read.

    Raises:
        DataError: a column is missing or cannot be read, or has empty cells that are refused.
    """
    features = {
        name: read_named(table, settings, name, agreement.columns[name])
        for name, settings in experiment.inputs.items()
    }
    usable = np.logical_and.reduce([f.usable for f in features.values()])
    if not usable.all():
        features = {n: Features(f.columns, f.values[usable], usable) for n, f in features.items()}
    inputs = {
        name: _encode_input(own.values[:], name, experiment, agreement, fitted)
        for name, own in features.items()
    }
    unknown = {
        (name, own.columns[i]): int(rows.sum())
        for name, own in features.items()
        for i, rows in enumerate(_unknown_rows(inputs[name], name, experiment, agreement))
        if rows.any()
    }
    return NewRows(inputs, usable, unknown)


def places_of(name: str, experiment: Experiment, agreement: Agreement) -> list[Places]:
    """List, for each column of a categorical input, what its places in an encoded row stand for."""
    settings, known = experiment.inputs[name], agreement.categories.get(name, {})
    empty = (None,) if settings.missing == "own-category" else ()
    return [(*known.get(column, settings.categories), *empty) for column in agreement.columns[name]]


class _Memory:
    """Arrays in memory, filled as a `TensorFile` is."""

    def __init__(self, layout: Layout) -> None:
        self.arrays = {name: np.empty(shape, dtype) for name, (dtype, shape) in layout.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, name: str, start: int, rows: NDArray[Any]) -> None:
        self.arrays[name][start : start + len(rows)] = rows

    def map(self) -> dict[str, NDArray[Any]]:
        return self.arrays


def _open_store(
    prepared: PreparedClient, experiment: Experiment, agreement: Agreement
) -> _Memory | TensorFile:
    """Make room for a client's encoded rows, in memory or in a file."""
    layout: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    single = np.dtype(np.float32)
    for split, rows in prepared.splits.items():
        for name, features in prepared.inputs.items():
            shape = features.values.shape[1:]
            if experiment.inputs[name].kind == "categorical":
                shape = (sum(map(len, places_of(name, experiment, agreement))),)
            elif experiment.inputs[name].kind == "text":
                shape = (1, experiment.inputs[name].max_length)
            layout[f"{split}/inputs/{name}"] = single, (len(rows), *shape)
        for name, target in prepared.targets.items():
            is_code = experiment.tasks[name].kind == "multiclass"
            dtype = target.values.dtype if is_code else single
            layout[f"{split}/targets/{name}"] = dtype, (len(rows), *target.values.shape[1:])
            layout[f"{split}/labelled/{name}"] = np.dtype(np.bool_), (len(rows),)
    return _Memory(layout) if prepared.disk is None else TensorFile(layout, prepared.disk.folder)


def _write_input(
    store: _Memory | TensorFile,
    prepared: PreparedClient,
    split: str,
    name: str,
    experiment: Experiment,
    agreement: Agreement,
    fitted: Fitted,
) -> None:
    """Encode one input of a client's own rows.

    Raises:
        DataError: a training row has a category that is not known.
    """
    own, start = prepared.inputs[name], 0
    unknown = np.zeros(len(own.columns), np.int64)
    for values in blocks(own.values, prepared.splits[split]):
        encoded = _encode_input(values, name, experiment, agreement, fitted)
        store.write(f"{split}/inputs/{name}", start, encoded.numpy())
        for i, rows in enumerate(_unknown_rows(encoded, name, experiment, agreement)):
            unknown[i] += rows.sum()
        start += len(values)
    if split == "train" and unknown.any():
        column = int(unknown.nonzero()[0][0])
        raise DataError(
            f"client '{prepared.name}', column '{own.columns[column]}' (inputs.{name}): "
            f"a category that is not known in {count_rows(int(unknown[column]))} of training; add "
            f"it to inputs.{name}.categories"
        )


def _write_target(
    store: _Memory | TensorFile,
    target: Target,
    key: str,
    rows: NDArray[np.int64],
    fitted: Fitted,
    name: str,
) -> None:
    """Write labels, standardised where they are; rows without a label stay 0."""
    start, size = 0, rows_at_once(target.values.shape)
    for values in blocks(target.values, rows):
        if name in fitted.targets:
            labelled = target.labelled[rows[start : start + size]]
            values = np.where(labelled[:, None], fitted.targets[name].apply(values), 0.0)
        store.write(key, start, values)
        start += len(values)


def _encode_input(
    values: NDArray[Any], name: str, experiment: Experiment, agreement: Agreement, fitted: Fitted
) -> Tensor:
    settings = experiment.inputs[name]
    if settings.kind == "text":
        return _float_tensor(encode_cells(values, experiment.trunk, settings))
    if settings.kind == "categorical":
        return _float_tensor(_one_hot(values, places_of(name, experiment, agreement)))
    if settings.standardise == "none" and settings.missing != "mean":
        return _float_tensor(values)
    scaling = scaling_for(name, experiment, agreement, fitted)
    if settings.missing == "mean":
        values = scaling.fill(values)
    return _float_tensor(values if settings.standardise == "none" else scaling.apply(values))


def scaling_for(name: str, experiment: Experiment, agreement: Agreement, fitted: Fitted) -> Scaling:
    """Take the federation's scaling where the experiment says so, else the client's own."""
    if experiment.inputs[name].standardise == "federation":
        return agreement.scalings[name].scaling()
    return fitted.inputs[name]


def _one_hot(cells: NDArray[Any], columns: Sequence[Places]) -> NDArray[np.float32]:
    """Give every column one place per category, and one for empty cells under `own-category`.

    A category that no training row has is all zeros.
    """
    blocks = []
    for i, names in enumerate(columns):
        places = {category: place for place, category in enumerate(names)}
        codes = np.array([places.get(cell, -1) for cell in cells[:, i]], dtype=np.int64)
        blocks.append(codes[:, None] == np.arange(len(places)))
    return np.concatenate(blocks, axis=1).astype(np.float32)


def _unknown_rows(
    encoded: Tensor, name: str, experiment: Experiment, agreement: Agreement
) -> Iterator[NDArray[np.bool_]]:
    """Mark, column by column, the rows whose category is not known, [N]; none for numbers."""
    if experiment.inputs[name].kind != "categorical":
        return
    widths = [len(places) for places in places_of(name, experiment, agreement)]
    for block in np.split(encoded.numpy(), np.cumsum(widths)[:-1], axis=1):
        yield np.logical_not(block.any(axis=1))


def _float_tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
