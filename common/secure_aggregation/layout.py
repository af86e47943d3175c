"""What stands where in the vectors that are added securely: the same at every client.

In 32 bits: ``[w u | w | w of the holders of each task | within]``. The update u comes first; then,
where clients are weighed by examples, the weight; where tasks have parts of their own, the weights
of those that hold each task, so that the parts are averaged over holders without it being known who
they are; under adaptive clipping, whether the update was within the norm.

In 64 bits: sums of losses and metrics, of all tasks of the experiment, 0 where a client has none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.experiment import Experiment
from common.secure_aggregation.grids import Grid
from common.sharing import task_of
from common.sums_form import SumsForm
from common.wire import SplitSums

EVALUATED = ("validation", "test")
WITHIN = 1 - 1e-4  # of the norm; who was clipped is not below this, however floats are rounded


class Field(NamedTuple):
    """Where one list of numbers stands."""

    split: str
    task: str
    name: str
    place: slice


class SumsLayout:
    """The sums of one message.

    Args:
        experiment: tasks, metrics, loss weighting.
        trained: whether those of training are among them.
        evaluated: whether those of an evaluation are.
    """

    def __init__(self, experiment: Experiment, *, trained: bool, evaluated: bool) -> None:
        form, self.fields, self.width = SumsForm(experiment), list[Field](), 0
        for split in (*(("train",) if trained else ()), *(EVALUATED if evaluated else ())):
            for task in experiment.tasks:
                for name, length in form.lengths(task, split).items():
                    place = slice(self.width, self.width + length)
                    self.fields.append(Field(split, task, name, place))
                    self.width += length

    def pack(self, sums: SplitSums) -> NDArray[np.float64]:
        """Lay out one client's sums, [M].

        Raises:
            ValueError: there is one that has no place, or another length.
        """
        flat, known = np.zeros(self.width), 0
        for split, task, name, place in self.fields:
            values = sums.get(split, {}).get(task, {}).get(name)
            if values is not None:
                flat[place] = values
                known += 1
        given = sum(len(numbers) for tasks in sums.values() for numbers in tasks.values())
        if given != known:
            raise ValueError("sums of names that the experiment does not have")
        return flat

    def unpack(self, flat: NDArray[np.float64]) -> SplitSums:
        """Read a total; tasks that nobody reported are absent."""
        sums: SplitSums = {}
        for split, task, name, place in self.fields:
            sums.setdefault(split, {}).setdefault(task, {})[name] = flat[place].tolist()
        return {
            split: {task: numbers for task, numbers in tasks.items() if numbers["loss"][1] > 0}
            for split, tasks in sums.items()
        }


@dataclass(frozen=True)
class Part:
    """One client's part of a round's sum, before it is put into integers.

    Attributes:
        update: [Q].
        weight: from 0 to 1; 1 where all count alike.
        tasks: that the client holds.
    """

    update: NDArray[np.float32]
    weight: float
    tasks: Sequence[str]


@dataclass(frozen=True)
class Sum:
    """What a round's parts add up to.

    Attributes:
        update: float64 [Q], the sum of w u.
        weight: the sum of w; in units of one client where all count alike.
        held: task with parts of its own -> the sum of w over its holders.
        within: how many updates were within the norm; 0 where it was not asked.
    """

    update: NDArray[np.float64]
    weight: float
    held: Mapping[str, float]
    within: int


class UpdateLayout:
    """The 32-bit vector of a training round.

    Args:
        experiment: weights, clipping, tasks.
        sizes: travelling parameter -> its number of columns, in the trunk's order.
    """

    def __init__(self, experiment: Experiment, sizes: Mapping[str, int]) -> None:
        level = experiment.privacy.client_level
        self.width = sum(sizes.values())
        self.weighs = experiment.federation.weight_by == "examples"
        self.counts_within = level is not None and level.quantile is not None
        owners = {task_of(name) for name in sizes}
        # Under a client level a client without a task adds 0 to its parts, and nobody counts.
        self.tasks = [t for t in experiment.tasks if t in owners and level is None]
        self.full_width = self.width + self.weighs + len(self.tasks) + self.counts_within

    def pack(self, part: Part, grid: Grid, generator: np.random.Generator) -> NDArray[np.int64]:
        """Put one client's part into integers, [full_width].

        The weight is rounded first, so that the update is multiplied by what is added up as w.

        Args:
            part: the client's.
            grid: of the round's max-norm.
            generator: rounds up or down.
        """
        unit = grid.limit if self.weighs else 1
        share = max(1, round(part.weight * grid.limit)) if self.weighs else 1
        values = part.update.astype(np.float64) * (share / unit)
        numbers = np.zeros(self.full_width, np.int64)
        numbers[: self.width] = grid.quantise(values, generator.random(len(values)))
        numbers[self.width : self.width + self.weighs] = share
        start = self.width + self.weighs
        for place, task in enumerate(self.tasks, start):
            numbers[place] = share if task in part.tasks else 0
        if self.counts_within:
            norm = float(np.linalg.norm(part.update.astype(np.float64)))
            numbers[-1] = norm <= grid.max_norm * WITHIN
        return numbers

    def unpack(self, total: NDArray[np.int64], grid: Grid, clients: int) -> Sum:
        """Read the sum of so many clients' integers."""
        unit = grid.limit if self.weighs else 1
        start = self.width + self.weighs
        held = {task: float(total[start + i]) / unit for i, task in enumerate(self.tasks)}
        return Sum(
            update=total[: self.width].astype(np.float64) * grid.step,
            weight=float(total[self.width]) / unit if self.weighs else float(clients),
            held=held,
            within=int(total[-1]) if self.counts_within else 0,
        )
