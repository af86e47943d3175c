"""Federations like the attacked one, each trained on other rows by an attacker.

A shadow federation differs from the attacked run in its rows and in its seed: the attacker knows
how parameters are initialised and how noise is drawn, but not the draws of a run's noise.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from client.app import app
from client.session import LocalRows, close_sessions, lent_rows
from client.stacked_model import find_obstacle
from common.agreement import Agreement, Description, describe_prepared
from common.dataset import ClientData
from common.encoding import encode_prepared
from common.experiment import Experiment
from common.preparation import PreparedClient
from common.quieting import without_warnings
from common.seeding import derive_key
from server.federation import federate
from server.run_folder import RunFolder
from simulations.attacks.kept_federation import KeptFederation, read_federation
from simulations.batched import BatchedGrid
from simulations.circumstances import PLAIN, Circumstances
from simulations.loopback import LoopbackGrid


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


def shadow_experiment(experiment: Experiment, number: int) -> Experiment:
    """Give a shadow federation a seed of its own; it evaluates only where the run stops by that."""
    evaluation = experiment.evaluation
    if evaluation.patience is None:
        never = experiment.federation.rounds + 1
        evaluation = evaluation.model_copy(update={"every": never})
    seed = derive_key(experiment.seed, "attack", "shadow", number) % 2**31
    return experiment.model_copy(update={"seed": seed, "evaluation": evaluation})


def make_grid(
    experiment: Experiment, names: tuple[str, ...], circumstances: Circumstances = PLAIN
) -> LoopbackGrid:
    """Open the fastest engine in this process that can train the experiment's model."""
    kind = LoopbackGrid if find_obstacle(experiment) else BatchedGrid
    return kind(app, names, circumstances)


def train_shadow(
    experiment: Experiment, prepared: Mapping[str, PreparedClient], number: int
) -> KeptFederation:
    """Train one shadow federation; nothing of it stays on disk.

    Args:
        experiment: of the attacked run.
        prepared: client -> its rows, of which it trains on those under "train".
        number: of the shadow federation, which decides its seed.

    Raises:
        FedMTLError: it cannot be trained, such as on too few rows.
    """
    settings = shadow_experiment(experiment, number)
    rows = PreparedRows(settings, prepared)
    circumstances = Circumstances.of(settings)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    with TemporaryDirectory() as place, lent_rows(rows), without_warnings("fedmtl"):
        folder = RunFolder(Path(place) / "shadow")
        folder.path.mkdir()
        grid = make_grid(settings, rows.names, circumstances)
        try:
            federate(grid, settings, folder, strict=True, keep_clients=grid.keep_clients)
            return read_federation(folder.path, settings)
        finally:
            grid.close()
            close_sessions()
