"""Turn a client's raw rows into the tensors it trains on, by what the clients agreed on.

Everything that is fitted (a mean, a deviation, a set of categories) is fitted on training rows, and
kept in `Fitted`: rows that come later are encoded by the same numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.agreement import Agreement, columns_misfit
from common.cells import count_rows
from common.dataset import ClientData, Rows, TargetScale
from common.errors import DataError
from common.experiment import Experiment
from common.features import Features, read_named
from common.fitted import Fitted
from common.preparation import PreparedClient, prepare
from common.scaling import Scaling, scaling_of
from common.sections.rows import Input, Task
from common.tables import ClientTable
from common.targets import Target
from common.text import encode_texts

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
    fitted = fit(prepared, experiment)
    inputs = {
        name: _encode_own(prepared, name, experiment, agreement, fitted) for name in prepared.inputs
    }
    targets = {}
    for name, target in prepared.targets.items():
        if name in fitted.targets:
            target = _standardise_target(target, fitted.targets[name])
        targets[name] = _target_tensor(target, experiment.tasks[name])
    labelled = {n: torch.from_numpy(t.labelled) for n, t in prepared.targets.items()}
    rows = Rows(inputs, targets, labelled)
    splits = {key: _take(rows, index) for key, index in prepared.splits.items()}
    scales = target_scales(fitted)
    return ClientData(prepared.name, splits, scales, prepared.notes, fitted)


def fit(prepared: PreparedClient, experiment: Experiment) -> Fitted:
    """Fit what the experiment leaves to the client: scalings of inputs and of targets."""
    return Fitted(
        {
            name: scaling_of(prepared.train(features.values))
            for name, features in prepared.inputs.items()
            if is_fitted(experiment.inputs[name])
        },
        {
            name: scaling_of(prepared.train(target.values)[prepared.train(target.labelled)])
            for name, target in prepared.targets.items()
            if experiment.tasks[name].standardise == "client"
        },
    )


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
        name: _encode_input(own, name, experiment, agreement, fitted)
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


def _take(rows: Rows, index: NDArray[np.int64]) -> Rows:
    """Take rows by their numbers in ascending order; all or none of them cost nothing."""
    if len(index) in (0, len(rows)):
        return rows.select(slice(len(index)))
    return rows.select(torch.from_numpy(index))


def _encode_own(
    prepared: PreparedClient,
    name: str,
    experiment: Experiment,
    agreement: Agreement,
    fitted: Fitted,
) -> Tensor:
    """Encode one input of a client's own rows.

    Raises:
        DataError: its columns are not the agreed ones, or a training row has a category that is not
            known.
    """
    features, where = prepared.inputs[name], f"client '{prepared.name}'"
    if reason := columns_misfit(name, features.columns, agreement.columns[name]):
        raise DataError(f"{where}: {reason}")
    encoded = _encode_input(features, name, experiment, agreement, fitted)
    for i, rows in enumerate(_unknown_rows(encoded, name, experiment, agreement)):
        if unknown := int(prepared.train(rows).sum()):
            raise DataError(
                f"{where}, column '{features.columns[i]}' (inputs.{name}): "
                f"a category that is not known in {count_rows(unknown)} of training; add it to "
                f"inputs.{name}.categories"
            )
    return encoded


def _encode_input(
    features: Features, name: str, experiment: Experiment, agreement: Agreement, fitted: Fitted
) -> Tensor:
    settings, values = experiment.inputs[name], features.values
    if settings.kind == "text":
        texts = values[:, 0].tolist()
        return _float_tensor(encode_texts(texts, experiment.trunk, settings.max_length))
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


def _standardise_target(target: Target, scaling: Scaling) -> Target:
    """Standardise; rows without a label stay 0."""
    values = np.where(target.labelled[:, None], scaling.apply(target.values), 0.0)
    return Target(values, target.labelled)


def _target_tensor(target: Target, task: Task) -> Tensor:
    return (
        torch.from_numpy(target.values)
        if task.kind == "multiclass"
        else _float_tensor(target.values)
    )


def _float_tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
