"""A contender's side of the arena: report a turn of rounds, wait for the next.

The two sides exchange JSON lines over a socket. A contender starts up and trains its first round
unasked; from then on it does what it is told. ``{"rounds": n}``: train so many and answer with the
seconds they took. ``{"save": path}``: write the trunk there as an NPZ file. ``{}``: stop.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Trunk = Mapping[str, NDArray[np.float32]]  # parameter name -> values


class Stopped(Exception):  # noqa: N818  (nothing went wrong)
    """The arena has seen enough."""


class Turns:
    """Counts and times the rounds of one contender.

    Args:
        connection: to the arena.
    """

    def __init__(self, connection: socket.socket) -> None:
        os.set_inheritable(connection.fileno(), False)  # the contender's own processes stay out
        self._connection, self._requests = connection, connection.makefile("r")
        self._left, self._since = 1, time.perf_counter()

    def end_round(self, read_trunk: Callable[[], Trunk]) -> None:
        """Note that a round is done; at the end of a turn, report and wait.

        Args:
            read_trunk: gives the trunk as it stands.

        Raises:
            Stopped: there is no further turn.
        """
        self._left -= 1
        if self._left:
            return
        self._send({"wall_s": time.perf_counter() - self._since})
        for line in self._requests:
            request = json.loads(line)
            if "save" in request:
                np.savez(request["save"], allow_pickle=False, **read_trunk())
                self._send({})
            elif "rounds" in request:
                self._left, self._since = request["rounds"], time.perf_counter()
                return
            else:
                break
        raise Stopped

    def skip(self, reason: str) -> None:
        """Say that this contender cannot do the work, instead of a first round."""
        self._send({"skipped": reason})

    def _send(self, answer: Mapping[str, Any]) -> None:
        self._connection.sendall(json.dumps(answer).encode() + b"\n")
