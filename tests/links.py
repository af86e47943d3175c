"""A SuperLink that is not there: a grid whose replies come when a test says, and its clock."""

from collections.abc import Callable, Iterable

import httpx
from flwr.app import Error, Message, MessageType, RecordDict
from flwr.app.metadata import Metadata
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

Answer = Callable[[Message], Message]


class Clock:
    """Seconds that pass only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakeLink(Grid):
    """Gives each message the answer of its node, once its time has come.

    Attributes:
        online: ids of nodes that are online.
        answers: node -> when it answers, and what.
        pushed: every message that was taken.
        failing_until: calls before this moment fail, as at a SuperLink whose database is locked.
    """

    def __init__(self, clock: Clock, *nodes: int) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id = 1, 1
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        self.clock, self.online = clock, set(nodes)
        self.answers: dict[int, list[tuple[float, Answer]]] = {}
        self.pushed: list[Message] = []
        self.refused: set[int] = set()  # nodes whose messages the SuperLink does not take
        self.failing_until, self.pulls = 0.0, 0
        self.inbox: dict[str, list[tuple[float, Message]]] = {}
        self.broken: set[str] = set()  # replies that cannot be read, which breaks a pull

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *arguments: object, **options: object) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages, *, timeout=None):  # type: ignore[no-untyped-def]
        raise AssertionError("polls every 3 s")

    def get_node_ids(self) -> Iterable[int]:
        self._fail()
        return sorted(self.online)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self._fail()
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = f"message-{len(self.pushed)}-to-{node}"
            if node in self.refused:
                ids.append("")
                continue
            ids.append(message.metadata.message_id)
            self.pushed.append(message)
            self.inbox[ids[-1]] = [
                (self.clock.now + after, answer(message))
                for after, answer in self.answers.get(node, ())
            ]
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self._fail()
        self.pulls += 1
        came = []
        for message_id in list(message_ids):
            waiting = self.inbox.get(message_id, [])
            due = [reply for when, reply in waiting if when <= self.clock.now]
            if due and message_id in self.broken:
                self.inbox[message_id] = []
                raise ValueError("row 7: 0.123")
            came += due
            self.inbox[message_id] = [(when, r) for when, r in waiting if when > self.clock.now]
        return came

    def _fail(self) -> None:
        if self.clock.now < self.failing_until:
            response = httpx.Response(500, request=httpx.Request("POST", "http://superlink"))
            raise httpx.HTTPStatusError("database is locked", request=response.request,
                                        response=response)  # fmt: skip


def ask(*nodes: int) -> list[Message]:
    return [Message(RecordDict(), node, MessageType.TRAIN) for node in nodes]


def reply(message: Message) -> Message:
    return Message(RecordDict(), reply_to=message)


def gone(message: Message) -> Message:
    """What Flower says of a node that missed its heartbeats: an error from the SuperLink itself."""
    return of_the_superlink(message, ErrorCode.NODE_UNAVAILABLE, "Error: Node Unavailable")


def of_the_superlink(message: Message, code: int, reason: str) -> Message:
    asked = message.metadata
    metadata = Metadata(
        run_id=1,
        message_id="",
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message_id=asked.message_id,
        group_id="",
        created_at=asked.created_at,
        ttl=1.0,
        message_type=asked.message_type,
    )
    return Message(Error(code=code, reason=reason), metadata=metadata)  # type: ignore
