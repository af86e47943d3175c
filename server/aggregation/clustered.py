"""One trunk per group of clients, or per group of tasks; groups split and merge as updates say."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from common.experiment import Experiment
from common.settings import Settings
from common.wire import FloatArray
from server.aggregation.linkage import Floats, Labels, partitions, separation
from server.aggregation.rule import Columns, Rule, Updates
from server.aggregation.sketch import Sketcher, common_part, common_problems, directions

logger = logging.getLogger("fedmtl.server")
LARGEST = 0.9 * float(np.finfo(np.float32).max)  # of a number in a trunk
KEPT = 0.9  # of what is remembered of a client's direction, when it takes part again


class Clustered(Rule):
    """A mean per group: ``w_g <- w_g + sum_k p_k u_k / sum_k p_k`` over the group's clients.

    All clients begin in one group. Every few rounds a group is split where its clients' directions
    fall into parts (by average linkage of update directions: Briggs et al., "Federated learning
    with hierarchical clustering of local updates to improve training on non-IID data", IJCNN 2020;
    again and again, by cosines: Sattler et al., "Clustered federated learning", IEEE TNNLS 2021,
    Algorithm 2, which parts in two). Sattler et al. wait until the group's mean update is short
    while some client's is long, which needs two thresholds in the model's own units and a converged
    model. Here a client's direction is summed over rounds, the group's mean is taken out of it, and
    a split needs cosines within the parts that exceed those between them by `split`, under the cut
    of the tree where they do so most. Groups whose trunks move alike again, with a cosine of
    `merge`, are merged.

    A client that was never seen is sent the mean of the groups' trunks, weighted by members; its
    first update decides its group.
    """

    class Options(Settings):
        """Options of clustering."""

        by: Literal["clients", "tasks"] = Field(
            "clients",
            description="What is grouped; under tasks, a client goes with most of its labels.",
        )
        every: int = Field(5, ge=1, description="Split and merge in every n-th round.")
        split: float = Field(
            0.75, gt=0, le=2, description="Cosine within parts minus cosine between them, to split."
        )
        merge: float = Field(
            0.9, gt=0, le=1, description="Cosine of two groups' movements, to merge; 1 never does."
        )
        min_clients: int = Field(3, ge=1, description="A group has so many clients or more.")

    def __init__(self, options: Any, experiment: Experiment) -> None:
        super().__init__(options, experiment)
        tasks = len(experiment.tasks)
        self.places: dict[str, int] = {}  # clients seen -> their places, by their first round
        self.group = np.zeros(0, np.int64)  # [N] of each client
        self.memory = np.zeros((0, 0), np.float32)  # [N, R] sketches of their directions, summed
        self.labelled = np.zeros((0, tasks), np.int64)  # [N, T]
        self.task_group = np.zeros(tasks, np.int64)  # [T], used by tasks
        self.trunks = np.zeros((0, 0), np.float32)  # [G, Q]
        self.anchors = np.zeros((0, 0), np.float32)  # [G, Q] trunks when groups were last judged
        self._sketcher: Sketcher | None = None

    @classmethod
    def find_problems(cls, options: Any, experiment: Experiment) -> Iterator[str]:
        """There must be something to compare, and groups of tasks need tasks."""
        yield from common_problems(experiment, "clustered")
        if options.by == "tasks" and len(experiment.tasks) < 2:
            yield (
                "federation.strategy-options.by 'tasks' needs at least 2 tasks, got "
                f"{len(experiment.tasks)}; set it to 'clients'"
            )

    @property
    def groups(self) -> dict[str, int]:
        """Every client seen -> the number of its group."""
        return {name: int(self.group[place]) for name, place in self.places.items()}

    def figures(self) -> dict[str, Any]:
        """Say which group every client ended in."""
        return {"groups": dict(sorted(self.groups.items()))}

    def trunk_of(self, client: str) -> FloatArray | None:
        """Give the trunk of a client's group, [Q]; None for a client never seen."""
        place = self.places.get(client)
        return None if place is None else self.trunks[self.group[place]]

    def combine(self, updates: Updates) -> FloatArray:
        """Let every group's trunk follow its clients; returns the mean of the groups, [Q]."""
        steps = updates.steps
        if not len(self.trunks):
            first = updates.before if updates.before.ndim == 1 else updates.before[0]
            self.trunks, self.anchors = first[None].copy(), first[None].copy()
        if _reach(steps) + _reach(self.trunks) > LARGEST:
            return np.full_like(self.trunks[0], np.nan)  # before anything is remembered
        self.trunks = self.trunks.copy()  # those that were sent stay as they were
        places = self._remember(updates, directions(common_part(steps, updates.columns)))
        for number in range(len(self.trunks)):
            ours = self.group[places] == number
            if ours.any():
                shares = (updates.weights[ours] / updates.weights[ours].sum()).astype(np.float32)
                self.trunks[number] = self.trunks[number] + shares @ steps[ours]
        if updates.round % self.options.every == 0:
            self._merge(updates.columns, updates.round)
            self._split(updates.round)
            self.anchors = self.trunks.copy()
        return self._mean()

    def _mean(self) -> FloatArray:
        """Average the trunks by their groups' members, [Q]."""
        members = np.bincount(self.group, minlength=len(self.trunks)).astype(np.float64)
        mean: FloatArray = (members / members.sum()).astype(np.float32) @ self.trunks
        return mean

    def _remember(self, updates: Updates, units: FloatArray) -> NDArray[np.int64]:
        """Take in a round's directions and labels; returns the clients' places."""
        if self._sketcher is None:
            self._sketcher = Sketcher(units.shape[1], self.experiment.seed)
        sketches = self._sketcher.shorten(units)
        fresh = [row for row, name in enumerate(updates.clients) if name not in self.places]
        if fresh:
            self._admit([updates.clients[row] for row in fresh], sketches[fresh])
        places = np.array([self.places[name] for name in updates.clients], np.int64)
        self.memory[places] = KEPT * self.memory[places] + sketches
        self.labelled[places] = updates.labelled
        if self.options.by == "tasks":
            self._follow_tasks()
        return places

    def _admit(self, names: list[str], sketches: FloatArray) -> None:
        """Give new clients to the groups that their first updates are most like."""
        if len(self.trunks) > 1:
            centres = np.stack(
                [self.memory[self.group == g].sum(axis=0) for g in range(len(self.trunks))]
            )
            group = (directions(sketches) @ directions(centres).T).argmax(axis=1)
        else:
            group = np.zeros(len(names), np.int64)
        self.places |= {name: len(self.places) + n for n, name in enumerate(names)}
        self.group = np.concatenate([self.group, group])
        memory = self.memory.reshape(-1, sketches.shape[1])
        self.memory = np.concatenate([memory, np.zeros_like(sketches)])
        labelled = np.zeros((len(names), self.labelled.shape[1]), np.int64)
        self.labelled = np.concatenate([self.labelled, labelled])

    def _follow_tasks(self) -> None:
        """Give every client to the group in which it has most labels."""
        belongs = self.task_group[:, None] == np.arange(len(self.trunks))
        self.group = (self.labelled @ belongs).argmax(axis=1)

    def _split(self, number: int) -> None:
        """Split every group that falls apart."""
        for old in range(len(self.trunks)):
            members = np.flatnonzero((self.group == old) & self.memory.any(axis=1))
            tasks = np.flatnonzero((self.task_group == old) & self.labelled[members].any(axis=0))
            found = self._parts(members, tasks)
            if found is None:
                continue
            parts, task_parts = found
            count, new = parts.max(), len(self.trunks)
            for name in ("trunks", "anchors"):
                rows = getattr(self, name)
                setattr(self, name, np.concatenate([rows, np.repeat(rows[[old]], count, axis=0)]))
            numbers = np.array([old, *range(new, new + count)])
            self.group[members] = numbers[parts]
            if self.options.by == "tasks":
                self.task_group[tasks] = numbers[task_parts]
                self._follow_tasks()
            sizes = ", ".join(map(str, np.bincount(parts)))
            logger.info("round %d: group %d splits into %s clients", number, old, sizes)

    def _parts(self, members: Labels, tasks: Labels) -> tuple[Labels, Labels] | None:
        """Find the parts of a group that are most apart; None where it is one.

        Args:
            members: places of its clients, n of them.
            tasks: places of its tasks.

        Returns:
            [n], the part of each client; and the part of each task, where tasks are grouped.
        """
        units, options = directions(self.memory[members]), self.options
        if len(members) < 2 * options.min_clients:
            return None
        likeness = _centred_cosines(units)
        found = max(
            (
                (separation(likeness, parts), -parts.max(), n, parts, task_parts)
                for n, (parts, task_parts) in enumerate(self._ways(members, tasks, units, likeness))
                if np.bincount(parts).min() >= options.min_clients
            ),
            default=None,
        )
        if found is None or found[0] < options.split:
            return None
        _, _, _, parts, task_parts = found
        means = directions(np.stack([units[parts == p].mean(axis=0) for p in np.unique(parts)]))
        if np.triu(means @ means.T, 1).max() >= options.merge:
            return None
        return parts, task_parts

    def _ways(
        self, members: Labels, tasks: Labels, units: FloatArray, likeness: Floats
    ) -> Iterator[tuple[Labels, Labels]]:
        """List ways to part a group: its clients, or its tasks and with them its clients."""
        if self.options.by == "clients":
            for parts in partitions(likeness, self.options.min_clients):
                yield parts, np.empty(0, np.int64)
            return
        if len(tasks) < 2:
            return
        labelled = self.labelled[members][:, tasks].astype(np.float64)
        means = (labelled / labelled.sum(axis=0)).T @ units
        for task_parts in partitions(_centred_cosines(means), 1):
            holds = labelled @ (task_parts[:, None] == np.arange(task_parts.max() + 1))
            parts = holds.argmax(axis=1)
            if len(np.unique(parts)) == task_parts.max() + 1:
                yield parts, task_parts

    def _merge(self, columns: Columns, number: int) -> None:
        """Merge groups, the most alike first, whose trunks moved alike since they were judged."""
        while self.options.merge < 1 and len(self.trunks) > 1:
            moves = directions(common_part(self.trunks - self.anchors, columns))
            likeness = np.triu(moves @ moves.T, 1)
            one, two = divmod(int(likeness.argmax()), len(likeness))
            if likeness[one, two] < self.options.merge:
                return
            logger.info("round %d: groups %d and %d merged", number, one, two)
            self._join(one, two)

    def _join(self, one: int, two: int) -> None:
        sizes = [int((self.group == number).sum()) for number in (one, two)]
        shares = np.array(sizes if sum(sizes) else [1, 1], np.float64)
        part = (shares / shares.sum()).astype(np.float32)
        for name in ("trunks", "anchors"):
            rows = getattr(self, name)
            rows[one] = part @ rows[[one, two]]
            setattr(self, name, np.delete(rows, two, axis=0))
        for group in (self.group, self.task_group):
            group[group == two] = one
            group[group > two] -= 1
        self.memory[self.group == one] = 0.0  # or what once set them apart would split them again

    def state(self) -> dict[str, NDArray[Any]]:
        """Get groups, trunks, and what is remembered of every client."""
        if not self.places:
            return {}
        names = np.array([name.encode() for name in self.places])
        return {
            "names": names.view(np.uint8).reshape(len(names), -1),
            "group": self.group,
            "memory": self.memory,
            "labelled": self.labelled,
            "task_group": self.task_group,
            "trunks": self.trunks,
            "anchors": self.anchors,
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on with the groups of an earlier sitting."""
        if not state:
            return
        names = np.ascontiguousarray(state["names"])
        self.places = {bytes(row).rstrip(b"\0").decode(): n for n, row in enumerate(names)}
        for name in ("group", "memory", "labelled", "task_group", "trunks", "anchors"):
            setattr(self, name, np.array(state[name]))


def _reach(rows: FloatArray) -> float:
    """Get the largest size of a number."""
    return float(max(rows.max(initial=0), -rows.min(initial=0)))


def _centred_cosines(units: NDArray[Any]) -> Floats:
    """Take cosines after the mean of all rows was taken out, [n, n]."""
    apart = directions((units - units.mean(axis=0)).astype(np.float32)).astype(np.float64)
    cosines: Floats = apart @ apart.T
    return cosines
