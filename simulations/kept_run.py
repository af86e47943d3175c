"""A client's trained model in the run folder of a simulation."""

from pathlib import Path

from client.kept_model import KeptModel
from client.own_arrays import used_arrays
from common.agreement import Agreement
from common.cells import list_names
from common.clients import open_clients
from common.encoding import encode
from common.errors import CheckpointError
from common.experiment_file import load_experiment
from common.natural_order import natural_sort
from server.run_folder import RunFolder
from simulations.client_log import ClientLog, Own, as_of


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
    experiment = load_experiment(str(folder / "experiment.toml"), data_path=data)
    checkpoints = RunFolder(folder).checkpoints()
    progress, trunk = checkpoints.load(experiment.fingerprint())
    client, own = _choose(folder, ClientLog().restore(checkpoints.folder, progress.files), client)
    trunk, number = checkpoints.choose(progress, trunk)
    agreement = Agreement.from_json(progress.agreement)
    table = open_clients(experiment).read(client)
    return KeptModel(
        run=progress.run or folder.name,
        client=client,
        round=number,
        experiment=experiment,
        agreement=agreement,
        fitted=encode(table, experiment, agreement).fitted,
        arrays=used_arrays(experiment, trunk, as_of(own, number).arrays),
    )


def _choose(folder: Path, kept: dict[str, Own], client: str) -> tuple[str, Own]:
    names = natural_sort(kept)
    if not names:
        raise CheckpointError(
            f"{folder} holds no client's heads, which stay with the clients; give the state folder "
            "of a node, or the folder of a run with --engine loopback or batched"
        )
    if not client and len(names) == 1:
        client = names[0]
    if client not in kept:
        got = f"got '{client}'" if client else "got nothing"
        raise CheckpointError(
            f"--client must name one of the {len(names)} clients that took part, {got}; there are "
            f"{list_names(names)}"
        )
    return client, kept[client]
