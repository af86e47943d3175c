"""Turn a client's raw rows into the tensors it trains on, by what the clients agreed on.

Everything that is fitted (a mean, a deviation, a set of categories) is fitted on training rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.agreement import Agreement, columns_misfit
from common.cells import count_rows
from common.dataset import ClientData, Rows, TargetScale
from common.errors import DataError
from common.experiment import Experiment, Input, Task
from common.features import Features
from common.preparation import PreparedClient, prepare
from common.scaling import Scaling, scaling_of
from common.tables import ClientTable
from common.targets import Target


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
    inputs = {
        name: _encode_input(prepared, features, name, experiment.inputs[name], agreement)
        for name, features in prepared.inputs.items()
    }
    targets, scales = {}, {}
    for name, target in prepared.targets.items():
        task = experiment.tasks[name]
        if task.standardise == "client":
            target, scales[name] = _standardise_target(prepared, target)
        targets[name] = _target_tensor(target, task)
    labelled = {n: torch.from_numpy(t.labelled) for n, t in prepared.targets.items()}
    rows = Rows(inputs, targets, labelled)
    splits = {key: _take(rows, index) for key, index in prepared.splits.items()}
    return ClientData(prepared.name, splits, scales, prepared.notes)


def _take(rows: Rows, index: NDArray[np.int64]) -> Rows:
    """Take rows by their numbers in ascending order; all or none of them cost nothing."""
    if len(index) in (0, len(rows)):
        return rows.select(slice(len(index)))
    return rows.select(torch.from_numpy(index))


def _encode_input(
    prepared: PreparedClient,
    features: Features,
    name: str,
    settings: Input,
    agreement: Agreement,
) -> Tensor:
    where = f"client '{prepared.name}'"
    if reason := columns_misfit(name, features.columns, agreement.columns[name]):
        raise DataError(f"{where}: {reason}")
    if settings.kind == "categorical":
        known = agreement.categories.get(name, {})
        categories = [known.get(column, settings.categories) for column in features.columns]
        return _float_tensor(_one_hot(prepared, features, name, settings, categories))
    values = features.values
    scaling = _choose_scaling(prepared, values, name, settings, agreement)
    if settings.missing == "mean":
        values = scaling.fill(values)
    return _float_tensor(values if settings.standardise == "none" else scaling.apply(values))


def _choose_scaling(
    prepared: PreparedClient,
    values: NDArray[Any],
    name: str,
    settings: Input,
    agreement: Agreement,
) -> Scaling:
    """Take the federation's scaling where the experiment says so, else the client's own."""
    if settings.standardise == "federation":
        return agreement.scalings[name].scaling()
    if settings.standardise == "none" and settings.missing != "mean":
        return Scaling(np.zeros(1), np.ones(1))  # of no use, and free
    return scaling_of(prepared.train(values))


def _one_hot(
    prepared: PreparedClient,
    features: Features,
    name: str,
    settings: Input,
    categories: Sequence[Sequence[str]],
) -> NDArray[np.float32]:
    """Give every column one place per category, and one for empty cells under `own-category`.

    A category that validation or test rows alone have is all zeros.

    Raises:
        DataError: a training row has a category that is not known.
    """
    own = settings.missing == "own-category"
    blocks = []
    for i, known in enumerate(categories):
        cells = features.values[:, i]
        places: dict[str | None, int] = {category: place for place, category in enumerate(known)}
        if own:
            places[None] = len(known)
        codes = np.array([places.get(cell, -1) for cell in cells], dtype=np.int64)
        if unknown := int((prepared.train(codes) < 0).sum()):
            raise DataError(
                f"client '{prepared.name}', column '{features.columns[i]}' (inputs.{name}): "
                f"a category that is not known in {count_rows(unknown)} of training; add it to "
                f"inputs.{name}.categories"
            )
        blocks.append(codes[:, None] == np.arange(len(places)))
    return np.concatenate(blocks, axis=1).astype(np.float32)


def _standardise_target(prepared: PreparedClient, target: Target) -> tuple[Target, TargetScale]:
    """Standardise by the labelled training rows; rows without a label stay 0."""
    scaling = scaling_of(prepared.train(target.values)[prepared.train(target.labelled)])
    values = np.where(target.labelled[:, None], scaling.apply(target.values), 0.0)
    scale = TargetScale(_float_tensor(scaling.mean), _float_tensor(scaling.deviation))
    return Target(values, target.labelled), scale


def _target_tensor(target: Target, task: Task) -> Tensor:
    return (
        torch.from_numpy(target.values)
        if task.kind == "multiclass"
        else _float_tensor(target.values)
    )


def _float_tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
