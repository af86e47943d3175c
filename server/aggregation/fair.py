"""Clients with a high loss count more: q-FedAvg."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from common.experiment import Experiment
from common.settings import Settings
from common.wire import FloatArray
from server.aggregation.flower import FlowerRule
from server.aggregation.rule import Updates
from server.aggregation.sketch import plain_parts


class QFedAvg(FlowerRule):
    """``w <- w - sum_k D_k / sum_k h_k`` (Li et al. 2020, Algorithm 2).

    ``g_k = L (w - w_k)``, ``D_k = F_k^q g_k``, ``h_k = q F_k^(q-1) |g_k|^2 + L F_k^q``, ``L`` one
    over the clients' learning rate. ``F_k`` is the client's mean training loss over the round, its
    tasks weighed as in training; the paper takes the loss of the trunk received.
    """

    strategy: ClassVar[str] = "QFedAvg"

    class Options(Settings):
        """Options of q-FedAvg."""

        q: float = Field(0.1, ge=0, description="The higher, the fairer; 0 is the plain mean.")
        client_learning_rate: float | None = Field(
            None, gt=0, description="1 / L of the step's bound; default: training.lr."
        )

    @classmethod
    def find_problems(cls, options: Any, experiment: Experiment) -> Iterator[str]:
        """Its bound is for one learning rate."""
        yield from super().find_problems(options, experiment)
        training = experiment.training
        for key in ("schedule", "step_schedule"):
            chosen = getattr(training, key)
            if chosen != "constant" and options.client_learning_rate is None:
                yield (
                    "federation.strategy-options.client-learning-rate must be given under "
                    f"training.{key.replace('_', '-')} '{chosen}', by which the clients' rate "
                    "changes; set it, or remove the schedule"
                )

    def arguments(self) -> dict[str, Any]:
        """Take the clients' own learning rate where none is given."""
        rate = self.options.client_learning_rate or self.experiment.training.lr
        return {"q": self.options.q, "client_learning_rate": rate}

    def combine(self, updates: Updates) -> FloatArray:
        """Step from the trunk that was sent, [Q]; clients without a loss have no say."""
        told = updates.losses >= 0  # NaN is not
        if not told.any():
            self.notes.append(
                "no client reported a training loss, by which strategy 'qfedavg' weighs; the trunk "
                "stayed as it was"
            )
            return updates.before.copy()
        rows, losses = updates.rows[told], updates.losses[told]
        following = self.aggregate(updates.round, updates.before, rows, losses=losses)
        for place in plain_parts(updates.columns):
            following[place] = rows[:, place].mean(axis=0, dtype=np.float64)
        return following
