"""The loopback engine on several processes.

Every client belongs to one process, by its place, and its state lives there; the first process is
the engine's own. Each trains its share of a round's clients one after another; replies come back in
the order of the messages, so the result is bit for bit that of one process, whatever the number.
Arrays cross in shared memory (`simulations.shared_arrays`), everything else in pipes.
"""

import multiprocessing
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing import reduction
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import Any

from flwr.app import Error, Message, RecordDict
from flwr.clientapp import ClientApp

from common.errors import FedMTLError
from common.wire import config_of
from simulations.circumstances import PLAIN, Circumstances
from simulations.client_log import Own
from simulations.loopback import FIRST_NODE, LoopbackGrid
from simulations.shared_arrays import Shelf, anonymous_file, layout_of, round_up, size_of
from simulations.worker_messages import (
    CONTENT,
    Answer,
    Job,
    put_down,
    put_together,
    take_apart,
)

STOP_S = 1.0  # how long workers may take to end by themselves


class Share:
    """One worker's side: a loopback grid of which it uses its own clients."""

    def __init__(self, connection: Connection, grid: LoopbackGrid) -> None:
        self.connection, self.grid = connection, grid
        self.shelf: Shelf | None = None

    def serve(self) -> None:
        """Do jobs until the other side closes. A job names a method here and its argument."""
        while True:
            try:
                method, argument = self.connection.recv()
                self.connection.send(getattr(self, method)(argument))
            except (EOFError, OSError, KeyboardInterrupt):
                return

    def set_shelf(self, shape: tuple[int, int]) -> None:
        """Take the shelf that the other side made; its file comes right behind."""
        file = reduction.recv_handle(self.connection)
        self.shelf = Shelf(file, *shape)
        os.close(file)

    def deliver(self, job: Job) -> list[Answer]:
        """Let clients answer one content, in the order given."""
        content = put_together(job.parts, self.shelf, CONTENT)
        answers: list[Answer] = []
        for node_id, slot in zip(job.node_ids, job.slots, strict=True):
            if job.end is not None and time.monotonic() > job.end:
                break
            reply = self.grid.deliver(Message(content, node_id, job.kind))
            if reply.has_error():
                answers.append((node_id, reply.error))
            else:
                answers.append((node_id, put_down(reply.content, self.shelf, slot)))
        return answers

    def own_states(self, node_ids: list[int]) -> dict[str, Own]:
        """Read what clients keep at home."""
        return self.grid.own_states(node_ids)

    def restore(self, states: Mapping[str, Own]) -> None:
        """Put back what clients kept at home."""
        self.grid.restore_states(states)


def run_worker(
    connection: Connection,
    client_app: ClientApp,
    names: Sequence[str],
    circumstances: Circumstances,
    inherited: Sequence[Connection],
) -> None:
    """Be a worker.

    Args:
        connection: to the parent.
        client_app: the app that answers.
        names: stable names of the clients.
        circumstances: what the clients meet.
        inherited: the parent's own ends, copied by the fork: while a copy is open, no worker would
            hear that the parent closed its end.
    """
    for end in inherited:
        end.close()
    Share(connection, LoopbackGrid(client_app, names, circumstances)).serve()


