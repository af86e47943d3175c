"""The next trunk: a rule's step by updates, by the mean of a private round, or by a secure sum."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import CheckpointError
from common.experiment import Experiment
from common.secure_aggregation.layout import Sum
from common.wire import FloatArray
from server.affinity import Affinity
from server.aggregation.rule import Rule, Updates, weighted_mean
from server.checkpoint import RESTORE
from server.client_weights import ClientWeights, Counts
from server.control_variates import step_control
from server.flat_trunk import FlatTrunk
from server.private_mean import PrivateMean, Total
from server.replies import NO_NUMBER, RoundReplies
from server.sums import EVERYBODY, SumTable, mean_losses
from server.task_parts import TaskParts

Trunk = Mapping[str, FloatArray]


@dataclass(frozen=True)
class Sent:
    """What a round's clients were sent.

    Attributes:
        trunk: what all were sent who are not in `own`.
        own: client -> the trunk of its group, [Q].
    """

    trunk: Trunk
    own: Mapping[str, FloatArray] = field(default_factory=dict)

    def starts(self, clients: Sequence[str], sent: FloatArray) -> FloatArray:
        """Get the trunk that all were sent, [Q], or each client's own, [K, Q]."""
        if not self.own:
            return sent
        return np.stack([self.own.get(name, sent) for name in clients])


