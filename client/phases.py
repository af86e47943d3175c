"""Stretches of local training, of which an algorithm makes a round.

A phase trains some of the parameters for some epochs: all of them, the heads alone, or the trunk
alone. Rates of regularisation, loss weighting and batches are those of the experiment.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from client.early_stopping import Stopping
from client.flat import HEADS, FlatLayout, merge_neighbours
from client.optimisers import Correction, Optimiser, Part, make_optimiser, make_parts
from client.rates import StepRates
from common.experiment import Experiment
from common.sections.training import Training
from common.sharing import shared_names, task_of

Moves = Literal["all", "heads", "trunk"]
# Makes the optimiser of a phase from the rows [K, P] and, under autograd, their gradients.
MakeOptimiser = Callable[[Tensor, Tensor | None], Optimiser]


@dataclass(frozen=True)
class Phase:
    """One stretch of training.

    Attributes:
        epochs: passes over the rows.
        first: number of its first epoch in the round, which names its shuffles.
        moves: which parameters step. heads: the heads, and those parts of the trunk that belong to
            one task and stay home; trunk: the rest.
        correction: what is made of every gradient.
        make: makes an optimiser of another kind; None for the experiment's.
        stopping: stops clients whose own validation loss no longer falls; None where all epochs are
            done.
    """

    epochs: int
    first: int = 0
    moves: Moves = "all"
    correction: Correction | None = None
    make: MakeOptimiser | None = None
    stopping: Stopping | None = None

    def optimiser(
        self,
        values: Tensor,
        settings: Training,
        parts: "Parts",
        gradients: Tensor | None = None,
        rates: StepRates | None = None,
    ) -> Optimiser:
        """Make the phase's optimiser, with fresh state; `client.optimisers.make_optimiser`."""
        if self.make is not None:
            return self.make(values, gradients)
        moving = parts[self.moves].values()
        partly = self.moves != "all"
        return make_optimiser(
            values, settings, moving, gradients, self.correction, partly=partly, rates=rates
        )


Parts = Mapping[Moves, Mapping[str, Part]]  # what moves -> `TRUNK` or task -> its columns


def is_head(name: str, shared: set[str]) -> bool:
    """Whether a parameter counts as a head's: it is one, or a task's own part that stays home."""
    return name.startswith(HEADS) or (task_of(name) is not None and name not in shared)


def divide_parts(layout: FlatLayout, experiment: Experiment) -> Parts:
    """Divide the parts of a model into what the heads and the trunk are made of.

    Both have every part's name; what has no column on its side is empty there.
    """
    shared = set(shared_names(layout.slices, experiment))
    everything = make_parts(layout, experiment)
    heads = [place for name, place in layout.slices.items() if is_head(name, shared)]
    trunk = [place for name, place in layout.slices.items() if not is_head(name, shared)]
    return {
        "all": everything,
        "heads": {name: within(part, heads) for name, part in everything.items()},
        "trunk": {name: within(part, trunk) for name, part in everything.items()},
    }


def within(part: Part, columns: Sequence[slice]) -> Part:
    """Keep of a part what lies in these columns."""
    places = [
        slice(max(place.start, column.start), min(place.stop, column.stop))
        for place in part.places
        for column in columns
        if max(place.start, column.start) < min(place.stop, column.stop)
    ]
    return replace(part, places=merge_neighbours(places))
