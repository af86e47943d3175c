"""One round's aggregation: any Flower strategy, fed with trunks that were checked first."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from numpy.typing import NDArray

from common.errors import ShapeError
from common.experiment import Experiment
from common.sums_form import SumsForm
from common.wire import (
    ARRAYS,
    CONFIG,
    EXAMPLES,
    FloatArray,
    SplitSums,
    arrays_of,
    metrics_of,
    pack_arrays,
    read_array,
    reason_of,
    unpack_arrays,
    unpack_sums,
)
from common.wire import METRICS as METRICS_KEY
from server.bulk import BulkReplies
from server.roster import Roster
from server.sampling import choose_clients
from server.task_parts import TaskParts

logger = logging.getLogger("fedmtl.server")
MOST_EXAMPLES = 2**40  # of a client; sums over a million of them still are 64-bit integers
NO_NUMBER = "NaN or infinity; a smaller training.lr may help"

STRATEGIES = {
    # McMahan et al. 2017, Algorithm 1: the mean of the trunks, weighted by examples.
    "fedavg": FedAvg,
}


class MalformedReplyError(Exception):
    """A reply cannot be used; the message says why."""


@dataclass
class RoundReplies:
    """What the last aggregation saw, by client name.

    Attributes:
        examples: accepted clients -> training rows.
        sums: accepted clients -> sums and counts per split and task.
        left_out: other clients -> the reason.
    """

    examples: dict[str, int] = field(default_factory=dict)
    sums: dict[str, SplitSums] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


class TrunkStrategy(Strategy):
    """Wraps a Flower strategy so that it sees well-formed trunks only, in an order of their names.

    A reply that is not exactly the trunk (names, shapes, finite numbers, a positive number of
    examples, sums of known tasks) is left out with a warning that names the client and the reason.
    Sampling is seeded and goes by stable names. Metrics are kept as sums per client in `last`;
    clients may report different tasks.

    Args:
        inner: the strategy that combines the trunks, such as Flower's `FedAvg`.
        experiment: seed, clients per round, client weights, tasks.
        roster: names and node ids.
        trunk: the initial trunk; fixes names, shapes and dtypes.

    Attributes:
        attempt: how often the round at hand was asked before.
    """

    attempt = 0

    def __init__(
        self, inner: Strategy, experiment: Experiment, roster: Roster, trunk: ArrayRecord
    ) -> None:
        self.inner, self.experiment, self.roster = inner, experiment, roster
        self.shapes = {name: tuple(array.shape) for name, array in trunk.items()}
        self.dtypes = {name: np.dtype(array.dtype) for name, array in trunk.items()}
        self.last = RoundReplies()
        self._parts = TaskParts(self.shapes, roster.holds)
        self._before: Mapping[str, FloatArray] = {}  # the trunk that was sent, if it is needed
        self._form = SumsForm(experiment)
        # The accepted trunks, flat; kept, because fresh memory costs a page fault per page.
        self._rows = np.empty((0, 0), np.float32)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address the trunk to this round's clients."""
        if self._parts.columns:
            self._before = unpack_arrays(arrays)
        return self._messages(self.choose(server_round), arrays, config, MessageType.TRAIN)

    def choose(self, server_round: int) -> list[str]:
        """Draw this round's clients by the run's seed; their names, sorted."""
        return choose_clients(self.experiment, self.roster, server_round, self.attempt)

    def find_fault(self, reply: Message) -> str | None:
        """Say why a reply to a training message cannot be used; None where it can.

        It is read alone, so `last` is empty afterwards.
        """
        self.last = RoundReplies()
        width = sum(math.prod(shape) for shape in self.shapes.values())
        try:
            self._read_metrics(self.roster.name_of(reply.metadata.src_node_id), reply)
            self._read_trunk(reply, np.empty(width, np.result_type(*self.dtypes.values())))
        except MalformedReplyError as fault:
            return str(fault)
        return None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address the trunk to all clients."""
        return self._messages(self.roster.names, arrays, config, MessageType.EVALUATE)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the inner strategy combine the well-formed trunks; None where there is none.

        Flower's `FedAvg` is a weighted mean, done here as one product, which saves a message and
        two rounds of serialisation per client.
        """
        accepted = self._sift(replies, with_arrays=True)
        if not accepted:
            return None, None
        examples = np.array(list(self.last.examples.values()))
        rows, kept = self._stand_in(self._rows[: len(accepted)], examples, list(self.last.examples))
        if type(self.inner) is FedAvg and all(t == "float32" for t in self.dtypes.values()):
            mean = self._mean(rows, examples, np.ones(len(rows), dtype=bool))
            return pack_arrays(self._cut(mean) | kept), None
        alike = [
            self._for_inner(reply, count, row)
            for reply, count, row in zip(accepted, examples.tolist(), rows, strict=True)
        ]
        arrays, _ = self.inner.aggregate_train(server_round, alike)
        if arrays is None:
            return None, None
        # Averaging turns integer arrays into float64; the next round needs the trunk's own types.
        restored = {name: np.array(arrays[name].numpy(), self.dtypes[name]) for name in self.shapes}
        return pack_arrays(restored | kept), None

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Keep the well-formed evaluations in `last`."""
        self._sift(replies, with_arrays=False)
        return None

    def combine(
        self, server_round: int, trunk: Mapping[str, FloatArray], replies: BulkReplies
    ) -> dict[str, FloatArray] | None:
        """Combine trunks that came as rows of one matrix; None where none is usable.

        Flower's `FedAvg` is a weighted mean, done here as one product; any other inner strategy
        gets the messages that the clients would have sent.

        Args:
            server_round: the round.
            trunk: what was sent.
            replies: what came back.
        """
        if replies.rows is None:
            raise ShapeError("replies to a training round hold trunks")
        self._before = trunk
        faults = self.leave_out(replies)
        everybody = np.ones(len(replies.clients), dtype=bool)
        mean = self._mean(replies.rows, replies.examples, everybody)
        plain = type(self.inner) is FedAvg and not self._parts.columns
        if not faults and plain and np.isfinite(mean).all():
            return self._cut(mean)  # what is not finite in any row is not finite in the mean
        usable = np.asarray(np.isfinite(replies.rows).all(axis=1), dtype=bool)
        for place, name in enumerate(replies.clients):
            if name in faults:
                usable[place] = False
            elif not usable[place]:
                self._leave_out(name, f"the trunk holds {NO_NUMBER}")
        if not usable.any():
            return None
        if type(self.inner) is not FedAvg:
            return self._combine_messages(server_round, replies, replies.rows, usable)
        rows, kept = self._stand_in(replies.rows, replies.examples * usable, replies.clients)
        return self._cut(self._mean(rows, replies.examples, usable)) | kept

    def leave_out(self, replies: BulkReplies) -> dict[str, str]:
        """Leave out the clients whose sums are not finite; client -> reason."""
        self.last = RoundReplies()
        for name, reason in replies.sums.faults().items():
            self._leave_out(name, reason)
        return dict(self.last.left_out)

    def _leave_out(self, name: str, reason: str) -> None:
        self.last.left_out[name] = reason
        logger.warning("%s left out: %s", name, reason)

    def _mean(
        self, rows: FloatArray, examples: NDArray[np.int64], usable: NDArray[np.bool_]
    ) -> FloatArray:
        """Average the usable rows, [K, Q] -> [Q]."""
        weights = usable * self._weights(examples)
        if not usable.all():
            rows = np.where(usable[:, None], rows, 0)  # 0 times NaN is NaN
        mean: FloatArray = (weights / weights.sum()).astype(np.float32) @ rows
        return mean

    def _weights(self, examples: NDArray[np.int64]) -> NDArray[np.int64]:
        by_examples = self.experiment.federation.weight_by == "examples"
        return examples if by_examples else np.sign(examples)

    def _stand_in(
        self, rows: FloatArray, examples: NDArray[np.int64], clients: Sequence[str]
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Let tasks' parts be decided by their holders; also returns what stays as it was."""
        rows, unheld = self._parts.stand_in(rows, self._weights(examples), clients)
        return rows, {name: self._before[name] for name in unheld}

    def _combine_messages(
        self,
        server_round: int,
        replies: BulkReplies,
        rows: FloatArray,
        usable: NDArray[np.bool_],
    ) -> dict[str, FloatArray] | None:
        """Send the inner strategy what the clients of the usable rows would have sent."""
        messages = []
        for place in np.flatnonzero(usable).tolist():
            node_id = self.roster.node_ids[replies.clients[place]]
            asked = Message(RecordDict(), node_id, MessageType.TRAIN)
            metrics = MetricRecord({EXAMPLES: int(replies.examples[place])})
            arrays = pack_arrays(self._cut(rows[place]))
            content = RecordDict({ARRAYS: arrays, METRICS_KEY: metrics})
            messages.append(Message(content, reply_to=asked))
        left_out = self.last.left_out
        combined, _ = self.aggregate_train(server_round, messages)
        self.last.left_out |= left_out
        return None if combined is None else unpack_arrays(combined)

    def _cut(self, row: FloatArray) -> dict[str, FloatArray]:
        """Cut a flat trunk into its arrays."""
        arrays, start = {}, 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            arrays[name] = row[start:stop].reshape(shape)
            start = stop
        return arrays

    def summary(self) -> None:
        """Log the inner strategy's settings."""
        self.inner.summary()

    def _messages(
        self, names: Iterable[str], arrays: ArrayRecord, config: ConfigRecord, kind: str
    ) -> list[Message]:
        content = RecordDict({ARRAYS: arrays, CONFIG: config})
        return [Message(content, self.roster.node_ids[name], kind) for name in names]

    def _sift(self, replies: Iterable[Message], *, with_arrays: bool) -> list[Message]:
        """Take in the good replies, in the order of their clients' names; note the others."""
        self.last = RoundReplies()
        accepted: list[Message] = []
        named = [(self.roster.name_of(reply.metadata.src_node_id), reply) for reply in replies]
        if with_arrays and self._rows.shape[0] < len(named):
            width = sum(math.prod(shape) for shape in self.shapes.values())
            dtype = np.result_type(*self.dtypes.values()) if self.dtypes else np.float32
            self._rows = np.empty((len(named), width), dtype)
        for name, reply in sorted(named, key=lambda pair: pair[0]):
            try:
                examples, sums = self._read_metrics(name, reply)
                if with_arrays:
                    self._read_trunk(reply, self._rows[len(accepted)])
            except MalformedReplyError as fault:
                self._leave_out(name, str(fault))
                continue
            self.last.examples[name], self.last.sums[name] = examples, sums
            accepted.append(reply)
        return accepted

    def _for_inner(self, reply: Message, examples: int, row: FloatArray) -> Message:
        """Hand on the trunk and one weight: the inner strategy wants equal keys from everyone."""
        weight = int(self._weights(np.array(examples)))
        arrays = pack_arrays(self._cut(row)) if self._parts.columns else reply.content[ARRAYS]
        content = RecordDict(
            {
                ARRAYS: arrays,
                METRICS_KEY: MetricRecord({EXAMPLES: weight}),
            }
        )
        return Message(content, metadata=reply.metadata)  # type: ignore[call-overload, no-any-return]

    def _read_metrics(self, name: str, reply: Message) -> tuple[int, SplitSums]:
        """Read a reply's number of examples and its sums.

        Raises:
            MalformedReplyError: says what is wrong with it.
        """
        if reply.has_error():
            raise MalformedReplyError(reason_of(reply))
        if name in self.last.examples:
            raise MalformedReplyError("answered twice; the first answer counts")
        if name not in self.roster.node_ids:
            raise MalformedReplyError("not on the roster")
        metrics = metrics_of(reply.content)
        if metrics is None:
            raise MalformedReplyError("the reply holds no metrics")
        examples = metrics.get(EXAMPLES)
        if not isinstance(examples, int) or not 0 < examples <= MOST_EXAMPLES:
            raise MalformedReplyError(
                f"{EXAMPLES} must be a positive whole number up to {MOST_EXAMPLES}, got "
                f"{examples!r}"
            )
        sums = unpack_sums(metrics)
        for split, tasks in sums.items():
            for task, numbers in tasks.items():
                fault = self._form.fault(task, numbers)
                if fault:
                    raise MalformedReplyError(f"{split} sums of task {task}: {fault}")
        return examples, sums

    def _read_trunk(self, reply: Message, row: FloatArray) -> None:
        """Copy a reply's trunk into a row, in the trunk's own order.

        Raises:
            MalformedReplyError: says why it is not exactly the trunk.
        """
        arrays = arrays_of(reply.content)
        records = sum(isinstance(record, ArrayRecord) for record in reply.content.values())
        if arrays is None or records != 1:
            raise MalformedReplyError("the reply does not hold exactly one trunk")
        if arrays.keys() != self.shapes.keys():
            extra, missing = set(arrays) - set(self.shapes), set(self.shapes) - set(arrays)
            raise MalformedReplyError(
                f"not the trunk: extra {sorted(extra)}, missing {sorted(missing)}"
            )
        start = 0
        for key, shape in self.shapes.items():
            try:
                values = read_array(arrays[key])
            except ValueError:
                raise MalformedReplyError(f"{key} cannot be read as an array") from None
            if values.shape != shape:
                raise MalformedReplyError(
                    f"{key} has shape {tuple(values.shape)}, the trunk has {shape}"
                )
            if values.dtype != self.dtypes[key]:
                raise MalformedReplyError(
                    f"{key} is {values.dtype}, the trunk is {self.dtypes[key]}"
                )
            row[start : start + values.size] = values.reshape(-1)
            start += values.size
        if not np.isfinite(row).all():
            raise MalformedReplyError(f"the trunk holds {NO_NUMBER}")


def make_strategy(experiment: Experiment, roster: Roster, trunk: ArrayRecord) -> TrunkStrategy:
    """Make the strategy that the experiment names."""
    inner = STRATEGIES[experiment.federation.strategy](
        weighted_by_key=EXAMPLES, arrayrecord_key=ARRAYS, configrecord_key=CONFIG
    )
    return TrunkStrategy(inner, experiment, roster, trunk)
