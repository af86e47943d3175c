"""The learning rate of a stretch of training, step by step, for clients side by side."""

import numpy as np
from numpy.typing import NDArray

from client.batches import Index
from common.schedules.rates import step_schedule
from common.sections.training import Training

KEPT = 4096  # numbers of steps whose factors are kept

Factors = NDArray[np.float64]


class StepRates:
    """Tells each step's rate, as the schedule over the steps of a stretch has it.

    Clients differ in their numbers of steps, and each goes through its own: one with few rows comes
    to the schedule's end as one with many does.

    Args:
        factors: each client's [S_k], the factors of its steps.
    """

    def __init__(self, factors: list[Factors]) -> None:
        self.last = np.array([len(own) - 1 for own in factors], np.int64)
        self.table = np.zeros((len(factors), int(self.last.max(initial=0)) + 1))
        for row, own in zip(self.table, factors, strict=True):
            row[: len(own)] = own
        self.taken = np.zeros(len(factors), np.int64)

    def next(self, rows: int, rate: float) -> float | Factors:
        """Take a step of the first clients.

        Args:
            rows: how many.
            rate: the learning rate of the round.

        Returns:
            Their rates: one where they are alike, else [rows].
        """
        places = np.minimum(self.taken[:rows], self.last[:rows])
        self.taken[:rows] += 1
        found = self.table[np.arange(rows), places]
        if (found == found[0]).all():
            return rate * float(found[0])
        return found * rate


class StepSchedule:
    """The experiment's schedule over steps, put to work on numbers of steps.

    Args:
        training: names it.
    """

    def __init__(self, training: Training) -> None:
        self.schedule = step_schedule(training)
        self._factors: dict[int, Factors] = {}

    def rates(self, steps: Index) -> StepRates | None:
        """Make the rates of clients that take so many steps, int64 [K]; None for one rate."""
        if self.schedule is None:
            return None
        return StepRates([self._get(total) for total in steps.tolist()])

    def totals(self, steps: Index) -> Factors:
        """Sum the factors of all steps of clients that take so many, [K]."""
        if self.schedule is None:
            return steps.astype(np.float64)
        return np.array([self._get(total).sum() for total in steps.tolist()])

    def _get(self, total: int) -> Factors:
        if total not in self._factors:
            schedule = self.schedule
            if schedule is None:
                raise RuntimeError("no schedule over steps to tell factors of")
            if len(self._factors) >= KEPT:
                self._factors.clear()
            places = range(max(1, total))
            self._factors[total] = np.array([schedule.factor(p, max(1, total)) for p in places])
        return self._factors[total]
