"""One round's aggregation: a rule from the table, fed with trunks that were checked first."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from common.errors import ConfigError, ShapeError
from common.experiment import Experiment
from common.methods import make_options
from common.secure_aggregation.layout import Sum
from common.strategies import STRATEGIES
from common.wire import ARRAYS, CONFIG, FloatArray, pack_arrays, unpack_arrays
from server.aggregation.rule import Rule
from server.bulk import BulkReplies
from server.client_weights import ClientWeights, Counts
from server.flat_trunk import FlatTrunk, model_arrays
from server.next_trunk import NextTrunk, Sent, Trunk
from server.private_mean import PrivateMean
from server.replies import ReplyReader, RoundReplies, read_sums, row_faults
from server.roster import Roster
from server.sampling import choose_clients
from server.sums import SumTable

logger = logging.getLogger("fedmtl.server")


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
        self.rule, self.experiment, self.roster, self.private = rule, experiment, roster, private
        self.form = FlatTrunk(trunk)
        self.reader = ReplyReader(experiment, roster, self.form)
        weights = ClientWeights(experiment.federation.weight_by, roster)
        self.next = NextTrunk(rule, experiment, self.form, weights, private)
        self.last = RoundReplies()
        self._sent = Sent(unpack_arrays(trunk))

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
        own = {name: self.rule.trunk_of(name) for name in names}
        self._sent = Sent(trunk, {name: sent for name, sent in own.items() if sent is not None})
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
            trunk = self.combine_nobody(server_round, self._sent.trunk)
        elif (trunk := self.next.plain_mean(server_round, clients, examples, rows)) is None:
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
        self._sent = Sent(trunk, self._sent.own)
        if not self.leave_out(replies):
            mean = self.next.plain_mean(
                server_round, replies.clients, replies.examples, replies.rows
            )
            if mean is not None:
                return mean
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

    def _combine(
        self,
        server_round: int,
        clients: Sequence[str],
        examples: Counts,
        rows: FloatArray,
        sums: SumTable,
    ) -> dict[str, FloatArray] | None:
        """Let the rule combine usable rows, [K, Q] with control variates behind."""
        return self.next.of_rows(
            server_round, self.attempt, self.last, self._sent, clients, examples, rows, sums
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

    def combine_nobody(self, server_round: int, trunk: Trunk) -> dict[str, FloatArray] | None:
        """Make the next trunk of a round without a usable update; None where it stays as it was."""
        return self.next.of_nobody(server_round, self.attempt, self.last, trunk)

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
        return self.next.of_sum(server_round, self.attempt, self.last, trunk, total, clients)

    def state(self) -> dict[str, NDArray[Any]]:
        """Get what is remembered from round to round, for the checkpoint."""
        return self.next.state()

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` returned.

        Raises:
            CheckpointError: it is not what this strategy remembers.
        """
        self.next.restore(state)

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
