"""A worker is a process of its own: it may die, hang or fail, and the node goes on."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.common.serde import context_to_proto, message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.task_identity import TaskIdentity

from client.node.worker import receive_frame, send_frame
from client.node.worker_link import NotWantedError, Worker, WorkerDiedError
from common.errors import PolicyError

PROJECT = """
[project]
name = "theirs"
version = "1.0.0"
description = "A client that does as it is told."
license = "Apache-2.0"
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "theirs:app"
clientapp = "theirs:app"
"""
CLIENT = """
import os, socket, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()

def tell(**facts):
    return RecordDict({"facts": ConfigRecord(facts)})

@app.query()
def query(message, context):
    do = context.node_config["do"]
    if do == "die":
        os.kill(os.getpid(), 9)
    if do == "sleep":
        time.sleep(600)
    if do == "fail":
        raise ValueError("patient 4711 is ill")
    reached = "yes"
    if do == "call":
        try:
            socket.create_connection(("127.0.0.1", int(context.node_config["port"])), 5)
        except OSError:
            reached = "no"
    context.state["n"] = ConfigRecord({"n": 1})
    facts = tell(pid=os.getpid(), reached=reached, token=str("FLWR_SECRET" in os.environ))
    return Message(facts, reply_to=message)
"""


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "theirs.py").write_text(CLIENT)
    return str(tmp_path)


@pytest.fixture
def start(bundle):
    started = []

    def make(network=True) -> Worker:
        started.append(Worker(bundle, network))
        return started[-1]

    yield make
    for worker in started:
        worker.close()


def ask(worker, most_s=0.0, wanted=lambda: True, **config) -> Message:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    message = Message(RecordDict(), 1, MessageType.QUERY)
    context = Context(1, 1, config, RecordDict(), {})
    sent = (context_to_proto(context).SerializeToString(), message_to_proto(message))
    answer = worker.ask(sent[0], sent[1].SerializeToString(), most_s, wanted)
    return message_from_proto(ProtoMessage.FromString(answer[1]))


def facts(reply) -> dict:
    return dict(reply.content["facts"])


@pytest.mark.slow
def test_one_process_answers_many_messages(start, monkeypatch):
    monkeypatch.setenv("FLWR_SECRET", "x")
    worker = start()
    first, second = (facts(ask(worker, do="tell")) for _ in range(2))
    assert first == second
    assert first["pid"] != os.getpid()
    assert first["token"] == "False"


@pytest.mark.slow
def test_a_worker_that_dies_is_told_and_the_next_message_has_a_new_one(start):
    worker = start()
    with pytest.raises(WorkerDiedError, match="signal 9"):
        ask(worker, do="die")
    assert facts(ask(worker, do="tell"))


@pytest.mark.slow
def test_a_worker_that_takes_too_long_is_ended(start):
    worker = start()
    with pytest.raises(PolicyError, match="most-seconds"):
        ask(worker, most_s=0.5, do="sleep")
    assert facts(ask(worker, do="tell"))


@pytest.mark.slow
def test_work_that_nobody_waits_for_is_ended(start):
    worker = start()
    ask(worker, do="tell")
    process = worker._process
    with pytest.raises(NotWantedError):
        ask(worker, wanted=lambda: False, do="sleep")
    assert process.poll() is not None


@pytest.mark.slow
def test_an_errors_text_stays_in_the_worker(start):
    reply = ask(start(), do="fail")
    assert reply.error.reason == "the client's code failed with ValueError"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_without_network_not_even_this_machine_can_be_reached(start):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert facts(ask(start(), do="call", port=port))["reached"] == "yes"
        assert facts(ask(start(network=False), do="call", port=port))["reached"] == "no"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_worker_does_not_outlive_the_node(bundle):
    code = f"""
import time
from client.node.worker_link import Worker
worker = Worker({bundle!r}, True)
worker.start()
print(worker._process.pid, flush=True)
time.sleep(60)
"""
    node = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(node.stdout.readline())
    time.sleep(1.0)
    os.kill(node.pid, signal.SIGKILL)
    node.wait()
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the worker lives on")
    node.stdout.close()


def link(theirs_does) -> tuple[Worker, subprocess.Popen]:
    """A worker whose process is another, and whose socket somebody else writes to."""
    worker = Worker("", True)
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(["sleep", "600"])
    worker._process, worker._socket, worker._ready = process, ours, True
    theirs_does(theirs)
    worker.theirs = theirs
    return worker, process


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"\0\0\0\0\0\0\0\x05123", b"asked"),  # stops in the middle of a frame
        (b"", b"x" * 10_000_000),  # does not read what it is asked
    ],
)
def test_a_worker_that_stops_half_way_is_ended_in_time(sent, message):
    worker, process = link(lambda theirs: theirs.sendall(sent))
    with worker.theirs, pytest.raises(PolicyError, match="most-seconds"):
        worker.ask(b"context", message, 0.1, lambda: True)
    assert process.poll() is not None


def test_a_worker_that_stops_half_way_is_ended_where_nobody_waits():
    worker, process = link(lambda theirs: theirs.sendall(b"\0\0"))
    with worker.theirs, pytest.raises(NotWantedError):
        worker.ask(b"context", b"message", 0.0, lambda: False)
    assert process.poll() is not None


def test_after_a_frame_that_is_too_long_nothing_is_read_from_that_worker(monkeypatch):
    monkeypatch.setattr("client.node.worker_link.MOST_BYTES", 4)
    worker, process = link(lambda theirs: send_frame(theirs, b"12345"))
    with worker.theirs, pytest.raises(WorkerDiedError, match="5 bytes"):
        worker.ask(b"context", b"message", 0.0, lambda: True)
    assert process.poll() is not None
    assert worker._process is None


def test_a_frame_that_is_too_long_is_not_read():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_frame(ours, b"12345")
        with pytest.raises(ValueError, match="5 bytes, at most 4"):
            receive_frame(theirs, 4)


def test_a_frame_cut_short_is_no_frame():
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(b"\0\0\0\0\0\0\0\x05123")
        with pytest.raises(EOFError):
            receive_frame(theirs)
