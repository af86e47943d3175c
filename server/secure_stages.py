"""The four stages of one secure aggregation; clients may drop out at any of them.

Bell et al., "Secure single-server aggregation with (poly)logarithmic overhead", CCS 2020. The
records are described in `common.secure_aggregation.records`.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random, SystemRandom
from secrets import token_hex

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from common.secure_aggregation.contribution import settings_of
from common.secure_aggregation.graph import count_least, count_needed, draw_neighbours
from common.secure_aggregation.keys import PublicKeys, TamperedError, Words
from common.secure_aggregation.records import (
    KEYS,
    SECURE,
    SHARES,
    UNMASK,
    MalformedRecordError,
    pack_peers,
    pack_staying,
    secure_of,
    unpack_dealt,
    unpack_keys,
    unpack_masked,
    unpack_uncovered,
)
from common.secure_aggregation.server import BelowThresholdError, ServerMachine
from common.wire import CONFIG, Instruction, reason_of, size_bytes
from server.closing import SILENT
from server.roster import Roster

logger = logging.getLogger("fedmtl.server")
Ask = Callable[[list[Message]], list[Message]]  # sends messages, gives the replies in time


@dataclass
class Gathered:
    """What came of an exchange.

    Attributes:
        words: the sums of the vectors, in their order; empty where there are none.
        staying: names of the clients whose vectors are in the sums.
        left_out: other clients -> why.
        replies: to the messages to train or evaluate, of those who stayed.
        sent_bytes: payload sent, over all stages.
        received_bytes: payload received.
        loss: why there are no sums.
    """

    words: list[Words] = field(default_factory=list)
    staying: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    replies: list[Message] = field(default_factory=list)
    sent_bytes: int = 0
    received_bytes: int = 0
    loss: str = ""


class Stages:
    """One exchange with some clients.

    Args:
        ask: reaches them; called once a stage.
        roster: their nodes.
        clients: their names.
        instruction: of the round, with the number of clients.
        random: draws the graph of neighbours; left out, the system's entropy does.
    """

    def __init__(
        self,
        ask: Ask,
        roster: Roster,
        clients: Sequence[str],
        instruction: Instruction,
        random: Random | None = None,
    ) -> None:
        self.ask, self.roster, self.clients = ask, roster, sorted(clients)
        self.instruction, self.random = instruction, random or SystemRandom()
        self.settings = settings_of(roster.experiment)
        asked, threshold = len(clients), self.settings.threshold
        self.machine = ServerMachine(
            token_hex(16),
            count_needed(asked, self.settings.neighbours, threshold),
            count_least(asked, threshold),
        )
        self.config = instruction.to_record()
        self.found = Gathered()
        self._places: dict[str, int] = {}
        self._is_closing = False  # who fails now is in the sum all the same

    def run(
        self, kind: str, arrays: ArrayRecord, widths: Mapping[str, int], wanted: int = 0
    ) -> Gathered:
        """Do all stages.

        Args:
            kind: type of the message that the masked vectors answer.
            arrays: what goes with it.
            widths: "update" and "sums" -> words of each vector.
            wanted: vectors without which the round is lost, and nothing is uncovered.
        """
        try:
            self._meet()
            self._deal()
            self._collect(kind, arrays, widths)
            self.found.loss = too_few(wanted, len(self.machine.staying))
            if not self.found.loss:
                self._uncover()
                self.found.words = self.machine.total()
        except BelowThresholdError as error:
            self.found.loss = f"secure aggregation: {error}"
        names = {place: name for name, place in self._places.items()}
        self.found.staying = [names[place] for place in sorted(self.machine.staying)]
        for (holder, owner), what in self.machine.wrong.items():
            logger.warning("%s's share of %s's secret %s", names[holder], names[owner], what)
        return self.found

    def _meet(self) -> None:
        """Collect public keys, and draw who shares masks with whom."""
        alike = RecordDict(
            {CONFIG: self.config, SECURE: ConfigRecord({"exchange": self.machine.exchange})}
        )
        replies = self._stage(KEYS, dict.fromkeys(self.clients, alike))
        keys: dict[str, PublicKeys] = {}
        for name in sorted(replies):
            with self._leaving_out(name):
                keys[name] = unpack_keys(secure_of(replies[name].content))
        self._places = {name: place for place, name in enumerate(keys, 1)}
        neighbours = draw_neighbours(len(keys), self.settings.neighbours, self.random)
        self.machine.meet({self._places[n]: k for n, k in keys.items()}, neighbours)

    def _deal(self) -> None:
        """Have shares dealt out."""
        contents = {}
        for name, place in self._places.items():
            peers = {other: self.machine.keys[other] for other in self.machine.neighbours[place]}
            record = pack_peers(self.machine.exchange, place, peers)
            contents[name] = RecordDict({CONFIG: self.config, SECURE: record})
        for name, reply in self._stage(SHARES, contents).items():
            with self._leaving_out(name):
                dealt = unpack_dealt(secure_of(reply.content))
                if not self.machine.take_shares(self._places[name], dealt):
                    raise MalformedRecordError("shares are not for the neighbours it was named")
        self.machine.close_shares()

    def _collect(self, kind: str, arrays: ArrayRecord, widths: Mapping[str, int]) -> None:
        """Have those who dealt train or evaluate, and add up their masked vectors."""
        dealers = sorted(self.machine.dealt)
        record = ConfigRecord({"exchange": self.machine.exchange, "dealers": dealers})
        alike = RecordDict({"arrays": arrays, CONFIG: self.config, SECURE: record})
        names = self._names(dealers)
        for name, reply in self._stage(kind, dict.fromkeys(names, alike)).items():
            with self._leaving_out(name):
                words = unpack_masked(reply.content, widths)
                self.machine.add(self._places[name], words)
                self.found.replies.append(reply)
        self.machine.close_masks()

    def _uncover(self) -> None:
        """Collect the shares that take the masks off."""
        staying = sorted(self.machine.staying)
        contents = {}
        for name in self._names(staying):
            sealed = self.machine.sealed_for(self._places[name])
            record = pack_staying(self.machine.exchange, staying, sealed)
            contents[name] = RecordDict({CONFIG: self.config, SECURE: record})
        self._is_closing = True
        for name, reply in self._stage(UNMASK, contents).items():
            with self._leaving_out(name):
                uncovered = unpack_uncovered(secure_of(reply.content))
                self.machine.take_uncovered(self._places[name], uncovered)

    def _names(self, places: Collection[int]) -> list[str]:
        return [name for name, place in self._places.items() if place in places]

    def _stage(self, kind: str, contents: Mapping[str, RecordDict]) -> dict[str, Message]:
        """Send a message to each of some clients; returns name -> reply, of those that answered."""
        nodes = self.roster.node_ids
        messages = [Message(content, nodes[name], kind) for name, content in contents.items()]
        self.found.sent_bytes += sum(map(_sizes(), contents.values()))
        answered: dict[str, Message] = {}
        for reply in self.ask(messages):
            name = self.roster.name_of(reply.metadata.src_node_id)
            if reply.has_error():
                self._leave_out(name, reason_of(reply))
            elif name in contents and name not in answered:
                self.found.received_bytes += size_bytes(reply.content)
                answered[name] = reply
        for name in contents.keys() - answered.keys() - self.found.left_out.keys():
            self._leave_out(name, f"{SILENT} ({kind})")
        return answered

    def _leave_out(self, name: str, reason: str) -> None:
        if self._is_closing:
            logger.warning("%s uncovers nothing: %s", name, reason)
            return
        self.found.left_out[name] = reason
        logger.warning("%s left out: %s", name, reason)

    def _leaving_out(self, name: str) -> "_LeavingOut":
        return _LeavingOut(self, name)


def too_few(wanted: int, there: int) -> str:
    """Say why a round with so few replies is lost; empty where it is not."""
    return f"usable replies: {there}, needed: {wanted}" if there < wanted else ""


class _LeavingOut:
    """Leaves a client out whose reply is not of its stage's form."""

    def __init__(self, stages: Stages, name: str) -> None:
        self.stages, self.name = stages, name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, (MalformedRecordError, TamperedError)):
            return False
        self.stages._leave_out(self.name, str(error))
        return True


def _sizes() -> Callable[[RecordDict], int]:
    """Count contents' bytes, once where messages share one."""
    known: dict[int, int] = {}

    def size(content: RecordDict) -> int:
        if id(content) not in known:
            known[id(content)] = size_bytes(content)
        return known[id(content)]

    return size
