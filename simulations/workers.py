"""The loopback engine on several processes.

Every client belongs to one worker, by its place, and its state lives there. A worker trains its
share of a round's clients one after another; replies come back in the order of the messages, so the
result is bit for bit that of one process, whatever the number of workers.
"""

import multiprocessing
import time
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import Any

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from common.errors import FedMTLError
from common.wire import FloatArray, pack_arrays, unpack_arrays
from simulations.client_log import Own
from simulations.loopback import FIRST_NODE, LoopbackGrid

STOP_S = 1.0  # how long workers may take to end by themselves

# A job names a method of `Share` and its argument; the answer is its result.
# Arrays cross between processes as NumPy's; Flower's own form would be written out and parsed anew.
Parts = tuple[dict[str, dict[str, FloatArray]], dict[str, ConfigRecord | MetricRecord]]
Answer = tuple[int, Parts | None, Error | None]  # node, content or error


def take_apart(content: RecordDict) -> Parts:
    """Separate a message's arrays from its other records."""
    arrays: dict[str, dict[str, FloatArray]] = {}
    others: dict[str, ConfigRecord | MetricRecord] = {}
    for key, record in content.items():
        if isinstance(record, ArrayRecord):
            arrays[key] = unpack_arrays(record)
        else:
            others[key] = record
    return arrays, others


def put_together(parts: Parts) -> RecordDict:
    """Make the message's content again."""
    content = RecordDict()
    arrays, others = parts
    for key, named in arrays.items():
        content[key] = pack_arrays(named)
    for key, record in others.items():
        content[key] = record
    return content


class Share:
    """One worker's side: a loopback grid of which it uses its own clients."""

    def __init__(self, client_app: ClientApp, names: Sequence[str]) -> None:
        self.grid = LoopbackGrid(client_app, names)

    def deliver(self, job: tuple[Parts, str, list[int]]) -> list[Answer]:
        """Let clients answer one content, in the order given."""
        parts, kind, node_ids = job
        content = put_together(parts)
        answers: list[Answer] = []
        for node_id in node_ids:
            reply = self.grid.deliver(Message(content, node_id, kind))
            if reply.has_error():
                answers.append((node_id, None, reply.error))
            else:
                answers.append((node_id, take_apart(reply.content), None))
        return answers

    def own_states(self, node_ids: list[int] | None) -> dict[str, Own]:
        """Read what clients keep at home; None for all that have any."""
        return self.grid.own_states(self.grid.known_nodes() if node_ids is None else node_ids)

    def restore(self, states: Mapping[str, Own]) -> None:
        """Put back what clients kept at home."""
        self.grid.restore_states(states)


def serve(
    connection: Connection,
    client_app: ClientApp,
    names: Sequence[str],
    inherited: Sequence[Connection],
) -> None:
    """Do jobs until the other side closes.

    Args:
        connection: to the parent.
        client_app: the app that answers.
        names: stable names of the clients.
        inherited: the parent's own ends, copied by the fork: while a copy is open, no worker would
            hear that the parent closed its end.
    """
    for end in inherited:
        end.close()
    share = Share(client_app, names)
    while True:
        try:
            method, argument = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            connection.send(getattr(share, method)(argument))
        except (OSError, KeyboardInterrupt):
            return


class WorkerGrid(LoopbackGrid):
    """A loopback whose clients live in worker processes.

    Args:
        client_app: the app that answers.
        names: stable names of the clients.
        workers: number of processes.
    """

    def __init__(self, client_app: ClientApp, names: Sequence[str], workers: int) -> None:
        super().__init__(client_app, names)
        # Forked before anything trains: a worker starts with all modules loaded.
        context = multiprocessing.get_context("fork")
        self._workers: list[Connection] = []
        self._processes: list[ForkProcess] = []
        for _ in range(workers):
            ours, theirs = context.Pipe()
            self._workers.append(ours)
            arguments = (theirs, client_app, names, tuple(self._workers))
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Deal messages out to their clients' workers and collect the replies in order."""
        asked = list(messages)
        shares: list[dict[tuple[int, str], list[int]]] = [{} for _ in self._workers]
        contents: dict[int, RecordDict] = {}
        for message in asked:
            node_id, kind = message.metadata.dst_node_id, message.metadata.message_type
            contents[id(message.content)] = message.content
            share = shares[self._worker_of(node_id)]
            share.setdefault((id(message.content), kind), []).append(node_id)
        parts = {key: take_apart(content) for key, content in contents.items()}
        jobs = [
            (worker, ("deliver", (parts[key], kind, node_ids)))
            for worker, share in enumerate(shares)
            for (key, kind), node_ids in share.items()
        ]
        answers: dict[int, Answer] = {}
        for results in self._do(jobs):
            answers |= {answer[0]: answer for answer in results}
        self._changed |= {
            m.metadata.dst_node_id for m in asked if m.metadata.message_type == "train"
        }
        return [self._reply(message, answers[message.metadata.dst_node_id]) for message in asked]

    def own_states(self, node_ids: Iterable[int]) -> dict[str, Own]:
        """Read what clients keep at home."""
        shares: list[list[int]] = [[] for _ in self._workers]
        for node_id in node_ids:
            shares[self._worker_of(node_id)].append(node_id)
        jobs = [(w, ("own_states", share)) for w, share in enumerate(shares)]
        states: dict[str, Own] = {}
        for part in self._do(jobs):
            states |= part
        return {name: states[name] for name in self.names if name in states}

    def known_nodes(self) -> Iterable[int]:
        """Name all nodes; those without a state are passed over."""
        return self.get_node_ids()

    def restore_states(self, states: Mapping[str, Own]) -> None:
        """Put back what clients kept at home."""
        places = {name: place for place, name in enumerate(self.names)}
        shares: list[dict[str, Own]] = [{} for _ in self._workers]
        for name, own in states.items():
            shares[self._worker_of(FIRST_NODE + places[name])][name] = own
        self._do([(w, ("restore", share)) for w, share in enumerate(shares)])

    def close(self) -> None:
        """End the workers: those at work are not waited for longer than a second in all."""
        for connection in self._workers:
            connection.close()
        end = time.monotonic() + STOP_S
        for process in self._processes:
            process.join(timeout=max(0.0, end - time.monotonic()))
        for process in self._processes:
            if process.is_alive():
                process.terminate()
                process.join(timeout=STOP_S)

    def _worker_of(self, node_id: int) -> int:
        return (node_id - FIRST_NODE) % len(self._workers)

    def _do(self, jobs: Sequence[tuple[int, tuple[str, Any]]]) -> list[Any]:
        """Send all jobs, then collect: the workers work side by side."""
        try:
            for worker, job in jobs:
                self._workers[worker].send(job)
            return [self._workers[worker].recv() for worker, _ in jobs]
        except (EOFError, OSError) as error:
            raise FedMTLError(
                "a worker process died, perhaps for lack of memory; the run can be resumed, with "
                "fewer --workers if need be"
            ) from error

    @staticmethod
    def _reply(message: Message, answer: Answer) -> Message:
        _, parts, error = answer
        if error is not None:
            return Message(error, reply_to=message)
        return Message(put_together(parts or ({}, {})), reply_to=message)
