"""Who is connected, by stable name, and what their descriptions agreed on.

Flower's node ids are fresh random numbers in every run. Clients are therefore asked once for their
description, which carries a stable name; sampling and sorting go by that name, so that two runs
with one seed pick the same clients on every engine.
"""

import logging
import time
from collections.abc import Iterable
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
from common.errors import ConfigError, DataError
from common.experiment import Experiment
from common.wire import CONFIG, Instruction, config_of

logger = logging.getLogger("fedmtl.server")
POLL_S = 0.5


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
    """

    experiment: Experiment
    node_ids: dict[str, int] = field(default_factory=dict)
    descriptions: dict[str, Description] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    agreement: Agreement | None = None
    _told: bool = False  # whether `require` has dealt with the first refusals
    _by_id: dict[int, str] = field(default_factory=dict)
    _seen: set[int] = field(default_factory=set)

    @property
    def names(self) -> list[str]:
        """Names of the clients that can serve, sorted."""
        return sorted(self.node_ids)

    @property
    def asked_per_round(self) -> int:
        """How many clients a round asks."""
        wanted, there = self.experiment.federation.clients_per_round, len(self.node_ids)
        return there if wanted == "all" else min(wanted, there)

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
        unknown = sorted(set(grid.get_node_ids()) - self._seen)
        if not unknown:
            return
        text = self.experiment.model_dump_json(by_alias=True)
        content = RecordDict({CONFIG: Instruction(text).to_record()})
        messages = [Message(content, node_id, MessageType.QUERY) for node_id in unknown]
        replies = list(grid.send_and_receive(messages, timeout=timeout_s))
        self._seen |= {reply.metadata.src_node_id for reply in replies}
        self._admit(self._read(replies))

    def _read(self, replies: Iterable[Message]) -> dict[int, Description]:
        met: dict[int, Description] = {}
        for reply in replies:
            node_id = reply.metadata.src_node_id
            if reply.has_error():
                self._refuse(f"node {node_id}", reply.error.reason or "no reason given")
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
            else:
                self.node_ids[description.client] = node_id
                self._by_id[node_id] = description.client
                self.descriptions[description.client] = description

    def _misfit(self, description: Description) -> str | None:
        if description.client in self.node_ids:
            return "another node has this name; give each node a name of its own"
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
    logger.warning("%s takes no part: %s", who, reason)
