"""Which columns of a client's table an input reads."""

import re
from collections.abc import Iterable

from common.cells import list_names
from common.errors import DataError
from common.experiment import Experiment
from common.natural_order import natural_sort
from common.tables import ClientTable


def expand_columns(table: ClientTable, experiment: Experiment, name: str) -> tuple[str, ...]:
    """List the columns of one input, patterns expanded.

    A name stands for itself and keeps its place. A pattern (``*`` any text, ``?`` any character)
    stands for the columns it matches, in natural order, so that the order of a file's columns does
    not matter. It never matches a target, the client column, the split column, the natural id of a
    partition, what `exclude` names, or a column that another input names outright.

    Raises:
        DataError: a named column is missing, or a pattern matches nothing.
    """
    settings = experiment.inputs[name]
    chosen: dict[str, None] = {}  # an ordered set
    reserved = _reserved(experiment, name)
    free = [
        column
        for column in table.columns
        if column not in reserved and not _matches_any(column, settings.exclude)
    ]
    for entry in settings.columns:
        if entry in table.columns or not _is_pattern(entry):
            chosen[entry] = None
        elif matches := natural_sort(c for c in free if _matches(c, entry)):
            chosen |= dict.fromkeys(m for m in matches if m not in settings.columns)
        else:
            raise DataError(
                f"client '{table.name}': inputs.{name}.columns has '{entry}', which matches no "
                f"column; there are {list_names(list(table.columns))}"
            )
    if missing := [column for column in chosen if column not in table.columns]:
        raise DataError(
            f"client '{table.name}' lacks {len(missing)} of the columns of inputs.{name}: "
            f"{list_names(missing)}; its columns are {list_names(list(table.columns))}"
        )
    return tuple(chosen)


def _reserved(experiment: Experiment, name: str) -> set[str]:
    """Columns that no pattern of this input may match."""
    reserved = {column for task in experiment.tasks for column in experiment.targets(task)}
    reserved |= {experiment.data.client_column, experiment.data.split_column}
    if experiment.partition is not None and experiment.partition.kind == "natural":
        reserved.add(experiment.partition.by)
    for other, settings in experiment.inputs.items():
        if other != name:
            reserved.update(c for c in settings.columns if not _is_pattern(c))
    return reserved


def _is_pattern(entry: str) -> bool:
    return "*" in entry or "?" in entry


def _matches(column: str, pattern: str) -> bool:
    wild = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(wild, column, re.DOTALL) is not None


def _matches_any(column: str, patterns: Iterable[str]) -> bool:
    return any(_matches(column, pattern) for pattern in patterns)
