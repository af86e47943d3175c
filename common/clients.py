"""The clients of an experiment: its source, partitioned, skewed in tasks, and chosen from."""

from functools import lru_cache

from common.cells import list_names
from common.errors import ConfigError, DataError
from common.experiment import Experiment
from common.partition import partition_rows, pool_tables, tasks_held
from common.sections.rows import Partition
from common.sources.registry import open_source
from common.tables import ClientTable, TableSource


def open_clients(experiment: Experiment) -> TableSource:
    """Open the clients that take part; a second call in a process is almost free.

    Raises:
        ConfigError: source, path, partition or `data.clients` is wrong.
        DataError: the data cannot be read, or holds no client.
    """
    source = open_source(experiment.data)
    if experiment.partition is not None:
        min_rows = experiment.data.min_rows
        source = _partition(source, experiment.partition, experiment.data_seed, min_rows)
    if not source.names:
        raise DataError(f"data.path: there is no client in '{experiment.data.path}'")
    if experiment.partition is not None and experiment.partition.task_skew != "none":
        source = _skew_tasks(source, experiment)
    return _choose(source, experiment.data.clients)


@lru_cache(maxsize=2)
def _partition(source: TableSource, partition: Partition, seed: int, min_rows: int) -> TableSource:
    table = pool_tables(source)
    rows = partition_rows(table, partition, seed, min_rows)

    def read(name: str) -> ClientTable:
        return ClientTable(name, {key: col[rows[name]] for key, col in table.columns.items()})

    return TableSource(tuple(rows), read)


def _skew_tasks(source: TableSource, experiment: Experiment) -> TableSource:
    """Drop the target columns of tasks that a client does not hold."""
    targets = {column for task in experiment.tasks for column in experiment.targets(task)}

    def read(name: str) -> ClientTable:
        held = tasks_held(experiment, name, source.names.index(name))
        kept = {column for task in held for column in experiment.targets(task)}
        table = source.read(name)
        columns = {k: v for k, v in table.columns.items() if k in kept or k not in targets}
        return ClientTable(name, columns)

    return TableSource(source.names, read)


def _choose(source: TableSource, wanted: tuple[str, ...]) -> TableSource:
    """Keep the clients that `data.clients` names, in the source's order."""
    if not wanted:
        return source
    if unknown := sorted(set(wanted) - set(source.names)):
        raise ConfigError(
            f"data.clients must name clients of the data, got {list_names(unknown)}; there are "
            f"{len(source.names)}: {list_names(source.names)}"
        )
    return TableSource(tuple(name for name in source.names if name in wanted), source.read)
