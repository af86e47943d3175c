"""How alike the updates of clients, and of tasks, are; measuring leaves a run as it is.

Standley et al., "Which tasks should be learned together in multi-task learning?", ICML 2020, and
Fifty et al., "Efficiently identifying task groupings for multi-task learning", NeurIPS 2021, ask
what one task's step does to another's loss; the cosine of their updates is the cheap answer that a
server sees without a further message.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.aggregation.rule import Updates
from server.aggregation.sketch import common_part, directions

Floats = NDArray[np.float64]
MOST_CLIENTS = 200  # of a matrix over clients; a larger federation has that over tasks alone


class Affinity:
    """Mean cosines between updates, over all rounds in which they were measured.

    Between clients, ``C[i, j]``: the mean cosine of their trunk updates, of the columns that all
    tasks share. Between tasks, ``A[t, u]``: the mean over pairs of different clients, one that
    holds t and one that holds u; a client that holds both is never compared with itself.

    Args:
        tasks: their names.
        every: measure in round 1 and in every n-th; 0 never does.
    """

    def __init__(self, tasks: Sequence[str], every: int) -> None:
        self.tasks, self.every = list(tasks), every
        self.rounds = 0
        shape = (len(tasks), len(tasks))
        self._task_sums, self._task_pairs = np.zeros(shape), np.zeros(shape)
        self.clients: list[str] | None = []  # None once there were too many
        self._client_sums, self._client_pairs = np.zeros((0, 0)), np.zeros((0, 0))

    def is_due(self, number: int) -> bool:
        """Tell whether a round is measured."""
        return self.every > 0 and (number == 1 or number % self.every == 0)

    def observe(self, updates: Updates) -> None:
        """Take in a round; what it holds is not changed."""
        if not self.is_due(updates.round):
            return
        units = directions(common_part(updates.steps, updates.columns))
        moves = units.any(axis=1)  # an update of zero has no direction
        if moves.sum() < 2:
            return
        units, names = units[moves], [updates.clients[k] for k in np.flatnonzero(moves).tolist()]
        self.rounds += 1
        self._count_tasks(units, updates.labelled[moves] > 0)
        self._count_clients(units, names)

    def _count_tasks(self, units: NDArray[np.float32], holds: NDArray[np.bool_]) -> None:
        """Add up cosines over pairs of holders: of sums of directions, without pairs with oneself.

        Args:
            units: [K, Q], of length 1.
            holds: [K, T].
        """
        held = holds.astype(np.float64)
        both = held.T @ held  # [T, T], clients that hold both
        sums = (held.T.astype(np.float32) @ units).astype(np.float64)
        self._task_sums += sums @ sums.T - both
        counts = held.sum(axis=0)
        self._task_pairs += np.outer(counts, counts) - both

    def _count_clients(self, units: NDArray[np.float32], names: Sequence[str]) -> None:
        if self.clients is None:
            return
        fresh = sorted(set(names) - set(self.clients))
        if len(self.clients) + len(fresh) > MOST_CLIENTS:
            self.clients = None
            self._client_sums = self._client_pairs = np.zeros((0, 0))
            return
        self.clients += fresh
        wider = (0, len(fresh))
        self._client_sums = np.pad(self._client_sums, (wider, wider))
        self._client_pairs = np.pad(self._client_pairs, (wider, wider))
        places = np.array([self.clients.index(name) for name in names])
        block = np.ix_(places, places)
        apart = 1 - np.eye(len(places))
        self._client_sums[block] += (units @ units.T).astype(np.float64) * apart
        self._client_pairs[block] += apart

    def figures(self) -> dict[str, Any] | None:
        """Get the matrices for results.json; None where nothing was measured.

        A pair that never met is None. ``clients`` is None in a federation of too many.
        """
        if not self.rounds:
            return None
        clients = None
        if self.clients is not None:
            order = np.argsort(self.clients)
            block = np.ix_(order, order)
            clients = {
                "names": [self.clients[place] for place in order],
                "matrix": _means(self._client_sums[block], self._client_pairs[block]),
            }
        tasks = {"names": self.tasks, "matrix": _means(self._task_sums, self._task_pairs)}
        return {"rounds": self.rounds, "tasks": tasks, "clients": clients}

    def state(self) -> dict[str, NDArray[Any]]:
        """Get what was added up so far, for the checkpoint."""
        if not self.rounds:
            return {}
        state: dict[str, NDArray[Any]] = {
            "rounds": np.array([self.rounds]),
            "task_sums": self._task_sums,
            "task_pairs": self._task_pairs,
        }
        if self.clients is not None:
            names = np.array([name.encode() for name in self.clients])
            above = np.triu_indices(len(names), 1)  # symmetric, without a diagonal
            state |= {
                "client_names": names.view(np.uint8).reshape(len(names), -1),
                "client_sums": self._client_sums[above],
                "client_pairs": self._client_pairs[above].astype(np.int32),
            }
        return state

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` returned."""
        if not state:
            return
        self.rounds = int(state["rounds"][0])
        self._task_sums, self._task_pairs = state["task_sums"].copy(), state["task_pairs"].copy()
        self.clients = None
        if "client_names" in state:
            rows = np.ascontiguousarray(state["client_names"])
            self.clients = [bytes(row).rstrip(b"\0").decode() for row in rows]
            self._client_sums = _symmetric(state["client_sums"], len(rows))
            self._client_pairs = _symmetric(state["client_pairs"], len(rows))


def _symmetric(above: NDArray[Any], size: int) -> Floats:
    """Fill a matrix from what is above its diagonal, row by row."""
    matrix = np.zeros((size, size))
    matrix[np.triu_indices(size, 1)] = above
    return matrix + matrix.T


def _means(sums: Floats, pairs: Floats) -> list[list[float | None]]:
    """Divide; None where there was no pair."""
    return [
        [float(s / n) if n else None for s, n in zip(row, counts, strict=True)]
        for row, counts in zip(sums, pairs, strict=True)
    ]
