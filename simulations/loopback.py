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

from client.place import SIMULATED
from client.state import INFO, OWN, round_of
from common.wire import ARRAYS, CONFIG, arrays_of, config_of, pack_arrays, unpack_arrays
from simulations.circumstances import PLAIN, BeforeRound, Circumstances
from simulations.client_log import ClientLog, Own, write_everybody

RUN_ID = 1
FIRST_NODE = 1000  # node ids of simulated clients start here; Flower reserves small ones


class LoopbackGrid(Grid):
    """Delivers messages by calling the `ClientApp`, one client after another.

    Args:
        client_app: the app that answers.
        names: stable names of the clients; their order gives partition ids.
        circumstances: what the clients meet.
    """

    def __init__(
        self,
        client_app: ClientApp,
        names: Sequence[str],
        circumstances: Circumstances = PLAIN,
    ) -> None:
        self.client_app, self.names, self.circumstances = client_app, tuple(names), circumstances
        self._places = {name: place for place, name in enumerate(self.names)}
        self._before = BeforeRound()
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
        """Deliver messages and collect the replies in the order of their arrival.

        Clients past the timeout are not asked, unless delays are simulated.
        """
        asked = list(messages)
        end = self._end(timeout)
        replies = []
        for message in asked:
            if end is not None and time.monotonic() > end:
                break
            replies.append(self.deliver(message))
        return self._arrive(asked, replies)

    def _end(self, timeout: float | None) -> float | None:
        """Say when no more clients are asked; None where real time does not count."""
        arrivals = self.circumstances.arrivals
        if timeout is None or (arrivals is not None and arrivals.simulates_time):
            return None
        return time.monotonic() + timeout

    def _arrive(self, asked: Sequence[Message], replies: list[Message]) -> list[Message]:
        """Put a round's replies into the order of their arrival; late ones are lost."""
        arrivals = self.circumstances.arrivals
        if arrivals is None or not _is_training(asked):
            return replies
        named = {self.name_of(reply.metadata.src_node_id): reply for reply in replies}
        return [named[name] for name in arrivals.order(list(named), _round_of(asked[0]))]

    def name_of(self, node_id: int) -> str:
        """Name the client of a node."""
        return self.names[node_id - FIRST_NODE]

    def deliver(self, message: Message) -> Message:
        """Let one client answer; an exception becomes an error reply, as on Flower's engines."""
        node_id = message.metadata.dst_node_id
        # The messages of a round share one content: a client gets records of its own. Arrays
        # are immutable bytes and need no copy.
        content = RecordDict({key: record.copy() for key, record in message.content.items()})
        is_training = message.metadata.message_type == MessageType.TRAIN
        if is_training:
            self._rewind(message)
        if is_training or keeps(content):
            self._changed.add(node_id)
        private = Message(content, metadata=message.metadata)  # type: ignore[call-overload]
        try:
            reply = self.client_app(private, self.context(node_id))
        except Exception as error:
            reason = type(error).__name__
            return Message(
                Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message
            )
        if is_training:
            self._distort(message, reply)
        return reply

    def _rewind(self, message: Message) -> None:
        """Take a client that was asked in this round before back to before the round."""
        if self.circumstances.repeats:
            name = self.name_of(message.metadata.dst_node_id)
            self._before.rewind(_round_of(message), [name], self._read_own, self._put_back)

    def _distort(self, message: Message, reply: Message) -> None:
        """Let a hostile client send a trunk that it made up."""
        hostile, name = self.circumstances.hostile, self.name_of(message.metadata.dst_node_id)
        if hostile is None or name not in hostile.clients or not reply.has_content():
            return
        sent, trained = arrays_of(message.content), arrays_of(reply.content)
        if sent is not None and trained is not None:
            made_up = hostile.distort_arrays(name, unpack_arrays(sent), unpack_arrays(trained))
            reply.content[ARRAYS] = pack_arrays(made_up)

    def context(self, node_id: int) -> Context:
        """Get a node's context, whose state lives as long as the grid."""
        if node_id not in self._contexts:
            self._contexts[node_id] = Context(
                run_id=RUN_ID,
                node_id=node_id,
                node_config={
                    "partition-id": node_id - FIRST_NODE,
                    "num-partitions": len(self.names),
                    SIMULATED: True,
                },
                state=RecordDict(),
                run_config={},
            )
        return self._contexts[node_id]

    def keep_clients(
        self, folder: Path, round_number: int, *, everybody: bool = False
    ) -> dict[str, str]:
        """Write what clients keep at home; see `server.checkpoint.KeepClients`."""
        if everybody:
            return write_everybody(folder, round_number, self.own_states(self.known_nodes()))
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
        self._put_back(states)

    def _put_back(self, states: Mapping[str, Own | None]) -> None:
        for client, own in states.items():
            state = self.context(FIRST_NODE + self._places[client]).state
            state.pop(OWN, None)
            state.pop(INFO, None)
            if own is not None:
                arrays = {name: array.copy() for name, array in own.arrays.items()}
                state[OWN] = pack_arrays(arrays)
                state[INFO] = ConfigRecord({"round": own.round, "client": client})

    def known_nodes(self) -> Iterable[int]:
        """Name the nodes that have a context."""
        return list(self._contexts)

    def close(self) -> None:
        """Let go of what the grid holds open; this one holds nothing."""

    def own_states(self, node_ids: Iterable[int]) -> dict[str, Own]:
        """Read what clients keep at home, those that keep anything; good until they train again."""
        return self._read_own([self.name_of(node_id) for node_id in sorted(node_ids)])

    def _read_own(self, names: Sequence[str]) -> dict[str, Own]:
        states = {}
        for name in names:
            context = self.context(FIRST_NODE + self._places[name])
            number = round_of(context)
            if number is not None:
                arrays = unpack_arrays(cast(ArrayRecord, context.state[OWN]))
                states[name] = Own(number, arrays)
        return states


def _is_training(messages: Sequence[Message]) -> bool:
    return any(message.metadata.message_type == MessageType.TRAIN for message in messages)


def _round_of(message: Message) -> int:
    return cast(int, config_of(message.content)["round"])


def keeps(content: RecordDict) -> bool:
    """Whether clients keep what they make of a message to evaluate."""
    record = content.get(CONFIG)
    return isinstance(record, ConfigRecord) and record.get("keep") is True
