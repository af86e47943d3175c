"""One contender as a live process that works when it is told to, and sleeps in between."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import FedMTLError
from simulations.benchmarks.processes import Memory, busy_s, cpu_s, family, memory

LIMIT_S = 600.0  # for one answer
FAREWELL_S = 20.0  # for an orderly end; Ray needs several seconds


class ContenderError(FedMTLError):
    """A contender cannot do the work, or stopped doing it; the message says why."""


@dataclass(frozen=True)
class Turn:
    """What one turn cost.

    Attributes:
        rounds: how many it had.
        wall_s: time they took by the contender's own clock.
        cpu_s: CPU time of all its processes.
        others_cores: cores that other processes kept busy meanwhile.
    """

    rounds: int
    wall_s: float
    cpu_s: float
    others_cores: float


class Live:
    """A started contender.

    Args:
        command: what to run; the number of the socket to it is appended.
        environment: variables beside those of this process.
        log: file for what it prints.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        ours, theirs = socket.socketpair()
        self._log, self._connection, self._buffer = log, ours, b""
        self.started = time.monotonic()
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                env={**os.environ, **environment},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        theirs.close()

    def first_round(self) -> float:
        """Wait for the first round's end; returns the seconds since the start of the process.

        Raises:
            ContenderError: it cannot do the work, or ended.
        """
        answer = self._answer()
        seconds = time.monotonic() - self.started
        if "skipped" in answer:
            raise ContenderError(answer["skipped"])
        return seconds

    def turn(self, rounds: int) -> Turn:
        """Let it train so many rounds.

        Raises:
            ContenderError: it ended.
        """
        leader = self.process.pid
        cpu, busy, started = cpu_s(leader), busy_s(), time.monotonic()
        wall = self._ask({"rounds": rounds})["wall_s"]
        span, own = time.monotonic() - started, cpu_s(leader) - cpu
        return Turn(rounds, wall, own, max(0.0, busy_s() - busy - own) / span)

    def save_trunk(self, path: Path) -> None:
        """Let it write its trunk as it stands to an NPZ file."""
        self._ask({"save": str(path)})

    def memory(self) -> Memory:
        """Add the memory of all its processes."""
        return memory(family(self.process.pid))

    def stop(self) -> None:
        """End it, and what belongs to it."""
        try:
            self._send({})
            self.process.wait(FAREWELL_S)
        except (OSError, subprocess.TimeoutExpired):
            pass
        for number in family(self.process.pid):
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()
        self._connection.close()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            self._send(request)
        except OSError:
            raise ContenderError(self._last_words()) from None
        return self._answer()

    def _send(self, request: Mapping[str, Any]) -> None:
        self._connection.sendall(json.dumps(request).encode() + b"\n")

    def _answer(self) -> dict[str, Any]:
        """Wait for one line; its worker processes may hold the socket open when it has ended."""
        end = time.monotonic() + LIMIT_S
        self._connection.settimeout(1.0)
        while b"\n" not in self._buffer:
            try:
                received = self._connection.recv(1 << 16)
            except TimeoutError:
                if self.process.poll() is None and time.monotonic() < end:
                    continue
                received = b""
            except OSError:
                received = b""
            if not received:
                raise ContenderError(self._last_words())
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        """Say how it ended, with the last line that it printed."""
        try:
            code = self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            return f"no answer within {LIMIT_S:.0f} s"
        lines = self._log.read_text(errors="replace").split("\n")
        printed = [line for line in lines if line.strip()]
        return f"ended with exit code {code}: {printed[-1] if printed else 'it printed nothing'}"
