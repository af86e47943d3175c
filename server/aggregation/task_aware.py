"""Aggregation that knows tasks: first among the clients that hold a task, then across tasks."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from common.experiment import Experiment
from common.seeding import derive_key
from common.sharing import task_of
from common.wire import FloatArray
from server.aggregation.box_qp import Floats
from server.aggregation.conflicts import (
    AverseOptions,
    Name,
    averse_problems,
    averse_weights,
    products,
)
from server.aggregation.rule import Rule, Updates
from server.aggregation.sketch import common_part, plain_parts


class TaskAware(Rule):
    """``u_t = sum_k n_kt u_k / sum_k n_kt``, then the tasks' updates are combined.

    ``n_kt`` is client k's labelled training rows of task t, or 1 where it has any
    (``federation.weight-by = "uniform"``). A client counts for every task that it holds. Across
    tasks, "mean" weighs each by its weight in the loss, so that a task that many clients hold does
    not outweigh a rare one; the aggregators look for a step that suits all tasks. Parts of the
    trunk that belong to one task follow that task's update alone.

    From FedHCA2 (Lu et al., "FedHCA2: Towards hetero-client federated multi-task learning", CVPR
    2024) come the mean within a group of like tasks and, with ``across = "cagrad"``, the
    conflict-averse update across groups. Not taken over: its learned weights per client and layer,
    which give every client a trunk of its own, and its attention across decoders, which would have
    to leave the clients. MaT-FL (Cai et al., "Many-task federated learning", CVPR workshops 2023)
    weighs updates by a learned similarity of tasks; strategy 'clustered' by tasks is nearer to it.
    """

    class Options(AverseOptions):
        """Options of task-aware aggregation."""

        across: Literal["mean"] | Name = Field(
            "mean", description="How the tasks' updates are weighed."
        )
        normalise: bool = Field(
            False, description="All tasks' updates count with their median length."
        )

    @classmethod
    def find_problems(cls, options: Any, experiment: Experiment) -> Iterator[str]:
        """The aggregator's libraries must be there, and its options its own."""
        yield from averse_problems(options.across, options, where="across")
        if experiment.federation.weight_by == "labelled":
            yield (
                "federation.weight-by must be 'examples' or 'uniform' under federation.strategy "
                "'task-aware', got 'labelled', by which it weighs within a task anyway; remove it"
            )

    def combine(self, updates: Updates) -> FloatArray:
        """Step along the combined updates of the tasks, [Q]."""
        steps, rate = updates.steps, self.options.server_lr
        shares = self._client_shares(updates)  # [T, K]
        tasks = np.flatnonzero(shares.any(axis=1))
        if not len(tasks):  # nobody has a label: no step
            return updates.before.copy()
        gram = products(common_part(steps, updates.columns))
        weights = self._task_weights(gram, shares[tasks], tasks, updates.round) @ shares[tasks]
        step: FloatArray = rate * (weights.astype(np.float32) @ steps)
        for name, place in updates.columns.items():
            task = task_of(name)
            row = updates.tasks.index(task) if task in updates.tasks else -1
            if row in tasks:
                step[place] = rate * (shares[row].astype(np.float32) @ steps[:, place])
        for place in plain_parts(updates.columns):
            step[place] = updates.weights.astype(np.float32) @ steps[:, place]
        return updates.before + step

    def _client_shares(self, updates: Updates) -> Floats:
        """Give every client's share of every task, [T, K]; rows sum to 1, or 0 without a label."""
        counts = updates.labelled.T.astype(np.float64)
        if self.experiment.federation.weight_by == "uniform":
            counts = np.sign(counts)
        totals = counts.sum(axis=1, keepdims=True)
        shares: Floats = counts / np.maximum(totals, 1.0)
        return shares

    def _task_weights(
        self, gram: Floats, shares: Floats, tasks: NDArray[np.int64], number: int
    ) -> Floats:
        """Weigh the tasks at these places, [n], by their weights in the loss or an aggregator."""
        given = np.array(list(self.experiment.task_weights().values()))[tasks]
        parts = given / given.sum() if given.any() else np.full(len(given), 1 / len(given))
        options, key = self.options, derive_key(self.experiment.seed, "task-aware", number)
        between = shares @ gram @ shares.T
        return averse_weights(
            options.across,
            between,
            parts,
            options,
            key,
            normalise=options.normalise,
            notes=self.notes,
        )