class WorkerGrid(LoopbackGrid):
    """A loopback whose clients live in this process and in workers.

    Args:
        client_app: the app that answers.
        names: stable names of the clients.
        workers: number of processes, this one among them.
        circumstances: what the clients meet.
    """

    def __init__(
        self,
        client_app: ClientApp,
        names: Sequence[str],
        workers: int,
        circumstances: Circumstances = PLAIN,
    ) -> None:
        super().__init__(client_app, names, circumstances)
        # Forked before this process trains: a worker starts with all modules loaded.
        context = multiprocessing.get_context("fork")
        self._shelf: Shelf | None = None
        self._workers: list[Connection] = []
        self._processes: list[ForkProcess] = []
        for _ in range(workers - 1):
            ours, theirs = context.Pipe()
            self._workers.append(ours)
            inherited = tuple(self._workers)
            arguments = (theirs, client_app, names, circumstances, inherited)
            process = context.Process(target=run_worker, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Deal messages out to their clients' processes and collect the replies.

        The replies' arrays stand in shared memory: they are good until the next call.
        """
        asked = list(messages)
        end = self._end(timeout)
        replies: dict[int, Message] = {}
        for content, alike in _by_content(asked):
            replies |= self._exchange(content, alike, end)
        nodes = [message.metadata.dst_node_id for message in asked]
        return self._arrive(asked, [replies[node_id] for node_id in nodes if node_id in replies])

    def _exchange(
        self, content: RecordDict, messages: Sequence[Message], end: float | None
    ) -> dict[int, Message]:
        """Have messages with one content answered: node -> reply."""
        kind = messages[0].metadata.message_type
        self._fit_shelf(content, len(messages))
        parts = put_down(content, self._shelf, CONTENT)
        own: list[Message] = []
        slots: dict[int, int] = {}
        shares: list[list[int]] = [[] for _ in self._workers]
        asked: dict[int, Message] = {}
        for slot, message in enumerate(messages, start=CONTENT + 1):
            node_id = message.metadata.dst_node_id
            asked[node_id], slots[node_id] = message, slot
            place = self._place_of(node_id)
            if place:
                shares[place - 1].append(node_id)
            else:
                own.append(message)
        jobs = [
            (worker, ("deliver", Job(parts, kind, share, [slots[n] for n in share], end)))
            for worker, share in enumerate(shares)
            if share
        ]
        self._send(jobs)
        left = None if end is None else end - time.monotonic()
        ours = super().send_and_receive(own, timeout=left)
        replies = {reply.metadata.src_node_id: reply for reply in ours}
        for answers in self._receive(jobs):
            for node_id, answer in answers:
                message = asked[node_id]
                if isinstance(answer, Error):
                    replies[node_id] = Message(answer, reply_to=message)
                else:
                    whole = put_together(answer, self._shelf, slots[node_id])
                    replies[node_id] = Message(whole, reply_to=message)
        if kind == "train" or config_of(content).get("keep"):
            self._changed |= set(asked)
        return replies

    def _fit_shelf(self, content: RecordDict, replies: int) -> None:
        """Have a slot for the content and one for each reply, each as large as the content."""
        arrays, _ = take_apart(content)
        size = round_up(size_of(layout_of(arrays)))
        shelf = self._shelf
        if not arrays or (shelf and shelf.slots > replies and shelf.size >= size):
            return
        shape = (max(replies + 1, shelf.slots if shelf else 0), size)
        file = anonymous_file(shape[0] * shape[1])
        self._shelf = Shelf(file, *shape)
        jobs = [(worker, ("set_shelf", shape)) for worker in range(len(self._workers))]
        self._send(jobs)
        for connection, process in zip(self._workers, self._processes, strict=True):
            reduction.send_handle(connection, file, process.pid)
        self._receive(jobs)
        os.close(file)

    def own_states(self, node_ids: Iterable[int]) -> dict[str, Own]:
        """Read what clients keep at home."""
        shares: list[list[int]] = [[] for _ in range(len(self._workers) + 1)]
        for node_id in node_ids:
            shares[self._place_of(node_id)].append(node_id)
        jobs = [(w, ("own_states", share)) for w, share in enumerate(shares[1:])]
        self._send(jobs)
        states = super().own_states(shares[0])
        for part in self._receive(jobs):
            states |= part
        return {name: states[name] for name in self.names if name in states}

    def known_nodes(self) -> Iterable[int]:
        """Name all nodes; those without a state are passed over."""
        return self.get_node_ids()

    def restore_states(self, states: Mapping[str, Own]) -> None:
        """Put back what clients kept at home."""
        places = {name: place for place, name in enumerate(self.names)}
        shares: list[dict[str, Own]] = [{} for _ in range(len(self._workers) + 1)]
        for name, own in states.items():
            shares[self._place_of(FIRST_NODE + places[name])][name] = own
        super().restore_states(shares[0])
        jobs = [(w, ("restore", share)) for w, share in enumerate(shares[1:])]
        self._send(jobs)
        self._receive(jobs)

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

    def _place_of(self, node_id: int) -> int:
        """Say whose client a node is: 0 for this process, else a worker's number from 1."""
        return (node_id - FIRST_NODE) % (len(self._workers) + 1)

    def _send(self, jobs: Sequence[tuple[int, tuple[str, Any]]]) -> None:
        """Hand out jobs: the workers work side by side."""
        try:
            for worker, job in jobs:
                self._workers[worker].send(job)
        except OSError as error:
            raise self._died() from error

    def _receive(self, jobs: Sequence[tuple[int, tuple[str, Any]]]) -> list[Any]:
        """Collect the results of jobs."""
        try:
            return [self._workers[worker].recv() for worker, _ in jobs]
        except (EOFError, OSError) as error:
            raise self._died() from error

    @staticmethod
    def _died() -> FedMTLError:
        return FedMTLError(
            "a worker process died, perhaps for lack of memory; the run can be resumed, with "
            "fewer --workers if need be"
        )


def _by_content(messages: Iterable[Message]) -> Iterable[tuple[RecordDict, list[Message]]]:
    """Gather messages of one type with one content; those of a round share theirs."""
    alike: dict[tuple[int, str], list[Message]] = {}
    for message in messages:
        key = (id(message.content), message.metadata.message_type)
        alike.setdefault(key, []).append(message)
    return [(group[0].content, group) for group in alike.values()]
