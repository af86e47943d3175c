"""The node's end of Flower's process isolation: takes tasks from the SuperNode and replies to it.

A SuperNode started with ``--isolation process`` hands each message to whoever acquires its task
over its Runtime API. Flower's own client of that API interrupts its whole process when a task is
over; a process that lives for many tasks needs one that says so.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.app import Context, Message
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, context_to_proto, fab_from_proto, run_from_proto
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    pull_and_inflate_object_from_tree,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, constant
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message

logger = logging.getLogger("fedmtl.node")

ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
RETRY_S, RETRY_FOR_S = 0.2, 20.0
LOOK_AGAIN_S, MOST_LOOK_AGAIN_S = 0.02, 0.5
BEAT_S = 10.0
OFFER_S = 0.5  # how often it is looked for a newer task while one waits for its message
UNREACHABLE = (httpx.TransportError, httpx.HTTPStatusError, FlowerError)


class TaskLostError(Exception):
    """The SuperNode does not know the task: the run was stopped, or the SuperNode started anew."""


class OrphanError(Exception):
    """A task whose message its SuperNode has given up."""


class Claim:
    """The right to answer one message, kept by telling the SuperNode that it is being worked on.

    A SuperNode handles one message at a time: it waits until a reply, any reply, is there, and
    sends it. One that comes of a message it no longer waits for would be sent in the next one's
    place, and every later one a message too late. So a claim ends in one of three ways: by a
    reply; as an orphan, whose message the SuperNode gave up; or left alone, and then the SuperNode
    makes a reply of its own once it misses the heartbeats.

    Args:
        client: speaks to the Runtime API with the task's token.
    """

    def __init__(self, client: RuntimeHttpClient) -> None:
        self.client = client
        self._over, self._lost = threading.Event(), threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def wanted(self) -> bool:
        """Whether the answer is still waited for."""
        return not self._lost.is_set()

    def reply(self, reply: Message, context: Context) -> None:
        """Give the reply and the context after it to the SuperNode.

        Raises:
            TaskLostError: it does not want them any more.
        """
        try:
            push_message(self.client, reply, context)
            output = PushTaskOutputRequest(
                context=context_to_proto(context), sub_status=SubStatus.COMPLETED, details=""
            )
            self.client.PushTaskOutput(output)
        except Exception as error:  # Flower's own code pushes; the node goes on whatever it raises
            raise TaskLostError(type(error).__name__) from error
        finally:
            self.leave()

    def disown(self) -> None:
        """End the task of a message that the SuperNode gave up, without a reply."""
        with suppress(*UNREACHABLE):
            output = PushTaskOutputRequest(sub_status=SubStatus.FAILED, details="given up")
            self.client.PushTaskOutput(output)
        self.leave()

    def leave(self) -> None:
        """Stop telling that the task is being worked on."""
        self._over.set()
        self.client.close()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            try:
                if not self.client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success:
                    self._lost.set()
            except UNREACHABLE:
                if not self._over.is_set():
                    self._lost.set()
            except RuntimeError:
                return  # closed meanwhile


@dataclass(frozen=True)
class Task:
    """One message to answer.

    Attributes:
        claim: the right to answer it.
        message: the message.
        context: Flower's Context of the run on this node.
        run: the run.
        fab: its bundle.
        pull_s: how long it took to get it from the SuperNode.
    """

    claim: Claim
    message: Message
    context: Context
    run: Run
    fab: Fab
    pull_s: float = 0.0


def pull(client: RuntimeHttpClient) -> tuple[Message, Context, Run, Fab]:
    """Get what a task is about.

    A SuperNode offers a task before it has all of its message. Flower's own client then waits a
    second, two, four; nodes that ask a local API can afford to look again at once.

    Raises:
        OrphanError: the SuperNode has given its message up.
    """
    answer = client.PullTaskInput(PullTaskInputRequest())
    context, run = context_from_proto(answer.context), run_from_proto(answer.run)
    TaskIdentity.task_id, TaskIdentity.run_id = answer.task_id, run.run_id
    TaskIdentity.node_id = context.node_id
    offered = client.PullMessages(PullAppMessagesRequest())
    if not offered.messages_list:
        raise OrphanError
    node, tree = Node(node_id=context.node_id), offered.message_object_trees[0]
    try:
        message = pull_and_inflate_object_from_tree(
            tree,
            make_pull_object_fn_protobuf(client.PullObject, node, run.run_id),
            make_confirm_message_received_fn_protobuf(
                client.ConfirmMessageReceived, node, run.run_id
            ),
            return_type=Message,
            initial_backoff=LOOK_AGAIN_S,
            backoff_cap=MOST_LOOK_AGAIN_S,
        )
    except ObjectPullError as error:
        raise OrphanError from error
    message.metadata.__dict__["_message_id"] = tree.object_id  # as Flower's own client does
    return message, context, run, fab_from_proto(answer.fab)


class Fetch(threading.Thread):
    """Gets what a claimed task is about, while it is watched whether the SuperNode gave it up."""

    def __init__(self, claim: Claim) -> None:
        super().__init__(daemon=True)
        self.claim, self._started_at = claim, time.monotonic()
        self._task: Task | None = None
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        """Pull."""
        try:
            content = pull(self.claim.client)
            self._task = Task(self.claim, *content, time.monotonic() - self._started_at)
        except Exception as error:  # the message may be anything
            self._error = error

    def result(self) -> Task:
        """Get the task.

        Raises:
            TaskLostError: it cannot be had.
        """
        if self._task is not None:
            return self._task
        if isinstance(self._error, OrphanError):
            self.claim.disown()
        else:
            if not isinstance(self._error, UNREACHABLE):
                logger.warning("a message cannot be read (%s)", type(self._error).__name__)
            self.claim.leave()
        raise TaskLostError(type(self._error).__name__) from self._error


class Runtime:
    """The Runtime API of this node's SuperNode.

    Args:
        address: "host:port".
        secret: shared with the SuperNode, so that nobody else on the machine can take its tasks.
        certificates: file of the CA that signed the Runtime API's certificate; None for plain HTTP.
        beat: called while a message is waited for, to show that the node is alive.
    """

    def __init__(
        self,
        address: str,
        secret: bytes,
        certificates: Path | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self.address, self.beat = address, beat
        self._certificates = None if certificates is None else certificates.read_bytes()
        self._acquire = self._client(
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={ACQUIRE}),
            RetryInvoker(lambda: constant(RETRY_S), httpx.TransportError, 1, None),
        )

    def next_task(self) -> Task | None:
        """Take the next message; None where there is none.

        A task that is offered while an earlier one waits for its message says that the SuperNode
        has given the earlier one up, as when its run ended.

        Raises:
            TaskLostError: the SuperNode cannot be reached, or the task was over at once.
        """
        claim = self._claim()
        if claim is None:
            return None
        fetch = Fetch(claim)
        while True:
            fetch.join(OFFER_S)
            if not fetch.is_alive():
                return fetch.result()
            self.beat()
            try:
                newer = self._claim()
            except TaskLostError:
                continue  # the fetch ends on that, too
            if newer is not None:
                fetch.claim.disown()
                fetch = Fetch(newer)

    def _claim(self) -> Claim | None:
        """Acquire the next task."""
        request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        try:
            answer = self._acquire.AcquireTask(request)
        except (*UNREACHABLE, RuntimeError) as error:
            raise TaskLostError(type(error).__name__) from error
        if not (answer.HasField("task") and answer.token):
            return None
        invoker = RetryInvoker(lambda: constant(RETRY_S), httpx.TransportError, None, RETRY_FOR_S)
        return Claim(self._client(RuntimeTokenHttpInterceptor(answer.token), invoker))

    def close(self) -> None:
        """Close the connection."""
        self._acquire.close()

    def _client(
        self,
        authority: RuntimeTokenHttpInterceptor | SuperExecAuthHttpInterceptor,
        invoker: RetryInvoker,
    ) -> RuntimeHttpClient:
        return RuntimeHttpClient.from_server_address(
            server_address=self.address,
            insecure=self._certificates is None,
            root_certificates=self._certificates,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="fedmtl-node"), authority],
            retry_invoker=invoker,
        )