class NextTrunk:
    """Makes the next trunk of what a round brought; tells `RoundReplies` why it cannot.

    Tasks' parts are decided by the tasks' holders before the rule sees them.

    Args:
        rule: combines updates.
        experiment: tasks and their weights.
        form: what the trunk looks like.
        weights: of clients.
        private: makes the mean update of a private round, in the place of the clients' own ones.
    """

    def __init__(
        self,
        rule: Rule,
        experiment: Experiment,
        form: FlatTrunk,
        weights: ClientWeights,
        private: PrivateMean | None,
    ) -> None:
        self.rule, self.experiment, self.form = rule, experiment, form
        self.weights, self.private = weights, private
        self.affinity = Affinity(list(experiment.tasks), experiment.federation.affinity_every)
        self._parts = TaskParts(form.columns)

    def plain_mean(
        self, server_round: int, clients: Sequence[str], examples: Counts, rows: FloatArray
    ) -> dict[str, FloatArray] | None:
        """Make the mean of rows as they came, where the next trunk is that and nothing else.

        Returns:
            None where there is more to do, or a row holds what is no number.
        """
        if not self._is_plain or self.affinity.is_due(server_round):
            return None
        counts = self.weights.of(clients, examples)
        with np.errstate(all="ignore"):  # huge numbers may overflow; what comes of them is checked
            mean = weighted_mean(rows, counts / counts.sum())
        return self.form.cut(mean) if np.isfinite(mean).all() else None

    def of_rows(
        self,
        server_round: int,
        attempt: int,
        last: RoundReplies,
        sent: Sent,
        clients: Sequence[str],
        examples: Counts,
        rows: FloatArray,
        sums: SumTable,
    ) -> dict[str, FloatArray] | None:
        """Make the next trunk of usable rows, [K, Q] with control variates behind."""
        name, needed = self.experiment.federation.strategy, self.rule.needed(len(last.faulty))
        if len(clients) < needed:
            last.loss = f"strategy '{name}' needs {needed} replies, {len(clients)} are usable"
            return None
        before, width = self.form.flatten(sent.trunk), self.form.width
        with np.errstate(all="ignore"):  # as above
            if self.private is not None:
                total = self.private.total(rows, before)
                return self._release(server_round, attempt, last, before, total)
            starts = sent.starts(clients, before[:width])
            updates, unheld = self._updates(
                server_round, clients, examples, rows[:, :width], starts, sums
            )
            self.affinity.observe(updates)
            following = self._apply(updates, last)
        if following is None:
            return None
        for task in unheld:
            following[self._parts.columns[task]] = before[self._parts.columns[task]]
        control = step_control(rows[:, width:], before[width:], len(self.weights.roster.node_ids))
        return self.form.cut(np.concatenate([following, control]) if len(control) else following)

    def of_nobody(
        self, server_round: int, attempt: int, last: RoundReplies, trunk: Trunk
    ) -> dict[str, FloatArray] | None:
        """Make the next trunk of a round without a usable update; None where it stays as it was.

        A private round releases its noise all the same: that nobody was drawn, or that what came
        could not be used, is nobody's business.
        """
        if self.private is None or self.private.level.noise != "server":
            return None
        sent = self.form.flatten(trunk)
        total = self.private.total(sent[None][:0], sent)
        return self._release(server_round, attempt, last, sent, total)

    def of_sum(
        self,
        server_round: int,
        attempt: int,
        last: RoundReplies,
        trunk: Trunk,
        total: Sum,
        clients: int,
    ) -> dict[str, FloatArray] | None:
        """Make the next trunk of the sum of updates, where no single one is known.

        Args:
            server_round: the round.
            attempt: how often the round was asked before.
            last: is told what the rule noted.
            trunk: what was sent.
            total: the sums of weighed updates and of weights.
            clients: how many are in it.

        Returns:
            None where the rule makes no number.
        """
        sent = self.form.flatten(trunk)
        with np.errstate(all="ignore"):
            if self.private is not None:
                whole = Total(total.update, clients, total.within)
                return self._release(server_round, attempt, last, sent, whole)
            update, unheld = total.update / total.weight, []
            for task, columns in self._parts.columns.items():
                held = total.held[task]
                update[columns] = total.update[columns] / held if held else 0.0
                unheld += [columns] if not held else []
            following = self._step(server_round, last, sent, (sent + update).astype(sent.dtype))
        if following is None:
            return None
        for columns in unheld:  # a rule with momentum would move them
            following[columns] = sent[columns]
        return self.form.cut(following)

    @property
    def _is_plain(self) -> bool:
        model_only = self.form.width == self.form.full_width
        plain = self.rule.is_mean and self.private is None
        return plain and model_only and not self._parts.columns

    def _release(
        self, server_round: int, attempt: int, last: RoundReplies, sent: FloatArray, total: Total
    ) -> dict[str, FloatArray] | None:
        """Make the next trunk of the private mean of a total, which the rule takes for a client's.

        Returns:
            None where the rule makes no number.
        """
        if self.private is None:
            raise RuntimeError("no private mean in a private round")
        mean = self.private.release(total, sent, server_round, attempt)
        following = self._step(server_round, last, sent, mean)
        if following is None:
            last.loss += ", as may a smaller max-norm, less noise, or more clients"
        return None if following is None else self.form.cut(following)

    def _step(
        self, server_round: int, last: RoundReplies, sent: FloatArray, mean: FloatArray
    ) -> FloatArray | None:
        """Let the rule step from the trunk that was sent by a mean, [Q]; None where it cannot."""
        updates = Updates(
            round=server_round,
            clients=[EVERYBODY],
            before=sent,
            rows=mean[None],
            weights=np.ones(1),
            labelled=np.ones((1, len(self.experiment.tasks)), np.int64),
            tasks=tuple(self.experiment.tasks),
            losses=np.full(1, np.nan),
            columns=self.form.columns,
        )
        return self._apply(updates, last)

    def _apply(self, updates: Updates, last: RoundReplies) -> FloatArray | None:
        """Let the rule combine, [Q], and keep its notes; None where it made no number."""
        following = self.rule.combine(updates)
        last.notes, self.rule.notes = self.rule.notes, []
        if np.isfinite(following).all():
            return following
        last.loss = f"strategy '{self.experiment.federation.strategy}' made {NO_NUMBER}"
        return None

    def _updates(
        self,
        server_round: int,
        clients: Sequence[str],
        examples: Counts,
        rows: FloatArray,
        before: FloatArray,
        sums: SumTable,
    ) -> tuple[Updates, Sequence[str]]:
        """Lay out for the rule what a round brought; also names the tasks that nobody holds."""
        counts = self.weights.of(clients, examples)
        by_task = {t: self.weights.of_task(t, clients, counts) for t in self._parts.columns}
        model, unheld = self._parts.stand_in(rows, before, by_task, by_median=self.rule.is_robust)
        updates = Updates(
            round=server_round,
            clients=clients,
            before=before,
            rows=model,
            weights=counts / counts.sum(),
            labelled=self._labelled(clients),
            tasks=tuple(self.experiment.tasks),
            losses=mean_losses(sums, self.experiment.task_weights()),
            columns=self.form.columns,
            parts=self._shares(by_task),
        )
        return updates, unheld

    def _labelled(self, clients: Sequence[str]) -> Counts:
        tasks = self.experiment.tasks
        labelled = [[self.weights.labelled(name, task) for task in tasks] for name in clients]
        return np.array(labelled, np.int64)

    def _shares(
        self, by_task: Mapping[str, Counts]
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Get tasks' own columns and the clients' shares there, where they are others."""
        if self.weights.weight_by != "labelled":
            return []
        return [
            (self._parts.columns[task], counts / counts.sum())
            for task, counts in by_task.items()
            if counts.any()
        ]

    def state(self) -> dict[str, NDArray[Any]]:
        """Get what rule and affinity remember from round to round, for the checkpoint."""
        private = {} if self.private is None else self.private.state()
        parts = {
            "rule": self.rule.state(),
            "affinity": self.affinity.state(),
            "private": private,
        }
        return {f"{part}.{n}": array for part, kept in parts.items() for n, array in kept.items()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` returned.

        Raises:
            CheckpointError: it is not what this strategy remembers.
        """
        parts = ("rule", "affinity", "private")
        kept: dict[str, dict[str, NDArray[Any]]] = {part: {} for part in parts}
        try:
            for name, array in state.items():
                part, _, own = name.partition(".")
                kept[part][own] = array
            self.rule.restore(kept["rule"])
            self.affinity.restore(kept["affinity"])
            if self.private is not None:
                self.private.restore(kept["private"])
            found = self.state()
            if {n: a.shape for n, a in found.items()} != {n: a.shape for n, a in state.items()}:
                raise ValueError("other names or shapes")
        except (LookupError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint's strategy file holds {sorted(state)}, which strategy "
                f"'{self.experiment.federation.strategy}' cannot go on from ({error}); {RESTORE}"
            ) from error
