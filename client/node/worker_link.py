"""The guard's end of a worker: starts it, asks it, ends it, and starts it again when it died."""

import logging
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from client.node import worker as worker_module
from client.node.worker import READY, receive_frame, send_frame
from common.errors import PolicyError

logger = logging.getLogger("fedmtl.node")

TICK_S = 0.5  # how often it is looked whether a message is still wanted
START_S = 300.0  # longest time to import everything, on the slowest machine
MOST_BYTES = 2**31


class WorkerDiedError(Exception):
    """The worker ended before it answered; the message says how."""


class NotWantedError(Exception):
    """Nobody waits for the answer any longer."""


class Worker:
    """One worker process, started when it is needed.

    Args:
        bundle: folder of the bundle whose client it runs; empty for the installed package's.
        network: whether it keeps the network.
    """

    def __init__(self, bundle: str, network: bool) -> None:
        self.bundle, self.network = bundle, network
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._ready = False

    def start(self) -> None:
        """Start the process, unless it runs; it imports what it needs while we go on."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", str(Path(worker_module.__file__))]
        command += ["--socket", str(theirs.fileno())]
        command += ["--bundle", self.bundle] if self.bundle else []
        command += [] if self.network else ["--no-network"]
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=_environment(), stdin=subprocess.DEVNULL
        )
        theirs.close()
        self._socket, self._ready = ours, False

    def ask(
        self, context: bytes, message: bytes, most_s: float, wanted: Callable[[], bool]
    ) -> tuple[bytes, bytes]:
        """Hand it a message.

        Args:
            context: Flower's Context, serialised.
            message: the message, serialised.
            most_s: seconds it may take; 0 for any time.
            wanted: says whether the answer is still waited for.

        Returns:
            The context after it, and the reply, both serialised.

        Raises:
            WorkerDiedError: it ended before it answered, or sent what is no answer.
            NotWantedError: nobody waits any longer; it was ended.
            PolicyError: it took longer than it may; it was ended.
        """
        self.start()
        try:
            if not self._ready:
                line = _Line(self._connection(), START_S, wanted)
                self._ready = receive_frame(line, len(READY)) == READY
            line = _Line(self._connection(), most_s, wanted)
            send_frame(line, context)
            send_frame(line, message)
            return receive_frame(line, MOST_BYTES), receive_frame(line, MOST_BYTES)
        except TimeoutError:
            ready = self._ready
            self.close()
            if not ready:
                raise WorkerDiedError(f"the worker did not start within {START_S:g} s") from None
            raise PolicyError(
                f"the client's code took longer than {most_s:g} s and was ended "
                "(policy: code.most-seconds)"
            ) from None
        except NotWantedError:
            self.close()
            raise
        except (EOFError, OSError, ValueError) as error:
            told = self._how_it_ended(error)
            self.close()  # what it still sends must not be taken for the next answer
            raise WorkerDiedError(told) from error

    def close(self) -> None:
        """End the process."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _connection(self) -> socket.socket:
        if self._socket is None:
            raise WorkerDiedError("the worker was not started")
        return self._socket

    def _how_it_ended(self, error: Exception) -> str:
        if isinstance(error, ValueError):
            return str(error)
        code = None
        if self._process is not None:
            try:
                code = self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                return "the worker closed its socket"
        if code is not None and code < 0:
            return f"the worker was ended by signal {-code}"
        return f"the worker ended with exit status {code}; its own message stands above"


class _Line:
    """The socket to a worker, on which no call waits longer than the answer may take.

    A worker may stop in the middle of a frame, or stop reading: every byte is waited for in ticks.

    Args:
        connection: the socket.
        most_s: seconds until `TimeoutError`; 0 for any time.
        wanted: says whether the answer is still waited for; else `NotWantedError`.
    """

    def __init__(self, connection: socket.socket, most_s: float, wanted: Callable[[], bool]):
        self.connection, self.most_s, self.wanted = connection, most_s, wanted
        self.started = self.looked = time.monotonic()
        connection.setblocking(False)

    def sendall(self, content: bytes) -> None:
        """Send it all."""
        left = memoryview(content)
        while left:
            self._wait(select.POLLOUT)
            with suppress(BlockingIOError):
                left = left[self.connection.send(left) :]

    def recv_into(self, buffer: memoryview) -> int:
        """Receive what there is; 0 where the other side is gone."""
        while True:
            self._wait(select.POLLIN)
            with suppress(BlockingIOError):
                return self.connection.recv_into(buffer)

    def _wait(self, what: int) -> None:
        poll = select.poll()
        poll.register(self.connection, what)
        while True:
            now = time.monotonic()
            if self.most_s and now - self.started > self.most_s:
                raise TimeoutError
            if now - self.looked >= TICK_S:
                self.looked = now
                if not self.wanted():
                    raise NotWantedError
            if poll.poll(TICK_S * 1000):
                return


def _environment() -> dict[str, str]:
    """Give a worker what it needs, and nothing that belongs to Flower's own processes."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FLWR_")}
    kept["FLWR_TELEMETRY_ENABLED"] = "0"
    if "FLWR_HOME" in os.environ:
        kept["FLWR_HOME"] = os.environ["FLWR_HOME"]
    return kept
