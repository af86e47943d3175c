"""What every aggregation rule is: from the local trunks of one round to the next trunk.

A rule is a class in a file of its own and a line in `common.strategies.STRATEGIES`. It sees flat
rows that were checked before: the right size, finite, in the order of the clients' names.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.experiment import Experiment, Settings
from common.wire import FloatArray

Columns = Mapping[str, slice]  # parameter name -> its columns in a flat trunk


@dataclass(frozen=True)
class Updates:
    """What one round brought.

    Attributes:
        round: its number.
        clients: names of the K clients, sorted.
        before: [Q], the trunk that they were sent.
        rows: [K, Q], their local trunks; parts of tasks that a client lacks were replaced by the
            mean of those that hold the task, so that they say nothing of their own.
        weights: float64 [K], positive, each client's share of the mean; they sum to 1.
        labelled: int64 [K, T], training rows with a label of each task.
        tasks: names of the T tasks, in the experiment's order.
        losses: float64 [K], each client's mean training loss, weighted over tasks as in the round;
            NaN where it reported none.
        columns: parameter name -> its columns.
    """

    round: int
    clients: Sequence[str]
    before: FloatArray
    rows: FloatArray
    weights: NDArray[np.float64]
    labelled: NDArray[np.int64]
    tasks: Sequence[str]
    losses: NDArray[np.float64]
    columns: Columns

    @property
    def steps(self) -> FloatArray:
        """The updates, [K, Q]: local trunk minus the trunk received."""
        return self.rows - self.before


class Rule:
    """Base of the aggregation rules.

    Args:
        options: an instance of the class's `Options`.
        experiment: the resolved experiment.
    """

    class Options(Settings):
        """What ``federation.strategy-options`` may hold; nothing here."""

    def __init__(self, options: Any, experiment: Experiment) -> None:
        self.options, self.experiment = options, experiment

    @classmethod
    def find_problems(cls, options: Any, experiment: Experiment) -> Iterator[str]:
        """Say what in an experiment it cannot work with, a line each."""
        yield from ()

    def combine(self, updates: Updates) -> FloatArray:
        """Combine one round's trunks into the next, [Q]; `updates` is not changed."""
        raise NotImplementedError

    def state(self) -> dict[str, NDArray[Any]]:
        """Get what the rule remembers from round to round, by name; the checkpoint keeps it."""
        return {}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` returned."""
