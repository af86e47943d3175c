"""What every aggregation rule is: from the local trunks of one round to the next trunk.

A rule is a class in a file of its own and a line in `common.strategies.STRATEGIES`. It sees flat
rows that were checked before: the right size, finite, in the order of the clients' names.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from common.experiment import Experiment
from common.settings import Settings
from common.wire import FloatArray

Columns = Mapping[str, slice]  # parameter name -> its columns in a flat trunk


@dataclass(frozen=True)
class Updates:
    """What one round brought.

    Attributes:
        round: its number.
        clients: names of the K clients, sorted.
        before: [Q], the trunk that they were sent; [K, Q], each client's own, where the rule keeps
            one trunk per group of clients (`Rule.trunk_of`).
        rows: [K, Q], their local trunks; parts of tasks that a client lacks were replaced by the
            mean (median: `Rule.is_robust`) of those that hold the task, so that they say nothing of
            their own.
        weights: float64 [K], positive, each client's share of the mean; they sum to 1.
        labelled: int64 [K, T], training rows with a label of each task.
        tasks: names of the T tasks, in the experiment's order.
        losses: float64 [K], each client's mean training loss, weighted over tasks as in the round;
            NaN where it reported none.
        columns: parameter name -> its columns.
        parts: a single task's own columns, and the K clients' shares of their mean, float64 [K];
            given where those are others than `weights` (weight-by "labelled").
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
    parts: Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]] = ()

    def mean(self) -> FloatArray:
        """Average the local trunks, [Q], each client by its share."""
        mean = weighted_mean(self.rows, self.weights)
        for columns, shares in self.parts:
            mean[columns] = weighted_mean(self.rows[:, columns], shares)
        return mean

    @property
    def steps(self) -> FloatArray:
        """The updates, [K, Q]: local trunk minus the trunk received."""
        return self.rows - self.before


def weighted_mean(rows: FloatArray, shares: NDArray[np.float64]) -> FloatArray:
    """Average rows by shares that sum to 1, [K, Q] and [K] -> [Q], as one product."""
    mean: FloatArray = shares.astype(np.float32) @ rows
    return mean


class Rule:
    """Base of the aggregation rules.

    Args:
        options: an instance of the class's `Options`.
        experiment: the resolved experiment.

    Attributes:
        fewest: replies that it needs where none was faulty (`needed`).
        is_mean: whether `combine` is `Updates.mean` and no more, which has a fast path.
        is_robust: whether it withstands hostile clients; then those who lack a task stand in with
            the median of its holders, not with their mean.
        notes: what `combine` has to say for the round's record; the caller empties it.
    """

    fewest: int = 1
    is_mean: ClassVar[bool] = False
    is_robust: ClassVar[bool] = False

    class Options(Settings):
        """What ``federation.strategy-options`` may hold; nothing here."""

    def __init__(self, options: Any, experiment: Experiment) -> None:
        self.options, self.experiment = options, experiment
        self.notes: list[str] = []

    @classmethod
    def find_problems(cls, options: Any, experiment: Experiment) -> Iterator[str]:
        """Say what in an experiment it cannot work with, a line each."""
        yield from ()

    def needed(self, faulty: int) -> int:
        """Count the usable replies that it needs; with fewer the round leaves the trunk as it was.

        Args:
            faulty: how many other replies came and could not be used, such as trunks with NaN.
        """
        return self.fewest

    def combine(self, updates: Updates) -> FloatArray:
        """Combine one round's trunks into the next, [Q]; `updates` is not changed.

        Where that is not finite, the trunk stays as it was, and what is remembered must as well.
        """
        raise NotImplementedError

    def trunk_of(self, client: str) -> FloatArray | None:
        """Get the trunk that a client is to be sent, [Q]; None: the one that `combine` returned.

        For rules that keep one trunk per group. Clients whose trunks lie in the same memory are
        asked together by the engine that answers for all.
        """
        return None

    def figures(self) -> dict[str, Any]:
        """Get what results.json is to say of it, by key."""
        return {}

    def state(self) -> dict[str, NDArray[Any]]:
        """Get what the rule remembers from round to round, by name; the checkpoint keeps it."""
        return {}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` returned."""
