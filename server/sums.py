"""Sums and counts of many clients as matrices: what figures are made from."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from common.sums_form import NOT_FINITE
from common.wire import SplitSums

Matrix = NDArray[np.float64]
EVERYBODY = "all clients"  # stands for those whose sum alone is known


class SumTable:
    """The additive numbers of K clients, one row each.

    Args:
        clients: their names.
        numbers: split -> task -> "loss" or metric -> [K, m]; the row of a client that did not
            report a task is 0, its count of labelled rows included.
    """

    def __init__(
        self, clients: Sequence[str], numbers: dict[str, dict[str, dict[str, Matrix]]]
    ) -> None:
        self.clients, self.numbers = list(clients), numbers

    @classmethod
    def of(cls, reports: Mapping[str, SplitSums]) -> "SumTable":
        """Lay out what clients reported, each its own splits and tasks."""
        numbers: dict[str, dict[str, dict[str, Matrix]]] = {}
        for row, report in enumerate(reports.values()):
            for split, tasks in report.items():
                for task, sums in tasks.items():
                    places = numbers.setdefault(split, {}).setdefault(task, {})
                    for name, values in sums.items():
                        if name not in places:
                            places[name] = np.zeros((len(reports), len(values)))
                        places[name][row] = values
        return cls(list(reports), numbers)

    @property
    def is_total(self) -> bool:
        """Whether nothing but the sum over clients is known."""
        return self.clients == [EVERYBODY]

    def task(self, split: str, task: str) -> dict[str, Matrix]:
        """Get the numbers of the clients that have labelled rows of a task in a split."""
        sums = self.numbers.get(split, {}).get(task)
        if not sums:
            return {}
        reported = sums["loss"][:, 1] > 0
        if len(reported) and reported.all():
            return sums
        return {name: values[reported] for name, values in sums.items()} if reported.any() else {}

    def client(self, name: str, split: str) -> dict[str, dict[str, list[float]]]:
        """Get one client's numbers: task -> "loss" or metric -> numbers."""
        row = self.clients.index(name)
        return {
            task: {metric: values[row].tolist() for metric, values in sums.items()}
            for task, sums in self.numbers.get(split, {}).items()
            if sums["loss"][row, 1] > 0
        }

    def faults(self) -> dict[str, str]:
        """Name the clients whose numbers are not all finite, each with the first such place."""
        found: dict[str, str] = {}
        for split, tasks in self.numbers.items():
            for task, sums in tasks.items():
                for name, values in sums.items():
                    if np.isfinite(values).all():
                        continue
                    for row in np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist():
                        reason = f"{split} sums of task {task}: {name} {NOT_FINITE}"
                        found.setdefault(self.clients[row], reason)
        return found

    def without(self, clients: Mapping[str, str]) -> "SumTable":
        """Leave clients out."""
        kept = np.array([name not in clients for name in self.clients])
        numbers = {
            split: {
                task: {metric: values[kept] for metric, values in sums.items()}
                for task, sums in tasks.items()
            }
            for split, tasks in self.numbers.items()
        }
        return SumTable([name for name in self.clients if name not in clients], numbers)

    def ordered(self, order: NDArray[np.intp]) -> "SumTable":
        """Put the clients into another order: places of today's rows."""
        numbers = {
            split: {
                task: {metric: values[order] for metric, values in sums.items()}
                for task, sums in tasks.items()
            }
            for split, tasks in self.numbers.items()
        }
        return SumTable([self.clients[place] for place in order], numbers)

    def count_numbers(self) -> dict[str, int]:
        """Count how many numbers each client reported: client -> count."""
        counts = np.zeros(len(self.clients), np.int64)
        for tasks in self.numbers.values():
            for sums in tasks.values():
                counts += (sums["loss"][:, 1] > 0) * sum(v.shape[1] for v in sums.values())
        return dict(zip(self.clients, counts.tolist(), strict=True))

    def size_bytes(self) -> int:
        """Count the numbers' payload, as the clients' messages carry it."""
        total = 0
        for split, tasks in self.numbers.items():
            for task, sums in tasks.items():
                reported = int((sums["loss"][:, 1] > 0).sum())
                for metric, values in sums.items():
                    key = len(split) + len(task) + len(metric) + 2
                    total += reported * (key + 8 * values.shape[1])
        return total


def mean_losses(sums: SumTable, weights: Mapping[str, float]) -> NDArray[np.float64]:
    """Weigh each client's mean training losses, [K]: ``L = sum_t w_t * L_t``; NaN without any.

    Args:
        sums: what K clients reported.
        weights: task -> w_t.
    """
    losses, known = np.zeros(len(sums.clients)), np.zeros(len(sums.clients), dtype=bool)
    for task, numbers in sums.numbers.get("train", {}).items():
        total, count = numbers["loss"].T
        losses += weights[task] * total / np.maximum(count, 1)
        known |= count > 0
    return np.where(known, losses, np.nan)


def join_tables(tables: Sequence[SumTable]) -> SumTable:
    """Stack tables of different clients; what one of them lacks is 0 there."""
    numbers: dict[str, dict[str, dict[str, Matrix]]] = {}
    total, start = sum(len(table.clients) for table in tables), 0
    for table in tables:
        stop = start + len(table.clients)
        for split, tasks in table.numbers.items():
            for task, sums in tasks.items():
                places = numbers.setdefault(split, {}).setdefault(task, {})
                for metric, values in sums.items():
                    joined = places.setdefault(metric, np.zeros((total, values.shape[1])))
                    joined[start:stop] = values
        start = stop
    return SumTable([name for table in tables for name in table.clients], numbers)
