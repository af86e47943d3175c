"""The node's end of Flower's process isolation: takes tasks from the SuperNode and replies to it.

A SuperNode started with ``--isolation process`` hands each message to whoever acquires its task
over its Runtime API. Flower's own client of that API interrupts its whole process when a task is
over; a process that lives for many tasks needs one that says so.
"""

import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
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
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
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
UNREACHABLE = (httpx.TransportError, httpx.HTTPStatusError, FlowerError)


class TaskLostError(Exception):
    """The SuperNode does not know the task: the run was stopped, or the SuperNode started anew."""


@dataclass
class Task:
    """One message to answer.

    Attributes:
        client: speaks to the Runtime API with the task's token.
        message: the message.
        context: Flower's Context of the run on this node.
        run: the run.
        fab: its bundle.
        pull_s: how long it took to get it from the SuperNode.
    """

    client: RuntimeHttpClient
    message: Message
    context: Context
    run: Run
    fab: Fab
    pull_s: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)
    _lost: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
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
            self._finish(SubStatus.COMPLETED, "", context)
        except Exception as error:  # Flower's own code pushes; the node goes on whatever it raises
            raise TaskLostError(type(error).__name__) from error
        finally:
            self.close()

    def drop(self, details: str) -> None:
        """End the task without a reply."""
        try:
            self._finish(SubStatus.FAILED, details, None)
        except UNREACHABLE:
            pass  # it is over on that side already
        finally:
            self.close()

    def close(self) -> None:
        """Stop telling that the task is being worked on."""
        self._over.set()
        self.client.close()

    def _finish(self, sub_status: str, details: str, context: Context | None) -> None:
        self.client.PushTaskOutput(
            PushTaskOutputRequest(
                context=context_to_proto(context) if context else None,
                sub_status=sub_status,
                details=details,
            )
        )

    def _beat(self) -> None:
        """Tell the SuperNode again and again that the task is being worked on."""
        while not self._over.wait(BEAT_S):
            try:
                if not self.client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success:
                    self._lost.set()
            except UNREACHABLE:
                if not self._over.is_set():
                    self._lost.set()
            except RuntimeError:
                return  # closed meanwhile


def pull(client: RuntimeHttpClient) -> tuple[Message, Context, Run, Fab]:
    """Get what a task is about.

    A SuperNode offers a task before it has all of its message. Flower's own client then waits a
    second, two, four; nodes that ask a local API can afford to look again at once.
    """
    answer = client.PullTaskInput(PullTaskInputRequest())
    context, run = context_from_proto(answer.context), run_from_proto(answer.run)
    TaskIdentity.task_id, TaskIdentity.run_id = answer.task_id, run.run_id
    TaskIdentity.node_id = context.node_id
    offered = client.PullMessages(PullAppMessagesRequest())
    if not offered.messages_list:
        raise RuntimeError("a task without a message")
    node, tree = Node(node_id=context.node_id), offered.message_object_trees[0]
    message = pull_and_inflate_object_from_tree(
        tree,
        make_pull_object_fn_protobuf(client.PullObject, node, run.run_id),
        make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, node, run.run_id),
        return_type=Message,
        initial_backoff=LOOK_AGAIN_S,
        backoff_cap=MOST_LOOK_AGAIN_S,
    )
    message.metadata.__dict__["_message_id"] = tree.object_id  # as Flower's own client does
    return message, context, run, fab_from_proto(answer.fab)


def pull_or_drop(client: RuntimeHttpClient) -> tuple[Message, Context, Run, Fab]:
    """Get what a task is about; one that cannot be read is ended, and the node goes on.

    Raises:
        TaskLostError: it cannot be had.
    """
    try:
        return pull(client)
    except UNREACHABLE as error:
        client.close()
        raise TaskLostError(type(error).__name__) from error
    except Exception as error:  # the message may be anything
        logger.warning("a message cannot be read (%s)", type(error).__name__)
        with suppress(*UNREACHABLE):
            client.PushTaskOutput(
                PushTaskOutputRequest(sub_status=SubStatus.FAILED, details="unreadable")
            )
        client.close()
        raise TaskLostError(type(error).__name__) from error


class Runtime:
    """The Runtime API of this node's SuperNode.

    Args:
        address: "host:port".
        secret: shared with the SuperNode, so that nobody else on the machine can take its tasks.
        certificates: file of the CA that signed the Runtime API's certificate; None for plain HTTP.
    """

    def __init__(self, address: str, secret: bytes, certificates: Path | None = None) -> None:
        self.address = address
        self._certificates = None if certificates is None else certificates.read_bytes()
        self._acquire = self._client(
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={ACQUIRE}),
            RetryInvoker(lambda: constant(RETRY_S), httpx.TransportError, 1, None),
        )

    def next_task(self) -> Task | None:
        """Take the next message; None where there is none.

        Raises:
            TaskLostError: the SuperNode cannot be reached, or the task was over at once.
        """
        request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        try:
            answer = self._acquire.AcquireTask(request)
            if not (answer.HasField("task") and answer.token):
                return None
            invoker = RetryInvoker(
                lambda: constant(RETRY_S), httpx.TransportError, None, RETRY_FOR_S
            )
            started = time.monotonic()
            client = self._client(RuntimeTokenHttpInterceptor(answer.token), invoker)
            message, context, run, fab = pull_or_drop(client)
        except (*UNREACHABLE, RuntimeError) as error:
            raise TaskLostError(type(error).__name__) from error
        return Task(client, message, context, run, fab, time.monotonic() - started)

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
