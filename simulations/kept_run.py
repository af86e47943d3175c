"""A client's trained model in the run folder of a simulation."""

from collections.abc import Sequence
from pathlib import Path

from client.kept_model import KeptModel
from common.cells import list_names
from common.clients import open_clients
from common.encoding import encode
from common.errors import CheckpointError
from common.natural_order import natural_sort
from simulations.kept_federation import KeptFederation, open_federation, open_snapshots


def open_run(folder: Path, client: str = "", data: str | None = None) -> KeptModel:
    """Read a client's model from a simulation's run folder; its data is read to fit scalings anew.

    Args:
        folder: the run folder.
        client: whose model; may be left out where there is one client.
        data: where the raw data is, if not where the experiment says.

    Raises:
        CheckpointError: the folder holds no such model, or cannot be read.
        ConfigError, DataError: the run's data cannot be read any more.
    """
    (model,) = _models(folder, [open_federation(folder, data)], client)
    return model


def open_run_snapshots(folder: Path, client: str = "", data: str | None = None) -> list[KeptModel]:
    """Read a client's models of all snapshots and of the end of a run; as `open_run`.

    Raises:
        CheckpointError, ConfigError, DataError: as there; or the run kept no snapshots.
    """
    return _models(folder, open_snapshots(folder, data), client)


def _models(folder: Path, kept: Sequence[KeptFederation], client: str) -> list[KeptModel]:
    last = kept[-1]
    client = _choose(folder, last, client)
    table = open_clients(last.experiment).read(client)
    fitted = encode(table, last.experiment, last.agreement).fitted
    return [one.model_of(client, fitted) for one in kept if client in one.own]


def _choose(folder: Path, kept: KeptFederation, client: str) -> str:
    names = natural_sort(kept.own)
    if not names:
        raise CheckpointError(
            f"{folder} holds no client's heads, which stay with the clients; give the state folder "
            "of a node, or the folder of a run with --engine loopback or batched"
        )
    if not client and len(names) == 1:
        client = names[0]
    if client not in kept.own:
        got = f"got '{client}'" if client else "got nothing"
        raise CheckpointError(
            f"--client must name one of the {len(names)} clients that took part, {got}; there are "
            f"{list_names(names)}"
        )
    if kept.groups and client not in kept.groups:
        raise CheckpointError(
            f"--client must name a client of one of the {kept.group_count} groups that {folder} "
            f"ended with, each with its own trunk, got '{client}', of which no update was ever "
            f"used; there are {list_names(natural_sort(kept.groups))}"
        )
    return client
