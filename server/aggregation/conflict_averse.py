"""Conflict-averse combination: a step that does not improve one client at another's expense."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import Field

from common.experiment import Experiment
from common.seeding import derive_key
from common.wire import FloatArray
from server.aggregation.conflicts import (
    AGGREGATORS,
    AverseOptions,
    Name,
    averse_problems,
    averse_weights,
    products,
)
from server.aggregation.rule import Rule, Updates
from server.aggregation.sketch import common_part, common_problems, plain_parts


class ConflictAverse(Rule):
    """``w <- w + eta * sum_k l_k u_k``, the weights from an aggregator of multi-task gradients.

    Default is FedMGDA+ (Hu et al., "Federated learning meets multi-objective optimization", 2022,
    Algorithm 1): updates are normalised, and ``l`` minimises ``|sum_k l_k u_k|`` over weights of a
    mean no further than epsilon from the clients' shares. The paper leaves the server's step eta
    open; here it is `server-lr` times the median length of the round's updates.
    """

    class Options(AverseOptions):
        """Options of conflict-averse combination."""

        aggregator: Name = Field("fedmgda+", description="How the updates are weighed.")
        normalise: bool = Field(
            True, description="All updates count with the median length, as in FedMGDA+."
        )

    @classmethod
    def find_problems(cls, options: Any, experiment: Experiment) -> Iterator[str]:
        """The aggregator's libraries must be there, and its options its own."""
        yield from common_problems(experiment, "conflict-averse")
        name = options.aggregator
        yield from averse_problems(name, options, where="aggregator")
        by = experiment.federation.weight_by
        if not AGGREGATORS[name].minds_shares and by != "examples":
            users = ", ".join(f"'{n}'" for n, a in AGGREGATORS.items() if a.minds_shares)
            yield (
                f"federation.weight-by is for strategy-options.aggregator {users}, got '{by}' with "
                f"'{name}', in which all clients count alike; remove it"
            )

    def combine(self, updates: Updates) -> FloatArray:
        """Step along the weighted sum of the updates, [Q]."""
        steps, options = updates.steps, self.options
        weights = averse_weights(
            options.aggregator,
            products(common_part(steps, updates.columns)),
            updates.weights,
            options,
            derive_key(self.experiment.seed, "conflict-averse", updates.round),
            normalise=options.normalise,
            notes=self.notes,
        )
        step: FloatArray = (options.server_lr * weights).astype(np.float32) @ steps
        for place in plain_parts(updates.columns):
            step[place] = updates.weights.astype(np.float32) @ steps[:, place]
        return updates.before + step
