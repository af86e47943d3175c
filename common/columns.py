"""Which columns of a client's table an input reads."""

import re
from collections.abc import Sequence
from functools import lru_cache

from common.cells import list_names
from common.errors import DataError
from common.experiment import Experiment
from common.natural_order import natural_sort
from common.sections.rows import Input
from common.tables import ClientTable


def expand_columns(table: ClientTable, experiment: Experiment, name: str) -> tuple[str, ...]:
    """List the columns of one input, patterns expanded.

    A name stands for itself and keeps its place. A pattern (``*`` any text, ``?`` any character)
    stands for the columns it matches, in natural order, so that the order of a file's columns does
    not matter. It never matches a target, the client column, the split column, the natural id of a
    partition, what `exclude` names, or a column that another input names outright.

    Raises:
        DataError: a pattern matches nothing.
    """
    chosen, idle = _expand(
        tuple(table.columns), experiment.inputs[name], _reserved(experiment, name)
    )
    if idle:
        raise DataError(
            f"client '{table.name}': inputs.{name}.columns has {list_names(idle)}, which matches "
            f"no column; there are {list_names(list(table.columns))}"
        )
    return chosen


@lru_cache(maxsize=64)  # a thousand clients mostly have the same columns
def _expand(
    columns: Sequence[str], settings: Input, reserved: frozenset[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Expand patterns: the chosen columns, and the patterns that match none."""
    chosen: dict[str, None] = {}  # an ordered set
    idle: list[str] = []
    free = [c for c in columns if c not in reserved and not _is_excluded(c, settings)]
    for entry in settings.columns:
        if entry in columns or not _is_pattern(entry):
            chosen[entry] = None
        elif matches := natural_sort(column for column in free if _matches(column, entry)):
            # A column that is also listed by its name keeps the place of its name.
            chosen |= dict.fromkeys(m for m in matches if m not in settings.columns)
        else:
            idle.append(entry)
    return tuple(chosen), tuple(idle)


def fits_input(column: str, settings: Input) -> bool:
    """Tell whether a column can be one of an input's: it is named, or matches a pattern."""
    named = column in settings.columns
    return named or any(
        _is_pattern(entry) and _matches(column, entry) for entry in settings.columns
    )


def _reserved(experiment: Experiment, name: str) -> frozenset[str]:
    """Columns that no pattern of this input may match."""
    reserved = {column for task in experiment.tasks for column in experiment.targets(task)}
    reserved |= {experiment.data.client_column, experiment.data.split_column}
    if experiment.partition is not None and experiment.partition.kind == "natural":
        reserved.add(experiment.partition.by)
    for other, settings in experiment.inputs.items():
        if other != name:
            reserved.update(c for c in settings.columns if not _is_pattern(c))
    return frozenset(reserved)


def _is_pattern(entry: str) -> bool:
    return "*" in entry or "?" in entry


def _is_excluded(column: str, settings: Input) -> bool:
    return any(_matches(column, pattern) for pattern in settings.exclude)


def _matches(column: str, pattern: str) -> bool:
    wild = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(wild, column, re.DOTALL) is not None
