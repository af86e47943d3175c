"""Who is connected, by stable name, and what their descriptions agreed on.

Flower's node ids are random numbers. Clients are therefore asked once for their description, which
carries a stable name; sampling and sorting go by that name, so that two runs with one seed pick the
same clients on every engine.

Nodes come and go. Who is offline as a round starts is not asked. Who comes back is there again:
under the old id, or, where a node without authentication was restarted, under a new id with the old
name.
"""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from common.agreement import (
    Agreement,
    Description,
    agree,
    disagreement,
    missing_task,
    require_clients,
    require_labels,
)
from common.errors import ClientsMissingError, ConfigError, DataError
from common.experiment import Experiment
from common.wire import CONFIG, Instruction, config_of, reason_of
from server.patient_grid import BY_CODE, SLACK_S

logger = logging.getLogger("fedmtl.server")
POLL_S = 0.5
PATIENCE_S = 300.0  # at the start: how long one silent node can hold up those that have answered
TAKEN = "another node has this name; give each node a name of its own"


@dataclass
class Roster:
    """The clients that take part.

    Attributes:
        experiment: the resolved experiment.
        node_ids: stable name -> Flower's node id, for clients that can serve.
        descriptions: stable name -> what the client said of its data.
        refused: node -> why it takes no part; nodes are named where they gave a name.
        left_out: stable name -> why the client takes no part although the experiment allows it.
        agreement: what all serve by; None before the first clients were met.
        absent: stable names of clients that can serve, but whose nodes are offline.
    """

    experiment: Experiment
    node_ids: dict[str, int] = field(default_factory=dict)
    descriptions: dict[str, Description] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    agreement: Agreement | None = None
    absent: set[str] = field(default_factory=set)
    _told: bool = False  # whether `require` has dealt with the first refusals
    _by_id: dict[int, str] = field(default_factory=dict)
    _seen: set[int] = field(default_factory=set)
    _asked: dict[str, tuple[int, float]] = field(default_factory=dict)  # query -> node, when
    _rivals: dict[int, Description] = field(default_factory=dict)  # nodes whose name is taken

    @property
    def names(self) -> list[str]:
        """Names of the clients that can serve and are online, sorted."""
        return sorted(self.node_ids.keys() - self.absent)

    @property
    def asked_per_round(self) -> int:
        """How many clients a round asks."""
        wanted, there = self.experiment.federation.clients_per_round, self.count
        return there if wanted == "all" else min(wanted, there)

    @property
    def count(self) -> int:
        """How many clients can serve and are online."""
        return len(self.node_ids) - len(self.absent)

    def holds(self, name: str, task: str) -> bool:
        """Whether a client has training labels of a task."""
        return self.descriptions[name].labelled.get(task, 0) > 0

    def name_of(self, node_id: int) -> str:
        """Name a node, or its id where it is not on the roster."""
        return self._by_id.get(node_id, f"node {node_id}")

    def wait_for(self, grid: Grid, count: int, timeout_s: float) -> None:
        """Wait until so many nodes are connected.

        Raises:
            ConfigError: they were not within the time.
        """
        end = time.monotonic() + timeout_s
        while (connected := len(list(grid.get_node_ids()))) < count:
            if time.monotonic() > end:
                raise ConfigError(
                    f"federation: {count} clients are needed, {connected} connected within "
                    f"{timeout_s:.0f} s; start more nodes, or lower federation.min-clients "
                    "and federation.clients-per-round"
                )
            time.sleep(POLL_S)

    def meet(self, grid: Grid, timeout_s: float) -> None:
        """Ask nodes not met before for their descriptions and take in those that fit."""
        unknown = sorted(self._look(grid) - self._seen)
        if unknown:
            replies = list(grid.send_and_receive(self._queries(unknown), timeout=timeout_s))
            self._seen |= {reply.metadata.src_node_id for reply in replies}
            self._admit(self._read(replies))

    def settle(self, grid: Grid, needed: int, timeout_s: float) -> None:
        """Meet the nodes of a deployment, before the first round.

        All who are online are waited for, because what they agree on is made of what they say;
        but once there are enough, a node that does not answer holds them up for `PATIENCE_S` only.
        """
        start, met = time.monotonic(), dict[int, Description]()
        while True:
            met |= self._hear(grid, timeout_s)
            waited = time.monotonic() - start
            answered = not self._asked and len(met) + len(self.refused) >= needed
            enough = len(met) >= needed and waited >= PATIENCE_S
            if answered or enough or waited >= timeout_s:
                break
            time.sleep(POLL_S)
        for node_id, _ in self._asked.values():
            logger.warning("node %d has not answered yet; it may join later", node_id)
        self._admit(met)

    def greet(self, grid: Grid, timeout_s: float) -> None:
        """See who is online, and get to know newcomers, without waiting for their answers.

        An answer is taken in by a later call; a node whose answer is lost is asked again.
        """
        self._admit(self._hear(grid, timeout_s))

    def gather(
        self, grid: Grid, needed: int, timeout_s: float, tell: Callable[[int], None]
    ) -> bool:
        """Greet until enough clients are there.

        Args:
            grid: Flower's way to the clients.
            needed: how many clients must be there.
            timeout_s: how long to wait for them.
            tell: called once with the number that are there, if they are too few.

        Returns:
            Whether they had to be waited for.

        Raises:
            ClientsMissingError: they were not there within the time.
        """
        end, told = time.monotonic() + timeout_s, False
        self.greet(grid, timeout_s)
        while self.count < needed:
            if not told:
                tell(self.count)
                told = True
            if time.monotonic() >= end:
                raise ClientsMissingError(
                    f"federation.min-clients: {needed} clients are needed, {self.count} are "
                    f"connected after {timeout_s:.0f} s; start more nodes, then go on from the "
                    "last checkpoint"
                )
            time.sleep(POLL_S)
            self.greet(grid, timeout_s)
        return told

    def _queries(self, node_ids: Iterable[int], timeout_s: float | None = None) -> list[Message]:
        text = self.experiment.for_clients()
        content = RecordDict({CONFIG: Instruction(text).to_record()})
        ttl = None if timeout_s is None else timeout_s + SLACK_S
        return [Message(content, node_id, MessageType.QUERY, ttl=ttl) for node_id in node_ids]

    def _look(self, grid: Grid) -> set[int]:
        """Ask who is online, and note who is absent."""
        online = set(grid.get_node_ids())
        gone = self._by_id.keys() - online
        absent = {name for i in gone if self.node_ids.get(name := self._by_id[i]) == i}
        for name in sorted(absent - self.absent):
            logger.info("%s is offline", name, extra={"event": "left", "client": name})
        for name in sorted(self.absent - absent):
            logger.info("%s is back", name, extra={"event": "back", "client": name})
        self.absent = absent
        return online

    def _hear(self, grid: Grid, timeout_s: float) -> dict[int, Description]:
        """Ask the nodes that are new, and collect what earlier ones have answered by now."""
        online, now = self._look(grid), time.monotonic()
        # Who was refused, went away and is back may have mended what was wrong.
        self._seen &= online | self._by_id.keys()
        # A node that was restarted never sees the question that the one before was asked.
        self._asked = {
            query: (node_id, since)
            for query, (node_id, since) in self._asked.items()
            if node_id in online and now - since < timeout_s
        }
        waiting = {node_id for node_id, _ in self._asked.values()}
        unknown = sorted(online - self._seen - waiting)
        if unknown:
            queries = self._queries(unknown, timeout_s)
            taken = set(grid.push_messages(queries))
            ids = {str(query.metadata.message_id): query.metadata.dst_node_id for query in queries}
            self._asked |= {i: (node_id, now) for i, node_id in ids.items() if i in taken}
        replies = list(grid.pull_messages(list(self._asked))) if self._asked else []
        for reply in replies:
            self._asked.pop(reply.metadata.reply_to_message_id, None)
        heard = [reply for reply in replies if not _is_lost(reply)]
        self._seen |= {reply.metadata.src_node_id for reply in heard}
        rivals = {i: d for i, d in self._rivals.items() if i in online and self._is_free(d.client)}
        for node_id in rivals:
            del self._rivals[node_id]
        return rivals | self._read(heard)

    def _is_free(self, name: str) -> bool:
        return name not in self.node_ids or name in self.absent

    def _read(self, replies: Iterable[Message]) -> dict[int, Description]:
        met: dict[int, Description] = {}
        for reply in replies:
            node_id = reply.metadata.src_node_id
            if reply.has_error():
                self._refuse(f"node {node_id}", reason_of(reply))
                continue
            try:
                record = config_of(reply.content)
                met[node_id] = Description.from_json(str(record["description"]))
            except (KeyError, ValueError, TypeError) as error:
                self._refuse(f"node {node_id}", f"unreadable description ({type(error).__name__})")
        return met

    def _admit(self, met: dict[int, Description]) -> None:
        if self.agreement is None and met:
            self.agreement = agree(list(met.values()), self.experiment)
        for node_id, description in sorted(met.items(), key=lambda item: item[1].client):
            if description.left_out:
                self.left_out[description.client] = description.left_out
                logger.info("%s is left out: %s", description.client, description.left_out)
                continue
            reason = self._misfit(description)
            if reason:
                self._refuse(description.client, reason)
                if reason == TAKEN:
                    self._rivals[node_id] = description
            else:
                self._take_in(node_id, description)

    def _take_in(self, node_id: int, description: Description) -> None:
        name = description.client
        self.refused.pop(name, None)
        self.absent.discard(name)
        self.node_ids[name], self._by_id[node_id] = node_id, name
        self.descriptions[name] = description
        logger.info(
            "%s takes part: %d training rows",
            name,
            description.examples.get("train", 0),
            extra={"event": "met", "client": name, "node": node_id},
        )

    def _misfit(self, description: Description) -> str | None:
        if not self._is_free(description.client):
            return TAKEN
        if self.agreement is None:
            raise DataError("no client has been met; there is nothing to compare with")
        return missing_task(description, self.experiment) or disagreement(
            description, self.agreement
        )

    def _refuse(self, who: str, reason: str) -> None:
        self.refused[who] = reason
        if self._told:
            _warn(who, reason)

    def require(self, strict: bool) -> None:
        """Check that the federation can start; where it can, warn of clients that were refused.

        Args:
            strict: refuse to start where any client was refused, as a simulation does.

        Raises:
            DataError: no client can serve; one was refused, under `strict`; nobody holds a task.
            ConfigError: more clients are asked for than exist, under `strict`.
        """
        if self.refused and (strict or not self.node_ids):
            raise DataError("\n".join(f"{who}: {why}" for who, why in sorted(self.refused.items())))
        self._told = True
        for who, why in self.refused.items():
            _warn(who, why)
        if not self.node_ids:
            raise DataError("no clients: nobody answered; start nodes, or check the data folder")
        require_labels(self.descriptions.values(), self.experiment)
        if strict:  # elsewhere clients may join later, and a refused one must not end the run
            require_clients(len(self.node_ids), self.experiment)


def _warn(who: str, reason: str) -> None:
    told = {"event": "refused", "client": who, "reason": reason}
    logger.warning("%s takes no part: %s", who, reason, extra=told)


def _is_lost(reply: Message) -> bool:
    """Tell whether an answer says nothing of the node, which should then be asked again."""
    return reply.has_error() and reply.error.code in BY_CODE
