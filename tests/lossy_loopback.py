"""The loopback engine with replies lost on purpose: what a run with faults must come to.

A reply can be lost before its client trained, whose heads then stay as they were, or afterwards,
when they have moved on. Which of the two happened on another host cannot be seen in the run's
record, so a run is right where it equals one of them.
"""

import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message, MessageType

from client.app import app
from client.session import close_sessions
from common.clients import open_clients
from common.experiment import Experiment
from common.wire import Instruction, config_of
from server.federation import federate
from server.run_folder import RunFolder
from simulations.client_log import ClientLog
from simulations.loopback import FIRST_NODE, LoopbackGrid

Losses = Mapping[tuple[int, str], str]  # (round, client) -> "before" or "after" it trained


class LossyGrid(LoopbackGrid):
    """Loses the replies it is told to."""

    def __init__(self, names: tuple[str, ...], losses: Losses) -> None:
        super().__init__(app, names)
        self.losses = losses

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        replies = []
        for message in messages:
            when = self._loss(message)
            if when != "before":
                reply = self.deliver(message)
                if when is None:
                    replies.append(reply)
        return replies

    def _loss(self, message: Message) -> str | None:
        if message.metadata.message_type != MessageType.TRAIN:
            return None
        number = Instruction.from_record(config_of(message.content)).round
        client = self.names[message.metadata.dst_node_id - FIRST_NODE]
        return self.losses.get((number, client))


def simulate_losses(experiment: Experiment, out: Path, losses: Losses) -> None:
    """Run an experiment in this process with some replies lost."""
    grid = LossyGrid(open_clients(experiment).names, losses)
    folder = RunFolder(out)
    folder.create(experiment, "loopback")
    try:
        federate(grid, experiment, folder, strict=True, keep_clients=grid.keep_clients)
    finally:
        grid.close()
        close_sessions()


def ways_to_lose(
    lines: Iterable[Mapping[str, Any]], clients: Collection[str]
) -> Iterator[dict[tuple[int, str], str]]:
    """All that may have happened to the replies that a run's metrics.jsonl says are missing.

    Clients left out may have trained or not; clients that were offline and not asked have not, and
    the record says only how many they were.
    """
    for ways in itertools.product(*(_ways_of_round(line, clients) for line in lines)):
        yield {place: when for way in ways for place, when in way.items()}


def _ways_of_round(
    line: Mapping[str, Any], clients: Collection[str]
) -> list[dict[tuple[int, str], str]]:
    told, number = line["clients"], line["round"]
    lost = [(number, client) for client in told["left-out"] if client in clients]
    others = [(number, client) for client in clients if client not in told["left-out"]]
    return [
        {**dict(zip(lost, ways, strict=True)), **dict.fromkeys(absent, "before")}
        for absent in itertools.combinations(others, len(clients) - told["asked"])
        for ways in itertools.product(("before", "after"), repeat=len(lost))
    ]


def heads_at_home(run: Path) -> dict[str, dict[str, np.ndarray]]:
    """Client -> what it keeps at home at the end of a loopback run."""
    checkpoints = RunFolder(run).checkpoints()
    manifest = json.loads((checkpoints.folder / "checkpoint.json").read_text())
    states = ClientLog().restore(checkpoints.folder, manifest["files"])
    return {client: own.arrays for client, own in states.items()}
