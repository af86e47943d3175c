"""The batched engine: the clients of a round train as one stacked model.

Nothing passes from process to process or from message to message: the round loop asks for a whole
round, and the clients' trunks reach the strategy as rows of one matrix. Results equal the loopback
engine's to float tolerance: same splits, same shuffles, same dropout masks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from flwr.clientapp import ClientApp

from common.wire import FloatArray, Instruction
from server.bulk import BulkGrid, BulkReplies
from simulations.circumstances import PLAIN, Circumstances
from simulations.client_log import Own, write_everybody
from simulations.loopback import LoopbackGrid
from simulations.residents import Residents


class BatchedGrid(LoopbackGrid, BulkGrid):
    """Answers queries one by one, and rounds for all clients at once.

    Args:
        client_app: the app that answers queries.
        names: stable names of the clients.
        circumstances: what the clients meet.
    """

    def __init__(
        self,
        client_app: ClientApp,
        names: Sequence[str],
        circumstances: Circumstances = PLAIN,
    ) -> None:
        super().__init__(client_app, names, circumstances)
        self.residents: Residents | None = None
        self._restored: dict[str, Own] = {}
        self._trained: set[str] = set()  # clients that trained since the last checkpoint

    def train_all(
        self, clients: Sequence[str], trunk: Mapping[str, FloatArray], instruction: Instruction
    ) -> BulkReplies:
        """Train these clients on the trunk; they answer together."""
        residents = self._open(instruction)
        self._trained |= set(clients)
        meet = self.circumstances
        if meet.repeats:  # a resident always keeps something
            self._before.rewind(
                instruction.round,
                clients,
                residents.own_states,
                lambda states: residents.restore({n: own for n, own in states.items() if own}),
            )
        replies = residents.train(clients, trunk, instruction)
        if meet.hostile is not None and replies.rows is not None:
            before = np.concatenate([array.reshape(-1) for array in trunk.values()])
            rows = meet.hostile.distort_rows(clients, before, replies.rows)
            replies = replace(replies, rows=rows)
        if meet.arrivals is not None:
            arrived = meet.arrivals.times(clients, instruction.round)
            replies = replace(replies, arrived=arrived)
        return replies

    def evaluate_all(
        self, clients: Sequence[str], trunk: Mapping[str, FloatArray], instruction: Instruction
    ) -> BulkReplies:
        """Evaluate the trunk at these clients; what the instruction says is kept."""
        self._trained |= set(clients) if instruction.keep else set()
        return self._open(instruction).evaluate(clients, trunk, instruction)

    def keep_clients(
        self, folder: Path, round_number: int, *, everybody: bool = False
    ) -> dict[str, str]:
        """Write what the clients keep at home; see `server.checkpoint.KeepClients`."""
        residents = self.residents
        if residents is None:  # no round yet, so nobody keeps anything
            return {}
        if everybody:
            states = residents.own_states(residents.trained_clients())
            return write_everybody(folder, round_number, states)
        changed, self._trained = self._trained, set()
        return self._log.append(
            folder,
            round_number,
            residents.own_states(sorted(changed)),
            lambda: residents.own_states(residents.trained_clients()),
            len(self.names),
        )

    def restore_clients(self, folder: Path, files: Mapping[str, str]) -> None:
        """Read what `keep_clients` wrote."""
        self._restored = self._log.restore(folder, files)

    def _open(self, instruction: Instruction) -> Residents:
        if self.residents is None:
            self.residents = Residents(self.names, instruction)
            self.residents.restore(self._restored)
        return self.residents
