"""How alike the updates of clients, and of tasks, are; measuring leaves a run as it is.

Standley et al., "Which tasks should be learned together in multi-task learning?", ICML 2020, and
Fifty et al., "Efficiently identifying task groupings for multi-task learning", NeurIPS 2021, ask
what one task's step does to another's loss; the cosine of their updates is the cheap answer that a
server sees without a further message.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.aggregation.rule import Updates
from server.aggregation.sketch import common_columns

Floats = NDArray[np.float64]
BLOCK = 2**18  # numbers of the updates that are looked at at once
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
        squares = sum((np.square(part).sum(axis=1) for part in _parts(updates)), _zeros(updates))
        moves = squares > 0  # an update of zero has no direction
        if moves.sum() < 2:
            return
        names = [updates.clients[k] for k in np.flatnonzero(moves).tolist()]
        self.rounds += 1
        self._meet(names)
        lengths = np.sqrt(squares[moves])[:, None]
        held = (updates.labelled[moves] > 0).astype(np.float64)
        size = 0 if self.clients is None else len(names)
        between, across = np.zeros((size, size)), np.zeros(self._task_sums.shape)
        for part in _parts(updates):
            units = (part if moves.all() else part[moves]) / lengths  # [K, columns of the part]
            sums = held.T @ units
            across += sums @ sums.T
            if self.clients is not None:
                between += units @ units.T
        self._count_tasks(across, held)
        self._count_clients(between, names)

    def _count_tasks(self, across: Floats, held: Floats) -> None:
        """Add up cosines over pairs of holders: of sums of directions, without pairs with oneself.

        Args:
            across: [T, T], products of the sums over each task's holders.
            held: [K, T], 1 or 0.
        """
        both = held.T @ held  # [T, T], clients that hold both
        self._task_sums += across - both
        counts = held.sum(axis=0)
        self._task_pairs += np.outer(counts, counts) - both

    def _meet(self, names: Sequence[str]) -> None:
        """Make room for clients not met before; for none, where they are too many."""
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

    def _count_clients(self, between: Floats, names: Sequence[str]) -> None:
        if self.clients is None:
            return
        places = np.array([self.clients.index(name) for name in names])
        block = np.ix_(places, places)
        apart = 1 - np.eye(len(places))
        self._client_sums[block] += between * apart
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


def _parts(updates: Updates) -> Iterator[Floats]:
    """Cut updates into a few columns each, of those that all tasks share, [K, columns].

    All together, in double precision, would be many times the rows' memory.
    """
    width = max(1, BLOCK // len(updates.clients))
    for place in common_columns(updates.columns):
        for start in range(place.start, place.stop, width):
            cut = slice(start, min(start + width, place.stop))
            yield np.subtract(updates.rows[:, cut], updates.before[..., cut], dtype=np.float64)


def _zeros(updates: Updates) -> Floats:
    return np.zeros(len(updates.clients))


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
