"""A node at work: takes messages, holds them against its owner's policy, and answers them.

Three processes, each with what it needs and no more: Flower's SuperNode holds the node's key and
speaks to the server; this one holds the policy, and the right to reply; the worker holds the rows
and makes replies, which leave through the guard (`client.node.guard`).
"""

import hashlib
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.cli.install import install_from_fab
from flwr.common.serde import (
    context_to_proto,
    message_from_proto,
    message_to_proto,
    recorddict_from_proto,
)
from flwr.proto.message_pb2 import Context as ProtoContext
from flwr.proto.message_pb2 import Message as ProtoMessage
from pydantic import ValidationError

from client.node.guard import guard_reply
from client.node.ledger import Ledger
from client.node.policy import Policy, read_policy
from client.node.runtime import Runtime, Task, TaskLostError
from client.node.supernode import SuperNode, read_flags, read_node_config
from client.node.watch import NodeWatch
from client.node.worker_link import NotWantedError, Worker, WorkerDiedError
from client.place import Place
from client.privacy_ledger import require_entry
from common.errors import ConfigError, FedMTLError, NodeError, PolicyError
from common.experiment import Experiment
from common.journal import describe_error
from common.ready_models import reads_folder
from common.wire import Instruction, config_of, refusal, size_bytes

logger = logging.getLogger("fedmtl.node")

BUSY_POLL_S, IDLE_POLL_S, IDLE_AFTER_S = 0.05, 0.5, 60.0
UNREACHED_S = 60.0  # after which it is told that the SuperNode hands out nothing
BUNDLES = "bundles"
MOST_NAME = 200  # characters of a run's name


