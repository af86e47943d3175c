"""One round's aggregation: a rule from the table, fed with trunks that were checked first."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from common.errors import CheckpointError, ConfigError, ShapeError
from common.experiment import Experiment
from common.methods import make_options
from common.secure_aggregation.layout import Sum
from common.strategies import STRATEGIES
from common.wire import ARRAYS, CONFIG, FloatArray, pack_arrays, unpack_arrays
from server.affinity import Affinity
from server.aggregation.rule import Rule, Updates, weighted_mean
from server.bulk import BulkReplies
from server.checkpoint import RESTORE
from server.client_weights import ClientWeights, Counts
from server.control_variates import step_control
from server.flat_trunk import FlatTrunk, model_arrays
from server.private_mean import PrivateMean, Total
from server.replies import NO_NUMBER, ReplyReader, RoundReplies, read_sums, row_faults
from server.roster import Roster
from server.sampling import choose_clients
from server.sums import EVERYBODY, SumTable, mean_losses
from server.task_parts import TaskParts

logger = logging.getLogger("fedmtl.server")

Trunk = Mapping[str, FloatArray]


class TrunkStrategy(Strategy):
    """Lets a rule combine well-formed trunks, in an order of their clients' names.

    Trunks come as messages or as rows of one matrix; both end as flat rows, in which tasks' parts
    are decided by the tasks' holders before the rule sees them. Sampling is seeded and goes by
    stable names. What the last replies said, and who was left out, stands in `last`.

    Args:
        rule: makes the next trunk.
        experiment: seed, clients per round, client weights, tasks.
        roster: names, node ids, who holds which task.
        trunk: the initial trunk; fixes names, shapes and dtypes.
        private: makes the mean update of a private round, in the place of the clients' own ones.

    Attributes:
        attempt: how often the round at hand was asked before.
    """

    attempt = 0

    def __init__(
        self,
        rule: Rule,
        experiment: Experiment,
        roster: Roster,
        trunk: ArrayRecord,
        private: PrivateMean | None = None,
    ) -> None:
        self.private = private
        self.rule, self.experiment, self.roster = rule, experiment, roster
        self.form = FlatTrunk(trunk)
        self.reader = ReplyReader(experiment, roster, self.form)
        self.weights = ClientWeights(experiment.federation.weight_by, roster)
        self.affinity = Affinity(list(experiment.tasks), experiment.federation.affinity_every)
        self.last = RoundReplies()
        self._parts = TaskParts(self.form.columns)
        self._sent: Trunk = unpack_arrays(trunk)
        self._own_sent: dict[str, FloatArray] = {}  # clients that were sent another trunk

    def choose(self, server_round: int) -> list[str]:
        """Draw this round's clients by the run's seed; their names, sorted."""
        poisson = None if self.private is None else self.private.poisson
        return choose_clients(self.experiment, self.roster, server_round, self.attempt, poisson)

    def instruct(self) -> dict[str, float]:
        """Say what clients need for a round beside the experiment (`Instruction.privacy`)."""
        return {} if self.private is None else self.private.instruct()

    def find_fault(self, reply: Message) -> str | None:
        """Say why a reply to a training message cannot be used; None where it can.

        It is read alone, so `last` is empty afterwards.
        """
        self.last = RoundReplies()
        return self.reader.find_fault(reply)

    def address(self, names: Sequence[str], trunk: Trunk) -> list[tuple[list[str], Trunk]]:
        """Say which clients are sent which trunk: all this one, or each group the rule's own.

        Args:
            names: the clients.
            trunk: what is sent where the rule says nothing.

        Returns:
            Names and their trunk, group by group.
        """
        groups: dict[int | None, tuple[list[str], Trunk]] = {}
        for name in names:
            own = self.rule.trunk_of(name)
            place = None if own is None else own.ctypes.data
            if place not in groups:
                groups[place] = ([], trunk if own is None else {**trunk, **self.form.cut(own)})
            groups[place][0].append(name)
        return list(groups.values()) or [([], trunk)]

    def address_train(self, names: Sequence[str], trunk: Trunk) -> list[tuple[list[str], Trunk]]:
        """Address a round's trunk, and keep what was sent until the replies are there."""
        self._sent, own = trunk, {name: self.rule.trunk_of(name) for name in names}
        self._own_sent = {name: sent for name, sent in own.items() if sent is not None}
        return self.address(names, trunk)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address the trunk to this round's clients."""
        names, trunk = self.choose(server_round), unpack_arrays(arrays)
        return self._messages(self.address_train(names, trunk), config, MessageType.TRAIN)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address what an evaluation needs to all clients."""
        groups = self.address(self.roster.names, self.evaluated(unpack_arrays(arrays)))
        return self._messages(groups, config, MessageType.EVALUATE)

    def evaluated(self, trunk: Trunk) -> Trunk:
        """Get what an evaluation needs: the model's arrays, and all where clients train first."""
        is_personal = self.experiment.evaluation.model == "personal"
        return trunk if is_personal else model_arrays(trunk)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the rule combine the well-formed trunks; None where there is none."""
        self.last, rows = self.reader.read(replies, with_arrays=True)
        clients, examples = list(self.last.examples), np.array([*self.last.examples.values()])
        if not clients:
            trunk = self.combine_nobody(server_round, self._sent)
            return None if trunk is None else pack_arrays(trunk), None
        if self._is_plain and not self.affinity.is_due(server_round):
            mean = self._mean(clients, examples, rows)
            if np.isfinite(mean).all():
                return pack_arrays(self.form.cut(mean)), None
        sums = SumTable.of(self.last.sums)
        trunk = self._combine(server_round, clients, examples, rows, sums)
        return None if trunk is None else pack_arrays(trunk), None

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Keep the well-formed evaluations in `last`."""
        self.last, _ = self.reader.read(replies, with_arrays=False)
        return None

    def combine(
        self, server_round: int, trunk: Trunk, replies: BulkReplies
    ) -> dict[str, FloatArray] | None:
        """Combine trunks that came as rows of one matrix; None where none is usable.

        Args:
            server_round: the round.
            trunk: what was sent.
            replies: what came back.
        """
        if replies.rows is None:
            raise ShapeError("replies to a training round hold trunks")
        self._sent = trunk
        faults = self.leave_out(replies)
        if self._is_plain and not faults and not self.affinity.is_due(server_round):
            mean = self._mean(replies.clients, replies.examples, replies.rows)
            if np.isfinite(mean).all():
                return self.form.cut(mean)  # what is not finite in a row is not in the mean
        usable = self._usable(replies)
        if not usable.any():
            return self.combine_nobody(server_round, trunk)
        clients = [name for name, is_used in zip(replies.clients, usable, strict=True) if is_used]
        everybody = bool(usable.all())
        return self._combine(
            server_round,
            clients,
            replies.examples if everybody else replies.examples[usable],
            replies.rows if everybody else replies.rows[usable],
            replies.sums if everybody else replies.sums.without(self.last.left_out),
        )

    def leave_out(self, replies: BulkReplies) -> dict[str, str]:
        """Leave out the clients whose sums are not finite; client -> reason."""
        self.last = read_sums(replies)
        return dict(self.last.left_out)

    def _usable(self, replies: BulkReplies) -> NDArray[np.bool_]:
        """Leave out, too, the clients whose trunks are not finite; [K], who is not."""
        for name, reason in row_faults(replies).items():
            if name not in self.last.left_out:
                self.last.leave_out(name, reason)
        return np.array([name not in self.last.left_out for name in replies.clients])

    @property
    def _is_plain(self) -> bool:
        """Whether the next trunk is the mean of the rows as they came, and nothing else."""
        model_only = self.form.width == self.form.full_width
        plain = self.rule.is_mean and self.private is None
        return plain and model_only and not self._parts.columns

    def _mean(self, clients: Sequence[str], examples: Counts, rows: FloatArray) -> FloatArray:
        counts = self.weights.of(clients, examples)
        with np.errstate(all="ignore"):  # huge numbers may overflow; what comes of them is checked
            return weighted_mean(rows, counts / counts.sum())

    def _combine(
        self,
        server_round: int,
        clients: Sequence[str],
        examples: Counts,
        rows: FloatArray,
        sums: SumTable,
    ) -> dict[str, FloatArray] | None:
        """Make the next trunk of usable rows, [K, Q] with control variates behind."""
        name, needed = self.experiment.federation.strategy, self.rule.needed(len(self.last.faulty))
        if len(clients) < needed:
            self.last.loss = f"strategy '{name}' needs {needed} replies, {len(clients)} are usable"
            return None
        sent, width = self.form.flatten(self._sent), self.form.width
        with np.errstate(all="ignore"):  # as above
            if self.private is not None:
                return self._release(server_round, sent, self.private.total(rows, sent))
            updates, unheld = self._updates(
                server_round, clients, examples, rows[:, :width], sent[:width], sums
            )
            self.affinity.observe(updates)
            following = self._apply(updates)
        if following is None:
            return None
        for task in unheld:
            following[self._parts.columns[task]] = sent[self._parts.columns[task]]
        control = step_control(rows[:, width:], sent[width:], len(self.roster.node_ids))
        return self.form.cut(np.concatenate([following, control]) if len(control) else following)

    def combine_nobody(self, server_round: int, trunk: Trunk) -> dict[str, FloatArray] | None:
        """Make the next trunk of a round without a usable update; None where it stays as it was.

        A private round releases its noise all the same: that nobody was drawn, or that what came
        could not be used, is nobody's business.
        """
        if self.private is None or self.private.level.noise != "server":
            return None
        sent = self.form.flatten(trunk)
        return self._release(server_round, sent, self.private.total(sent[None][:0], sent))

    def _release(
        self, server_round: int, sent: FloatArray, total: Total
    ) -> dict[str, FloatArray] | None:
        """Make the next trunk of the private mean of a total, which the rule takes for a client's.

        Returns:
            None where the rule makes no number.
        """
        if self.private is None:
            raise RuntimeError("no private mean in a private round")
        mean = self.private.release(total, sent, server_round, self.attempt)
        following = self._step(server_round, sent, mean)
        if following is None:
            self.last.loss += ", as may a smaller max-norm, less noise, or more clients"
        return None if following is None else self.form.cut(following)

    def combine_sum(
        self, server_round: int, trunk: Trunk, total: Sum, clients: int
    ) -> dict[str, FloatArray] | None:
        """Make the next trunk of the sum of updates, where no single one is known.

        Args:
            server_round: the round.
            trunk: what was sent.
            total: the sums of weighed updates and of weights.
            clients: how many are in it.

        Returns:
            None where the rule makes no number.
        """
        self.last = RoundReplies()
        sent = self.form.flatten(trunk)
        with np.errstate(all="ignore"):
            if self.private is not None:
                whole = Total(total.update, clients, total.within)
                return self._release(server_round, sent, whole)
            update, unheld = total.update / total.weight, []
            for task, columns in self._parts.columns.items():
                held = total.held[task]
                update[columns] = total.update[columns] / held if held else 0.0
                unheld += [columns] if not held else []
            following = self._step(server_round, sent, (sent + update).astype(sent.dtype))
        if following is None:
            return None
        for columns in unheld:  # a rule with momentum would move them
            following[columns] = sent[columns]
        return self.form.cut(following)

    def _step(self, server_round: int, sent: FloatArray, mean: FloatArray) -> FloatArray | None:
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
        return self._apply(updates)

    def _apply(self, updates: Updates) -> FloatArray | None:
        """Let the rule combine, [Q], and keep its notes; None where it made no number."""
        following = self.rule.combine(updates)
        self.last.notes, self.rule.notes = self.rule.notes, []
        if np.isfinite(following).all():
            return following
        self.last.loss = f"strategy '{self.experiment.federation.strategy}' made {NO_NUMBER}"
        return None

    def _updates(
        self,
        server_round: int,
        clients: Sequence[str],
        examples: Counts,
        rows: FloatArray,
        sent: FloatArray,
        sums: SumTable,
    ) -> tuple[Updates, Sequence[str]]:
        """Lay out for the rule what a round brought; also names the tasks that nobody holds."""
        counts = self.weights.of(clients, examples)
        by_task = {t: self.weights.of_task(t, clients, counts) for t in self._parts.columns}
        before = self._starts(clients, sent)
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

    def _starts(self, clients: Sequence[str], sent: FloatArray) -> FloatArray:
        """Get the trunk that all were sent, [Q], or each client's own, [K, Q]."""
        if not self._own_sent:
            return sent
        return np.stack([self._own_sent.get(name, sent) for name in clients])

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

    def summary(self) -> None:
        """Log which rule combines trunks."""
        logger.info("strategy '%s': %s", self.experiment.federation.strategy, self.rule.options)

    def _messages(
        self, groups: Sequence[tuple[Sequence[str], Trunk]], config: ConfigRecord, kind: str
    ) -> list[Message]:
        contents: dict[str, RecordDict] = {}
        for names, trunk in groups:
            content = RecordDict({ARRAYS: pack_arrays(trunk), CONFIG: config})
            contents |= dict.fromkeys(names, content)
        node_ids = self.roster.node_ids
        return [Message(contents[name], node_ids[name], kind) for name in sorted(contents)]


def make_strategy(
    experiment: Experiment, roster: Roster, trunk: ArrayRecord, *, simulated: bool = False
) -> TrunkStrategy:
    """Make the strategy that the experiment names.

    Args:
        experiment: names it.
        roster: the clients met at the start.
        trunk: the initial trunk.
        simulated: noise comes from the experiment's seed, which in a deployment clients know.

    Raises:
        ConfigError: fewer clients are asked per round than its rule needs.
    """
    federation = experiment.federation
    options = make_options(STRATEGIES, federation.strategy, federation.strategy_options)
    rule: Rule = STRATEGIES[federation.strategy].load()(options, experiment)
    if roster.asked_per_round < rule.fewest:
        raise ConfigError(
            f"federation.strategy '{federation.strategy}' with these options needs {rule.fewest} "
            f"clients per round, {roster.asked_per_round} would be asked; start more clients, for "
            "which federation.min-clients waits, ask more of them, or change strategy-options"
        )
    private = None
    if experiment.privacy.client_level is not None:
        seed = experiment.seed if simulated else None
        private = PrivateMean(experiment, len(roster.node_ids), seed)
    return TrunkStrategy(rule, experiment, roster, trunk, private)
