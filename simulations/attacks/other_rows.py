"""A federation in this process whose clients have other rows than their data's."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from client.app import app
from client.session import LocalRows, close_sessions, lent_rows
from client.stacked_model import find_batched_obstacle
from common.agreement import Agreement, Description, describe_prepared
from common.dataset import ClientData
from common.encoding import encode_prepared
from common.experiment import Experiment
from common.preparation import PreparedClient
from server.federation import federate
from server.run_folder import RunFolder
from simulations.batched import BatchedGrid
from simulations.circumstances import Circumstances
from simulations.hostile import Hostile
from simulations.loopback import FIRST_NODE, LoopbackGrid


class PreparedRows(LocalRows):
    """Rows that were prepared and divided elsewhere.

    Args:
        experiment: of the federation that is to train on them.
        prepared: client -> its rows.
    """

    def __init__(self, experiment: Experiment, prepared: Mapping[str, PreparedClient]) -> None:
        super().__init__(experiment)
        self.prepared = prepared
        self.__dict__["names"] = tuple(prepared)  # in the place of those of the experiment's data

    def describe(self, name: str) -> Description:
        """Describe a client."""
        return describe_prepared(name, lambda: self.prepared[name], self.experiment)

    def encode(self, name: str, agreement: Agreement) -> ClientData:
        """Encode a client's rows."""
        return encode_prepared(self.prepared[name], self.experiment, agreement)


def engine_of(experiment: Experiment) -> str:
    """Name the engine of `run_on`."""
    return "loopback" if find_batched_obstacle(experiment) else "batched"


def run_on(
    rows: PreparedRows,
    folder: RunFolder,
    hostile: Hostile | None = None,
    opened: Callable[[LoopbackGrid], None] | None = None,
) -> dict[str, Any]:
    """Run an experiment on these rows, on the fastest engine in this process that can train it.

    Args:
        rows: of its clients.
        folder: of the run, made by the caller.
        hostile: clients that do not send what they trained.
        opened: is given the engine before the run.

    Returns:
        What results.json holds.

    Raises:
        FedMTLError: the rows or the settings cannot serve.
    """
    experiment = rows.experiment
    kind = BatchedGrid if engine_of(experiment) == "batched" else LoopbackGrid
    logging.getLogger("flwr").setLevel(logging.WARNING)
    with lent_rows(rows):
        grid = kind(app, rows.names, Circumstances.of(experiment, hostile))
        if opened is not None:
            opened(grid)
        try:
            return federate(grid, experiment, folder, strict=True, keep_clients=grid.keep_clients)
        finally:
            grid.close()
            close_sessions()


def read_own(grid: LoopbackGrid, client: str) -> Mapping[str, Any]:
    """Read what one client keeps at home at this moment of a run."""
    if isinstance(grid, BatchedGrid):
        if grid.residents is None:
            raise RuntimeError("no round has begun")
        return grid.residents.own_states([client])[client].arrays
    node = FIRST_NODE + grid.names.index(client)
    return grid.own_states([node])[client].arrays
