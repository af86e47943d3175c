"""The clients of a message side by side, as an algorithm of the client's side sees them.

An algorithm says what is trained and what is kept; how rows of parameters are trained is the
engine's affair. One client is a row alone, a chunk of the batched engine is many rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from client.batches import Index
from client.cohort import LossSums
from client.flat import TRUNK, FlatLayout
from client.optimisers import Correction
from client.phases import MakeOptimiser, Moves, Phase, is_head
from common.experiment import Experiment
from common.sharing import shared_names
from common.weighting.balance import Balance


class Columns:
    """Which parameters are which, each a bool [P].

    Args:
        layout: where they lie.
        experiment: says what travels.
        device: where the masks are.

    Attributes:
        shared: those that travel.
        common: of these, the trunk's that all tasks share and that are trained: they step with
            every batch.
        trained: those that steps move; running statistics are not among them.
        heads: those that are a head's (`client.phases.is_head`).
        own: those that stay home.
    """

    def __init__(self, layout: FlatLayout, experiment: Experiment, device: torch.device) -> None:
        self.layout = layout
        names = shared_names(layout.slices, experiment)
        self.names = set(names)
        self.shared = self.mask([layout.slices[name] for name in names]).to(device)
        self.common = self.shared & self.mask(layout.segments[TRUNK]).to(device)
        trained = [place for places in layout.segments.values() for place in places]
        self.trained = self.mask(trained).to(device)
        heads = [p for name, p in layout.slices.items() if is_head(name, self.names)]
        self.heads = self.mask(heads).to(device)
        self.own = ~self.shared

    def mask(self, places: list[slice]) -> Tensor:
        """Mark places, bool [P]."""
        marked = torch.zeros(self.layout.size, dtype=torch.bool)
        for place in places:
            marked[place] = True
        return marked


class Lesson(Protocol):
    """What trains rows in one message: batches, dropout and loss weighting of its clients.

    Attributes:
        balance: weighs the losses; None where the round's weights are all.
        round: its number.
        epochs: int64 [K], how many were done, where clients may stop before all are.
    """

    balance: Balance | None
    round: int
    epochs: Index

    def train(self, values: Tensor, phase: Phase) -> LossSums:
        """Train rows [K, P] in place; returns task -> [K, 2], summed loss and labelled rows."""


@dataclass
class Learners:
    """K clients in one message.

    Attributes:
        values: [K, P], the received trunk and each client's own parameters.
        kept: name -> [K, P], what the algorithm keeps at home.
        received: name -> [P], what came beside the trunk.
        columns: which parameters are which.
        initial: [P], the parameters before any training.
        batches: int64 [K], steps in an epoch.
        open_lesson: makes a lesson, the same each time.
        sends: name -> [K, P], what is sent beside the trunk.
        sums: training losses so far.
    """

    values: Tensor
    kept: dict[str, Tensor]
    received: Mapping[str, Tensor]
    columns: Columns
    initial: Tensor
    batches: Index
    open_lesson: Callable[[], Lesson]
    sends: dict[str, Tensor] = field(default_factory=dict)
    sums: LossSums = field(default_factory=dict)
    _epoch: int = 0

    def __post_init__(self) -> None:
        self.lesson = self.open_lesson()

    def learn(
        self,
        epochs: int,
        moves: Moves = "all",
        correction: Correction | None = None,
        *,
        values: Tensor | None = None,
        make: MakeOptimiser | None = None,
    ) -> None:
        """Train for some epochs.

        Args:
            epochs: passes over the rows; those of one message are numbered through.
            moves: which parameters step.
            correction: what is made of every gradient.
            values: other rows than `values`, [K, P].
            make: makes an optimiser of another kind.
        """
        phase = Phase(epochs, self._epoch, moves, correction, make)
        self._epoch += epochs
        found = self.lesson.train(self.values if values is None else values, phase)
        for task, both in found.items():
            self.sums[task] = self.sums[task] + both if task in self.sums else both

    def aside(self, values: Tensor) -> "Learners":
        """Make learners of other rows, whose training leaves no trace but in these rows."""
        return replace(self, values=values, sends={}, sums={}, _epoch=0)
