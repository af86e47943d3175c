"""One round's replies: read, checked, and laid out as rows; what cannot be used is left out."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, Message

from common.experiment import Experiment
from common.sums_form import SumsForm
from common.wire import (
    EXAMPLES,
    FloatArray,
    SplitSums,
    arrays_of,
    metrics_of,
    read_array,
    reason_of,
    unpack_sums,
)
from server.bulk import BulkReplies
from server.client_weights import MOST_EXAMPLES
from server.flat_trunk import FlatTrunk
from server.roster import Roster

logger = logging.getLogger("fedmtl.server")
NO_NUMBER = "NaN or infinity; a smaller training.lr may help"


class MalformedReplyError(Exception):
    """A reply cannot be used; the message says why."""


@dataclass
class RoundReplies:
    """What a round's replies came to, by client name.

    Attributes:
        examples: accepted clients -> training rows; empty for replies of an engine in bulk.
        sums: accepted clients -> sums and counts per split and task; likewise.
        left_out: other clients -> the reason.
        faulty: those left out whose own reply came and could not be used; a refusal, or silence,
            is none.
        loss: why the rule left the trunk as it was; empty where it did not.
        notes: what else the round's record is to tell of how trunks were combined.
    """

    examples: dict[str, int] = field(default_factory=dict)
    sums: dict[str, SplitSums] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    faulty: set[str] = field(default_factory=set)
    loss: str = ""
    notes: list[str] = field(default_factory=list)

    def leave_out(self, name: str, reason: str, *, is_faulty: bool = True) -> None:
        """Note, and log, that a client's reply is not used."""
        self.left_out[name] = reason
        if is_faulty:
            self.faulty.add(name)
        logger.warning("%s left out: %s", name, reason)


class ReplyReader:
    """Reads replies that may hold anything.

    A reply that is not exactly the trunk (names, shapes, finite numbers, a positive number of
    examples, sums of known tasks) is left out with a warning that names the client and the reason.

    Args:
        experiment: tasks and metrics.
        roster: names of nodes.
        form: what the trunk looks like.
    """

    def __init__(self, experiment: Experiment, roster: Roster, form: FlatTrunk) -> None:
        self.roster, self.form = roster, form
        self._sums = SumsForm(experiment)
        # The accepted trunks, flat; kept, because fresh memory costs a page fault per page.
        self._rows = np.empty((0, 0), np.float32)

    def read(
        self, replies: Iterable[Message], *, with_arrays: bool
    ) -> tuple[RoundReplies, FloatArray]:
        """Take in the good replies, in the order of their clients' names.

        Returns:
            Who said what, and the accepted trunks, [K, Q] with control variates behind, good until
            the next call; [K, 0] without arrays.
        """
        found = RoundReplies()
        named = [(self.roster.name_of(reply.metadata.src_node_id), reply) for reply in replies]
        rows = self._get_rows(len(named)) if with_arrays else np.empty((len(named), 0), np.float32)
        for name, reply in sorted(named, key=lambda pair: pair[0]):
            try:
                examples, sums = self._read_metrics(name, reply, found)
                if with_arrays:
                    self._read_trunk(reply, rows[len(found.examples)])
            except MalformedReplyError as fault:
                is_own = name in self.roster.node_ids and name not in found.examples
                found.leave_out(name, str(fault), is_faulty=is_own and not reply.has_error())
                continue
            found.examples[name], found.sums[name] = examples, sums
        return found, rows[: len(found.examples)]

    def find_fault(self, reply: Message) -> str | None:
        """Say why a reply to a training message, read alone, cannot be used; None where it can."""
        name = self.roster.name_of(reply.metadata.src_node_id)
        try:
            self._read_metrics(name, reply, RoundReplies())
            self._read_trunk(reply, np.empty(self.form.full_width, self.form.dtype))
        except MalformedReplyError as fault:
            return str(fault)
        return None

    def _get_rows(self, count: int) -> FloatArray:
        if self._rows.shape[0] < count:
            self._rows = np.empty((count, self.form.full_width), self.form.dtype)
        return self._rows[:count]

    def _read_metrics(
        self, name: str, reply: Message, found: RoundReplies
    ) -> tuple[int, SplitSums]:
        """Read a reply's number of examples and its sums.

        Raises:
            MalformedReplyError: says what is wrong with it.
        """
        if reply.has_error():
            raise MalformedReplyError(reason_of(reply))
        if name in found.examples:
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
                fault = self._sums.fault(task, numbers)
                if fault:
                    raise MalformedReplyError(f"{split} sums of task {task}: {fault}")
        return examples, sums

    def _read_trunk(self, reply: Message, row: FloatArray) -> None:
        """Copy a reply's trunk into a row, in the trunk's own order.

        Raises:
            MalformedReplyError: says why it is not exactly the trunk.
        """
        shapes, dtypes = self.form.shapes, self.form.dtypes
        arrays = arrays_of(reply.content)
        records = sum(isinstance(record, ArrayRecord) for record in reply.content.values())
        if arrays is None or records != 1:
            raise MalformedReplyError("the reply does not hold exactly one trunk")
        if arrays.keys() != shapes.keys():
            extra, missing = set(arrays) - set(shapes), set(shapes) - set(arrays)
            raise MalformedReplyError(
                f"not the trunk: extra {sorted(extra)}, missing {sorted(missing)}"
            )
        start = 0
        for key, shape in shapes.items():
            try:
                values = read_array(arrays[key])
            except ValueError:
                raise MalformedReplyError(f"{key} cannot be read as an array") from None
            if values.shape != shape:
                raise MalformedReplyError(
                    f"{key} has shape {tuple(values.shape)}, the trunk has {shape}"
                )
            if values.dtype != dtypes[key]:
                raise MalformedReplyError(f"{key} is {values.dtype}, the trunk is {dtypes[key]}")
            row[start : start + values.size] = values.reshape(-1)
            start += values.size
        if not np.isfinite(row).all():
            raise MalformedReplyError(f"the trunk holds {NO_NUMBER}")


def row_faults(replies: BulkReplies) -> dict[str, str]:
    """Say whose trunks, of an engine's rows, are not finite; client -> why."""
    if replies.rows is None:
        return {}
    finite = np.isfinite(replies.rows).all(axis=1)
    places = np.flatnonzero(~finite).tolist()
    return {replies.clients[place]: f"the trunk holds {NO_NUMBER}" for place in places}


def read_sums(replies: BulkReplies) -> RoundReplies:
    """Leave out the clients of an engine whose sums are not finite."""
    found = RoundReplies()
    for name, reason in replies.sums.faults().items():
        found.leave_out(name, reason)
    return found