class Node:
    """One node.

    Args:
        policy: path of the owner's policy; None for the defaults, which allow everything that the
            documentation names.
        flags: of ``flower-supernode``.

    Raises:
        ConfigError: the policy or a flag is wrong, or no state folder is named.
    """

    def __init__(self, policy: Path | None, flags: Sequence[str]) -> None:
        self.policy_path = policy
        self.policy()
        self.place = Place.of(read_node_config(read_flags(flags).node_config))
        if not self.place.state:
            raise ConfigError(
                "--node-config must name a state folder, where the node keeps its heads, got none; "
                'add state="FOLDER" to it'
            )
        self.state = Path(self.place.state)
        self.watch, self.ledger = NodeWatch(self.state), Ledger(self.state)
        self.supernode = SuperNode(flags, self.state)
        self.runtime = Runtime(
            self.supernode.address,
            self.supernode.secret,
            self.supernode.certificates,
            self.watch.status.beat,
        )
        self._worker = Worker("", True)
        self._bundles: dict[str, str] = {}  # hash -> folder
        self._lost_at: float | None = None  # since when the SuperNode hands out nothing

    def policy(self) -> Policy:
        """Read the owner's policy as it stands now."""
        return Policy() if self.policy_path is None else read_policy(self.policy_path)

    def run(self) -> None:
        """Serve until stopped.

        Raises:
            NodeError: the SuperNode cannot run.
        """
        self.supernode.start()
        code = self.policy().code
        if code.run == "installed":
            # It imports while the SuperNode connects.
            self._use_worker("", code.keeps_network).start()
        last = time.monotonic()
        try:
            while True:
                self.supernode.watch()
                self.watch.status.beat()
                task = self._next_task()
                if task is not None:
                    self.answer(task)
                    last = time.monotonic()
                else:
                    idle = time.monotonic() - last > IDLE_AFTER_S
                    time.sleep(IDLE_POLL_S if idle else BUSY_POLL_S)
        finally:
            self.close()

    def close(self) -> None:
        """End the worker and the SuperNode."""
        self._worker.close()
        self.runtime.close()
        self.supernode.stop()
        self.watch.close()

    def answer(self, task: Task) -> None:
        """Answer one message, by a reply or by a refusal that says why."""
        started, message = time.monotonic(), task.message
        context, refused = task.context, ""
        try:
            reply, context = self._reply(task)
        except NotWantedError:
            logger.info("the message is no longer waited for; its work was ended")
            task.claim.leave()
            return
        except FedMTLError as error:
            refused = str(error)
            reply = refusal(message, refused)
        except WorkerDiedError as error:
            refused = f"the node could not answer: {error}"
            reply = refusal(message, refused)
        except Exception as error:  # neither a message nor a bundle's reply may end the node
            refused = f"the node could not answer: {describe_error(error)}"
            reply = refusal(message, refused)
        if reply.has_error() and not refused:
            refused = reply.error.reason or "no reason given"
        answered = time.monotonic()
        sizes = tuple(size_bytes(m.content) if m.has_content() else 0 for m in (message, reply))
        try:
            task.claim.reply(reply, context)
        except TaskLostError:
            refused = "the reply was not taken: the run has ended, or the SuperNode restarted"
        stages = (task.pull_s, answered - started, time.monotonic() - answered)
        self.watch.end(message.metadata.message_type, refused, (sizes[0], sizes[1]), stages)

    def _next_task(self) -> Task | None:
        try:
            task = self.runtime.next_task()
        except TaskLostError as error:  # the SuperNode is starting, or the run ended this moment
            self._note_lost(str(error))
            return None
        self._lost_at = None
        return task

    def _note_lost(self, why: str) -> None:
        """Tell once in a while that the SuperNode hands out nothing."""
        now = time.monotonic()
        self._lost_at = now if self._lost_at is None else self._lost_at
        if now - self._lost_at > UNREACHED_S:
            told = f"the SuperNode's API cannot be used ({why})"
            logger.error("%s; its own messages stand above", told)
            self.watch.status.set(error=told)
            self._lost_at = now

    def _reply(self, task: Task) -> tuple[Message, Context]:
        """Have a message answered.

        Raises:
            FedMTLError: it is refused.
            WorkerDiedError: the worker died over it, twice.
        """
        policy, message = self._policy_now(), task.message
        instruction, experiment = read_instruction(message)
        kind = message.metadata.message_type
        self.watch.begin(instruction, experiment.federation.rounds)
        policy.check(instruction, experiment, kind)
        self._check_data(experiment)
        digest = hashlib.sha256(task.fab.content).hexdigest()
        policy.check_bundle(digest)
        policy.check_ledger(self.ledger.read(), kind)
        bundle = self._unpack(digest, task.fab.content) if policy.code.run == "bundle" else ""
        worker = self._use_worker(bundle, policy.code.keeps_network)
        reply, context = self._ask(worker, task, policy)
        checked = guard_reply(message, reply, policy, experiment)
        if checked.has_content():
            if policy.protections.limits():
                require_entry(self.state, instruction, kind)
            self.ledger.count(kind)
        return checked, context

    def _policy_now(self) -> Policy:
        """Read the policy for one message; what is wrong with it is the owner's business alone."""
        try:
            return self.policy()
        except ConfigError as error:
            logger.error("%s", "; ".join(str(error).splitlines()))
            raise PolicyError(
                "the policy of the node's owner cannot be read; the node's log says why"
            ) from None

    def _check_data(self, experiment: Experiment) -> None:
        """Refuse to read where the server says: that is the node's own decision."""
        if experiment.data.path and not self.place.data:
            raise PolicyError(
                "the experiment names a data.path, and a node reads only what its owner names; "
                'name the rows in its --node-config: data="FOLDER"'
            )
        if reads_folder(experiment.trunk) and not self.place.model:
            raise PolicyError(
                "the experiment names a folder in trunk.model, and a node reads only what its "
                'owner names; name a copy of it in its --node-config: model="FOLDER"'
            )

    def _unpack(self, digest: str, content: bytes) -> str:
        """Unpack a bundle, once in this process, where nothing else unpacks any."""
        if digest not in self._bundles:
            folder = self.state / BUNDLES / digest
            shutil.rmtree(folder, ignore_errors=True)  # half of one, or one that has been changed
            self._bundles[digest] = str(install_from_fab(content, folder, skip_prompt=True))
        return self._bundles[digest]

    def _ask(self, worker: Worker, task: Task, policy: Policy) -> tuple[Message, Context]:
        """Ask the worker; where it dies, ask a new one once: what it keeps on disk allows that."""
        most_s = policy.code.most_seconds

        def wanted() -> bool:
            self.watch.status.beat()
            return task.claim.wanted()

        # The client's code knows the rows, which what a reply costs may depend on.
        config = {**task.context.node_config, **policy.protections.limits()}
        limited = copy_context(task.context, config, task.context.state)
        context = context_to_proto(limited).SerializeToString()
        message = message_to_proto(task.message).SerializeToString()
        try:
            answer = worker.ask(context, message, most_s, wanted)
        except WorkerDiedError as error:
            logger.warning("%s; asking a new one", error)
            self.watch.figures.deaths.inc()
            answer = worker.ask(context, message, most_s, wanted)
        state = recorddict_from_proto(ProtoContext.FromString(answer[0]).state)
        after = copy_context(task.context, task.context.node_config, state)
        return message_from_proto(ProtoMessage.FromString(answer[1])), after

    def _use_worker(self, bundle: str, network: bool) -> Worker:
        """Get the worker for this code; another one is ended first."""
        if (self._worker.bundle, self._worker.network) != (bundle, network):
            self._worker.close()
            self._worker = Worker(bundle, network)
        return self._worker


def copy_context(
    context: Context, node_config: Mapping[str, bool | float | int | str], state: RecordDict
) -> Context:
    """Copy a Context with another config and state."""
    return Context(
        run_id=context.run_id,
        node_id=context.node_id,
        node_config=dict(node_config),
        state=state,
        run_config=context.run_config,
        series_id=context.series_id,
    )


def read_instruction(message: Message) -> tuple[Instruction, Experiment]:
    """Read what a message asks for.

    Raises:
        NodeError: it is not of the form that this version knows.
    """
    try:
        instruction = Instruction.from_record(config_of(message.content))
        if min(instruction.round, instruction.clients) < 0 or len(instruction.run) > MOST_NAME:
            raise ValueError
        return instruction, parse_experiment(instruction.experiment)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        count = f", {error.error_count()} problems" if isinstance(error, ValidationError) else ""
        raise NodeError(
            f"the message is not of a form that this node's version knows ({type(error).__name__}"
            f"{count}); server and node must run the same version of fedmtl"
        ) from None


@lru_cache(maxsize=4)
def parse_experiment(text: str) -> Experiment:
    """Parse an experiment as the server sent it."""
    return Experiment.model_validate_json(text)
