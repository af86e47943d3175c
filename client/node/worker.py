"""The process in which a client's code runs on a node: started once, kept for many messages.

It holds a socket to the node's guard and nothing else: no token of Flower's, no address, and, where
the owner's policy says so, no network at all. It runs the installed package's client, or that of a
bundle; the file therefore imports nothing of ours, so that a bundle's packages are the ones found.

Started as ``python -P worker.py --socket FD [--bundle FOLDER] [--no-network]``.
"""

import argparse
import ctypes
import os
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

LENGTH = struct.Struct("!Q")
CLONE_NEWNET, CLONE_NEWUSER = 0x40000000, 0x10000000  # of Linux's unshare(2)
PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)
READY = b"ready"


class Line(Protocol):
    """What frames travel over: a socket, or what waits for one."""

    def sendall(self, content: bytes, /) -> None:
        """Send it all."""

    def recv_into(self, buffer: memoryview, /) -> int:
        """Receive what there is; 0 where the other side is gone."""


def send_frame(connection: Line, content: bytes) -> None:
    """Send one frame: its length, then its bytes."""
    connection.sendall(LENGTH.pack(len(content)))
    connection.sendall(content)


def receive_frame(connection: Line, most: int | None = None) -> bytes:
    """Receive one frame.

    Args:
        connection: the socket.
        most: refuse a longer one.

    Raises:
        EOFError: the other side is gone.
        ValueError: the frame is longer than allowed.
    """
    (length,) = LENGTH.unpack(_receive(connection, LENGTH.size))
    if most is not None and length > most:
        raise ValueError(f"a frame of {length:,} bytes, at most {most:,} are allowed")
    return _receive(connection, length)


def _receive(connection: Line, length: int) -> bytes:
    buffer = bytearray(length)
    view, done = memoryview(buffer), 0
    while done < length:
        count = connection.recv_into(view[done:])
        if not count:
            raise EOFError
        done += count
    return bytes(buffer)


# Loaded here, because between fork and exec, where another thread may hold a lock, is no place to.
LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Ask the kernel to end this process when the one that started it ends; Linux only."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def leave_network() -> None:
    """Move this process into a network of its own, which is empty: not even loopback is up.

    Raises:
        OSError: the system does not allow it.
    """
    if LIBC is None:
        raise OSError("only Linux can take a process off the network")
    flags = CLONE_NEWNET if os.geteuid() == 0 else CLONE_NEWNET | CLONE_NEWUSER
    if LIBC.unshare(flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def load_client(bundle: str) -> Any:
    """Load the ClientApp: of a bundle's folder, or of the installed package."""
    from flwr.clientapp.client_app import LoadClientAppError
    from flwr.common.config import get_project_config
    from flwr.supercore.object_ref import load_app

    if not bundle:
        from importlib import import_module

        return import_module("client.app").app
    reference = get_project_config(bundle)["tool"]["flwr"]["app"]["components"]["clientapp"]
    sys.path.insert(0, bundle)
    return load_app(reference, LoadClientAppError, Path(bundle))


def answer(client: Any, context_bytes: bytes, message_bytes: bytes) -> tuple[bytes, bytes]:
    """Hand one message to the client.

    Returns:
        The context after it, and the reply. Of an error only its type is told: its text may quote
        private rows.
    """
    from flwr.app import Error, Message
    from flwr.common.constant import ErrorCode
    from flwr.common.serde import (
        context_from_proto,
        context_to_proto,
        message_from_proto,
        message_to_proto,
    )
    from flwr.proto.message_pb2 import Context as ProtoContext
    from flwr.proto.message_pb2 import Message as ProtoMessage
    from flwr.supercore.task_identity import TaskIdentity

    context = context_from_proto(ProtoContext.FromString(context_bytes))
    message = message_from_proto(ProtoMessage.FromString(message_bytes))
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = (
        context.run_id,
        context.node_id,
        0,
    )
    try:
        reply = client(message, context)
    except Exception as error:
        reason = f"the client's code failed with {type(error).__name__}"
        code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        reply = Message(Error(code=code, reason=reason), reply_to=message)
    return (
        context_to_proto(context).SerializeToString(),
        message_to_proto(reply).SerializeToString(),
    )


def serve(connection: socket.socket, bundle: str) -> None:
    """Answer messages until the guard is gone."""
    client = load_client(bundle)
    with suppress(EOFError, ConnectionError):
        send_frame(connection, READY)
        while True:
            context, message = receive_frame(connection), receive_frame(connection)
            for content in answer(client, context, message):
                send_frame(connection, content)


def main() -> None:
    """Read the command line, shed what the policy says, and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--bundle", default="")
    parser.add_argument("--no-network", action="store_true")
    options = parser.parse_args()
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the guard decides when to stop
    if options.no_network:
        leave_network()
    serve(socket.socket(fileno=options.socket), options.bundle)


if __name__ == "__main__":
    main()
