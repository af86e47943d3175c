"""Simulation only: how one table becomes many clients, and who holds which tasks.

Dirichlet (Hsu et al., "Measuring the effects of non-identical data distribution for federated
visual classification", 2019) and pathological (McMahan et al. 2017) partitions are those of
`flwr-datasets`. IID and natural ones are what its `IidPartitioner` (on shuffled rows) and
`NaturalIdPartitioner` give, which a test compares, without the seconds that importing it takes.
"""

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.cells import list_names, read_names
from common.errors import ConfigError, DataError
from common.experiment import Experiment
from common.natural_order import natural_sort
from common.sections.rows import Partition
from common.seeding import derive_key, numpy_generator, sample_names
from common.tables import ClientTable, TableSource

logger = logging.getLogger("fedmtl.data")
IndexArray = NDArray[np.int64]


def partition_rows(
    table: ClientTable, partition: Partition, seed: int, min_rows: int = 2
) -> dict[str, IndexArray]:
    """Deal a table's rows to clients.

    Args:
        table: all rows.
        partition: the kind and its settings.
        seed: `Experiment.data_seed`; the same seed deals the same rows in every process.
        min_rows: rows that every client of a Dirichlet partition must get.

    Returns:
        Client name -> row numbers; ``client-000``, or the natural id. No row is dealt twice.

    Raises:
        ConfigError: the partition cannot be made with these settings.
        DataError: the column to partition by is missing or has gaps.
    """
    if partition.kind == "natural":
        return rows_by_name(_column_by(table, partition.by), _where(partition.by))
    if partition.clients > len(table):
        raise ConfigError(
            f"partition.clients must be at most {len(table)}, the number of rows, "
            f"got {partition.clients}"
        )
    if partition.kind == "iid":
        order = numpy_generator(seed, "partition").permutation(len(table))
        parts: Sequence[IndexArray] = np.array_split(order, partition.clients)
    else:
        labels = _filled_names(_column_by(table, partition.by), _where(partition.by))
        parts = _deal_by_flower(labels, partition, derive_key(seed, "partition"), min_rows)
    digits = max(3, len(str(partition.clients - 1)))
    return {f"client-{i:0{digits}d}": np.sort(part) for i, part in enumerate(parts)}


def tasks_held(experiment: Experiment, name: str, position: int) -> frozenset[str]:
    """Say which tasks a client holds, by `partition.task-skew`.

    Args:
        experiment: its tasks, seed and partition.
        name: the client; a random draw depends on it and the seed alone.
        position: of the client among all, from 0; `rotate` starts at its task.
    """
    tasks, partition = list(experiment.tasks), experiment.partition
    if partition is None or partition.task_skew == "none":
        return frozenset(tasks)
    count = partition.tasks_per_client
    if partition.task_skew == "rotate":
        return frozenset(tasks[(position + k) % len(tasks)] for k in range(count))
    return frozenset(sample_names(tasks, count, experiment.data_seed, "task-skew", name))


def pool_tables(source: TableSource) -> ClientTable:
    """Put the rows of all clients of a source together, so that they can be dealt anew.

    A column that a client lacks is empty in its rows.

    Raises:
        DataError: a column of images is missing at a client or differs in shape.
    """
    tables = [source.read(name) for name in source.names]
    if len(tables) == 1:
        return tables[0]
    samples = {key: column for table in tables for key, column in table.columns.items()}
    columns = {key: _pool_column(tables, key, like) for key, like in samples.items()}
    return ClientTable("pooled", columns)


def _pool_column(tables: Sequence[ClientTable], key: str, like: NDArray[Any]) -> NDArray[Any]:
    parts = [table.columns.get(key) for table in tables]
    shapes = {part.shape[1:] for part in parts if part is not None}
    if len(shapes) > 1 or (like.ndim > 1 and any(part is None for part in parts)):
        raise DataError(
            f"column '{key}' holds arrays that differ from client to client; a [partition] needs "
            "the same shape at all of them"
        )
    if any(part is not None and part.dtype == object for part in parts):
        empty: NDArray[Any] = np.array(None, dtype=object)
        parts = [None if p is None else read_names(p, f"column '{key}'") for p in parts]
    else:
        empty = np.array(np.nan)
    return np.concatenate(
        [
            np.repeat(empty, len(table)) if part is None else part
            for table, part in zip(tables, parts, strict=True)
        ]
    )


def rows_by_name(column: NDArray[Any], where: str) -> dict[str, IndexArray]:
    """Group rows by the name in a column: name -> row numbers, rising; names in natural order.

    Args:
        column: [N] names or whole numbers.
        where: names the column in messages.

    Raises:
        DataError: a cell is empty.

    >>> rows_by_name(np.array([10, 2, 10]), "column 'x'")
    {'2': array([1]), '10': array([0, 2])}
    """
    names = _filled_names(column, where)
    order = np.argsort(names, kind="stable")
    values, starts = np.unique(names[order], return_index=True)
    parts = dict(zip(values.tolist(), np.split(order, starts[1:]), strict=True))
    return {name: parts[name] for name in natural_sort(parts)}


def _column_by(table: ClientTable, by: str) -> NDArray[Any]:
    if by not in table.columns:
        raise DataError(
            f"partition.by names column '{by}', which the data lacks; its columns are "
            f"{list_names(list(table.columns))}"
        )
    return table.columns[by]


def _where(by: str) -> str:
    return f"column '{by}' (partition.by)"


def _filled_names(column: NDArray[Any], where: str) -> NDArray[np.str_]:
    names = read_names(column, where)
    if empty := sum(name is None for name in names):
        raise DataError(
            f"{where} must be filled in every row, got {empty} empty cells of {len(names)}"
        )
    return names.astype(str)


def _deal_by_flower(
    labels: NDArray[np.str_], partition: Partition, seed: int, min_rows: int
) -> list[IndexArray]:
    """Let flwr-datasets deal the rows by their class.

    It repeats a Dirichlet draw that leaves a client short ten times before it gives up.
    """
    import datasets
    from flwr_datasets.partitioner import DirichletPartitioner, PathologicalPartitioner

    dealer = (
        DirichletPartitioner(
            partition.clients, "label", partition.alpha, min_partition_size=min_rows, seed=seed
        )
        if partition.kind == "dirichlet"
        else PathologicalPartitioner(
            partition.clients,
            "label",
            partition.classes_per_client,
            class_assignment_mode="first-deterministic",  # as in the paper: no class goes unused
            seed=seed,
        )
    )
    dealer.dataset = datasets.Dataset.from_dict({"label": labels, "row": np.arange(len(labels))})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            parts = [
                np.array(dealer.load_partition(i)["row"], dtype=np.int64)
                for i in range(partition.clients)
            ]
    except ValueError as error:
        raise ConfigError(_cannot_deal(labels, partition, min_rows)) from error
    if left := len(labels) - sum(map(len, parts)):
        logger.warning("partition: %d rows of classes that no client was dealt are not used", left)
    return parts


def _cannot_deal(labels: NDArray[np.str_], partition: Partition, min_rows: int) -> str:
    classes = len(np.unique(labels))
    if partition.kind == "dirichlet":
        return (
            f"partition: no Dirichlet draw with alpha {partition.alpha} gives each of "
            f"{partition.clients} clients {min_rows} of the {len(labels)} rows; raise "
            "partition.alpha, or lower partition.clients or data.min-rows"
        )
    return (
        f"partition: {partition.clients} clients with {partition.classes_per_client} classes each "
        f"cannot be dealt from {classes} classes and {len(labels)} rows of column "
        f"'{partition.by}'; lower partition.clients or partition.classes-per-client"
    )
