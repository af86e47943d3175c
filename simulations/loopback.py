"""The loopback engine: a Flower `Grid` inside one process.

It hands every message to the real `ClientApp` and gives the reply back, so that server and client
run the code they run on Flower's own engines. Nothing is started and nothing is polled.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client.state import INFO, OWN, round_of
from common.wire import pack_arrays, unpack_arrays
from simulations.client_log import ClientLog, Own

RUN_ID = 1
FIRST_NODE = 1000  # node ids of simulated clients start here; Flower reserves small ones


class LoopbackGrid(Grid):
    """Delivers messages by calling the `ClientApp`, one client after another.

    Args:
        client_app: the app that answers.
        names: stable names of the clients; their order gives partition ids.
    """

    def __init__(self, client_app: ClientApp, names: Sequence[str]) -> None:
        self.client_app, self.names = client_app, tuple(names)
        self._contexts: dict[int, Context] = {}
        self._replies: dict[str, Message] = {}
        self._changed: set[int] = set()  # nodes that trained since the last checkpoint
        self._log = ClientLog()
        self._run = Run.create_empty(RUN_ID)
        # Flower's Message constructor asks for the identity of the task that it is called in.
        TaskIdentity.task_id = 1
        TaskIdentity.run_id = RUN_ID
        TaskIdentity.node_id = SUPERLINK_NODE_ID

    def set_run(self, run: Run) -> None:
        """Set the run; part of Flower's interface."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message; part of Flower's interface, `Message(...)` does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Name the simulated nodes."""
        return range(FIRST_NODE, FIRST_NODE + len(self.names))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver messages at once; their replies wait to be pulled."""
        ids = []
        for number, message in enumerate(messages, start=len(self._replies) + 1):
            ids.append(f"{time.monotonic_ns()}-{number}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self._replies[ids[-1]] = self.deliver(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Take the replies to these messages."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Deliver messages and collect the replies; clients past the timeout are not asked."""
        end = None if timeout is None else time.monotonic() + timeout
        replies = []
        for message in messages:
            if end is not None and time.monotonic() > end:
                break
            replies.append(self.deliver(message))
        return replies

    def deliver(self, message: Message) -> Message:
        """Let one client answer; an exception becomes an error reply, as on Flower's engines."""
        node_id = message.metadata.dst_node_id
        # The messages of a round share one content: a client gets records of its own. Arrays
        # are immutable bytes and need no copy.
        content = RecordDict({key: record.copy() for key, record in message.content.items()})
        if message.metadata.message_type == MessageType.TRAIN:
            self._changed.add(node_id)
        private = Message(content, metadata=message.metadata)  # type: ignore[call-overload]
        try:
            return self.client_app(private, self.context(node_id))
        except Exception as error:
            reason = type(error).__name__
            return Message(
                Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message
            )

    def context(self, node_id: int) -> Context:
        """Get a node's context, whose state lives as long as the grid."""
        if node_id not in self._contexts:
            self._contexts[node_id] = Context(
                run_id=RUN_ID,
                node_id=node_id,
                node_config={
                    "partition-id": node_id - FIRST_NODE,
                    "num-partitions": len(self.names),
                },
                state=RecordDict(),
                run_config={},
            )
        return self._contexts[node_id]

    def keep_clients(self, folder: Path, round_number: int) -> dict[str, str]:
        """Write what clients keep at home; returns role -> file name for the checkpoint."""
        changed, self._changed = self._changed, set()
        return self._log.append(
            folder,
            round_number,
            self.own_states(changed),
            lambda: self.own_states(self.known_nodes()),
            len(self.names),
        )

    def restore_clients(self, folder: Path, files: Mapping[str, str]) -> None:
        """Read what `keep_clients` wrote."""
        self.restore_states(self._log.restore(folder, files))

    def restore_states(self, states: Mapping[str, Own]) -> None:
        """Put back what clients kept at home."""
        places = {name: place for place, name in enumerate(self.names)}
        for client, own in states.items():
            state = self.context(FIRST_NODE + places[client]).state
            state[OWN] = pack_arrays(own.arrays)
            state[INFO] = ConfigRecord({"round": own.round, "client": client})

    def known_nodes(self) -> Iterable[int]:
        """Name the nodes that have a context."""
        return list(self._contexts)

    def close(self) -> None:
        """Let go of what the grid holds open; this one holds nothing."""

    def own_states(self, node_ids: Iterable[int]) -> dict[str, Own]:
        """Read what clients keep at home, those that keep anything; good until they train again."""
        states = {}
        for node_id in sorted(node_ids):
            context = self.context(node_id)
            number = round_of(context)
            if number is not None:
                arrays = unpack_arrays(cast(ArrayRecord, context.state[OWN]))
                states[self.names[node_id - FIRST_NODE]] = Own(number, arrays)
        return states
