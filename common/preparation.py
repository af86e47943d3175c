"""A client's rows, read, checked and divided by the experiment's rules, before anything is scaled.

What a client tells the server and what it trains on both start here, so both see the same rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.blocks import RowArray
from common.cells import count_rows, list_names
from common.errors import DataError
from common.experiment import Experiment
from common.features import Features, read_features
from common.privacy.example_level import check_delta
from common.splits import IndexArray, split_rows
from common.spooling import spool
from common.tables import ClientTable, StreamedTable
from common.targets import Target, class_names, read_labels


class UnusableClientError(DataError):
    """A client has too few rows, or no label to train on.

    Attributes:
        reason: what is wrong, without the way out that the message ends with.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; give it more, or set data.unusable to 'leave-out'")
        self.reason = reason


@dataclass(frozen=True)
class Disk:
    """Where rows are that are not in memory.

    Attributes:
        folder: of the files without a name; None for the system's temporary folder.
    """

    folder: Path | None


@dataclass(frozen=True)
class PreparedClient:
    """One client's rows.

    Attributes:
        name: stable name of the client.
        splits: "train", "validation", "test" -> numbers of the rows that count: those that no rule
            drops and that have a label.
        inputs: input name -> raw values of all N rows.
        targets: tasks that the client holds -> labels of all N rows.
        notes: one line each on what was left out; counts and names only.
        disk: where values lie, and encoded rows are to; None for memory.
    """

    name: str
    splits: Mapping[str, IndexArray]
    inputs: Mapping[str, Features]
    targets: Mapping[str, Target]
    notes: tuple[str, ...]
    disk: Disk | None = None

    @property
    def nbytes(self) -> int:
        """Memory of the raw values."""
        if self.disk is not None:
            return 0
        parts: list[RowArray] = [features.values for features in self.inputs.values()]
        parts += [target.values for target in self.targets.values()]
        return sum(values.nbytes for values in parts)

    def train(self, values: RowArray) -> NDArray[Any]:
        """Take the training rows of an array [N, ...]."""
        taken: NDArray[Any] = values[self.splits["train"]]
        return taken


def prepare(table: ClientTable, experiment: Experiment) -> PreparedClient:
    """Read, check and divide a client's rows.

    Raises:
        UnusableClientError: too few rows, no label, or none that falls into training.
        DataError: the data cannot serve the experiment; see `common.features` and `common.targets`.
        ConfigError: too many rows for the delta of example-level privacy.
    """
    _require_rows(len(table), table, experiment)
    inputs, labels, split_by = _read(table, experiment)
    targets = _require_targets(labels, table, experiment)
    all_rows = split_rows(split_by, experiment)
    complete, notes = _complete_rows(inputs, all_rows, len(table))
    targets, untrained = _trainable_targets(targets, all_rows["train"], complete, table, experiment)
    notes += [f"task '{task}' left out: no label falls into training" for task in untrained]
    has_label = np.logical_or.reduce([target.labelled for target in targets.values()])
    notes += _count_note(complete & ~has_label, "without any label left out")
    usable = complete & has_label
    splits = {split: rows[usable[rows]] for split, rows in all_rows.items()}
    _require_rows(int(usable.sum()), table, experiment, "usable ")
    disk = Disk(table.scratch) if isinstance(table, StreamedTable) else None
    prepared = PreparedClient(table.name, splits, inputs, targets, tuple(notes), disk)
    _check_unseen_classes(prepared, experiment)
    check_delta(experiment, len(splits["train"]), table.name)
    return prepared


def _complete_rows(
    inputs: Mapping[str, Features], splits: Mapping[str, IndexArray], rows: int
) -> tuple[NDArray[np.bool_], list[str]]:
    """Mark the rows that no rule drops, [rows], and note how many others there are."""
    complete: NDArray[np.bool_] = np.logical_and.reduce([f.usable for f in inputs.values()])
    divided = np.zeros(rows, dtype=bool)
    divided[np.concatenate(list(splits.values()))] = True
    notes = _count_note(~complete, "with empty cells left out")
    notes += _count_note(complete & ~divided, "in no split left out")
    return complete & divided, notes


def _count_note(rows: NDArray[np.bool_], what: str) -> list[str]:
    count = int(rows.sum())
    return [f"{count_rows(count)} {what}"] if count else []


def _require_rows(rows: int, table: ClientTable, experiment: Experiment, kind: str = "") -> None:
    if rows < experiment.data.min_rows:
        raise UnusableClientError(
            f"client '{table.name}' must have at least {experiment.data.min_rows} {kind}rows "
            f"(data.min-rows), got {rows}"
        )


def _read(
    table: ClientTable, experiment: Experiment
) -> tuple[dict[str, Features], dict[str, Target], ClientTable]:
    """Read inputs, labels, and what rows are split by; in pieces, where the table comes so."""
    if isinstance(table, StreamedTable):
        read = spool(table, experiment)
        return read.inputs, read.labels, read.split_by
    inputs = {name: read_features(table, experiment, name) for name in experiment.inputs}
    targets = {task: read_labels(table, experiment, task) for task in experiment.tasks}
    return inputs, {task: t for task, t in targets.items() if t is not None}, table


def _require_targets(
    labels: Mapping[str, Target], table: ClientTable, experiment: Experiment
) -> dict[str, Target]:
    held = {task: target for task, target in labels.items() if target.labelled.any()}
    if not held:
        columns = [column for task in experiment.tasks for column in experiment.targets(task)]
        raise UnusableClientError(
            f"client '{table.name}' must have a label for some task, got none in columns "
            f"{list_names(columns)}"
        )
    return held


def _trainable_targets(
    targets: Mapping[str, Target],
    train: IndexArray,
    complete: NDArray[np.bool_],
    table: ClientTable,
    experiment: Experiment,
) -> tuple[dict[str, Target], list[str]]:
    """Keep the tasks that training rows have a label for; name the others, or refuse them."""
    rows = train[complete[train]]
    untrained = [task for task, target in targets.items() if not target.labelled[rows].any()]
    if len(untrained) == len(targets):
        raise UnusableClientError(
            f"client '{table.name}' must have a label among its {len(rows)} training rows, got none"
        )
    if untrained and experiment.data.unusable == "refuse":
        counts = ", ".join(f"'{t}' ({int(targets[t].labelled.sum())})" for t in untrained)
        raise DataError(
            f"client '{table.name}': all labels of task {counts} fall outside its training rows; "
            "change the split or the seed, or set data.unusable to 'leave-out'"
        )
    return {task: t for task, t in targets.items() if task not in untrained}, untrained


def _check_unseen_classes(prepared: PreparedClient, experiment: Experiment) -> None:
    """Refuse classes that only validation or test rows have, where the experiment says so."""
    evaluated = len(prepared.splits["validation"]) + len(prepared.splits["test"])
    if experiment.data.unseen_classes == "keep" or not evaluated:
        return
    for name, target in prepared.targets.items():
        if target.values.ndim != 1:  # no classes
            continue
        labels = {
            s: target.values[rows[target.labelled[rows]]] for s, rows in prepared.splits.items()
        }
        seen = np.zeros(1 + max((int(v.max()) for v in labels.values() if len(v)), default=0), bool)
        seen[labels["train"]] = True
        for split in ("validation", "test"):
            unseen = np.unique(labels[split][~seen[labels[split]]])
            if len(unseen):
                named = list_names(class_names(experiment.tasks[name], unseen))
                raise DataError(
                    f"client '{prepared.name}', task '{name}': class {named} occurs in its {split} "
                    "rows and not in its training rows; set data.stratify to the task, or "
                    "data.unseen-classes to 'keep'"
                )
