"""What one finished run brings to an ensemble: its clients' models, and who holds which rows.

Rows of several runs are told apart by their clients' names and by their numbers in the data before
it was dealt to clients, which are the same whichever seed dealt it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.kept_model import KeptModel
from common.cells import list_names
from common.clients import open_clients
from common.encoding import fit
from common.errors import CheckpointError, ConfigError
from common.experiment import Experiment
from common.partition import partition_rows, pool_tables
from common.preparation import PreparedClient, UnusableClientError, prepare
from common.sources.registry import open_source
from common.splits import IndexArray
from common.tables import ClientTable
from server.run_folder import RunFolder
from simulations.kept_federation import KeptFederation, open_federation, open_snapshots


@dataclass(frozen=True)
class Member:
    """A finished run.

    Attributes:
        name: its folder, as it was given.
        kept: trunk, and what clients keep at home.
        clients: rows of the clients that keep heads, split as the run split them.
        numbers: client -> int64 [N], the number of each of its rows in the undealt data, rising.
        without_heads: clients that took part in no round, so that nothing of theirs is kept.
    """

    name: str
    kept: KeptFederation
    clients: Mapping[str, PreparedClient]
    numbers: Mapping[str, IndexArray]
    without_heads: tuple[str, ...]

    @property
    def experiment(self) -> Experiment:
        """The run's settings."""
        return self.kept.experiment

    def model(self, client: str) -> KeptModel:
        """Make a client's model; its scalings are fitted anew on its training rows."""
        return self.kept.model_of(client, fit(self.clients[client], self.experiment))

    def table(self, client: str) -> ClientTable:
        """Read a client's raw rows."""
        return open_clients(self.experiment).read(client)


def open_member(folder: Path, data: str | None = None) -> Member:
    """Read a finished run and split its clients' rows as it did.

    Args:
        folder: of a simulation.
        data: where raw data is, if not where the experiment says.

    Raises:
        CheckpointError: it is none, has not ended, or keeps no heads.
        ConfigError, DataError: the run's data cannot be read any more.
    """
    kept = open_federation(folder, data)
    if not RunFolder(folder).results.is_file():
        raise CheckpointError(
            f"{folder} must be a finished run, got one after round {kept.round} of "
            f"{kept.experiment.federation.rounds}; go on with fedmtl simulate --resume {folder}"
        )
    if not kept.own:
        raise CheckpointError(
            f"{folder} holds no client's heads, which an ensemble predicts with; give the folder "
            "of a run with --engine loopback or batched"
        )
    source, clients = open_clients(kept.experiment), {}
    for name in source.names:
        try:
            clients[name] = prepare(source.read(name), kept.experiment)
        except UnusableClientError:  # the run left it out
            continue
    numbers = number_rows(kept.experiment, {n: _rows_of(c) for n, c in clients.items()})
    without = tuple(name for name in clients if name not in kept.own)
    present = {name: own for name, own in clients.items() if name in kept.own}
    return Member(str(folder), kept, present, numbers, without)


def open_snapshot_members(folder: Path, data: str | None = None) -> list[Member]:
    """Read a finished run once for each of its snapshots, the oldest first, and for its end.

    A client counts that kept heads in all of them.

    Raises:
        CheckpointError: it is none, has not ended, keeps no heads, or kept no snapshots.
        ConfigError, DataError: the run's data cannot be read any more.
    """
    last = open_member(folder, data)
    kept = open_snapshots(folder, data)
    present = {n: own for n, own in last.clients.items() if all(n in one.own for one in kept)}
    without = tuple(name for name in last.clients if name not in present)
    without += last.without_heads
    return [
        Member(f"round {one.round}", one, present, last.numbers, without if one is kept[-1] else ())
        for one in kept
    ]


def number_rows(experiment: Experiment, sizes: Mapping[str, int]) -> dict[str, IndexArray]:
    """Number the rows of clients as the data had them before it was dealt.

    Args:
        experiment: names the data and its partition.
        sizes: client -> its number of rows.

    Returns:
        Client -> int64 [N], rising.
    """
    if experiment.partition is None:  # nothing is dealt: a client has the rows of its file
        return {name: np.arange(count) for name, count in sizes.items()}
    return partition_rows(
        pool_tables(open_source(experiment.data)),
        experiment.partition,
        experiment.data_seed,
        experiment.data.min_rows,
    )


def _rows_of(prepared: PreparedClient) -> int:
    return len(next(iter(prepared.inputs.values())).values)


def check_members(members: Sequence[Member]) -> None:
    """Refuse runs that cannot vote together.

    Raises:
        ConfigError: one is there twice, or has other data or other tasks; the first is the measure.
    """
    first = members[0]
    seen: dict[tuple[str, int], str] = {}
    for member in members:
        known = (member.experiment.fingerprint(), member.kept.round)
        if known in seen:
            raise ConfigError(
                f"RUN must name runs that differ, got {seen[known]} and {member.name} with the "
                "same settings, seed and round, whose models are the same; remove one"
            )
        seen[known] = member.name
        for setting, got, wanted in _differences(member.experiment, first.experiment):
            raise ConfigError(
                f"RUN must name runs of the same data and tasks, got {setting} {got} in "
                f"{member.name} and {wanted} in {first.name}; give runs that agree"
            )


def _differences(one: Experiment, other: Experiment) -> list[tuple[str, str, str]]:
    """List what differs of data and tasks: (setting, here, there)."""
    pairs = [_identity(one), _identity(other)]
    settings = [*dict.fromkeys(key for found in pairs for key in found)]
    found = [(key, *(pair.get(key, "nothing") for pair in pairs)) for key in settings]
    return [(key, here, there) for key, here, there in found if here != there]


def _identity(experiment: Experiment) -> dict[str, str]:
    """Say by setting which rows an experiment speaks of and what it predicts of them."""
    data, partition = experiment.data, experiment.partition
    path = str(Path(data.path).resolve()) if data.path else ""
    told = {
        "data.source": data.source,
        "data.path": path,
        "data.client-column": data.client_column,
        "[partition]": "none" if partition is None else "given",
        "tasks": list_names(list(experiment.tasks)),
    }
    for key, value in (partition.model_dump(by_alias=True) if partition else {}).items():
        told[f"partition.{key}"] = str(value)
    for name, task in experiment.tasks.items():
        told[f"tasks.{name}.kind"] = task.kind
        told[f"tasks.{name}.target"] = list_names(experiment.targets(name))
        told[f"tasks.{name}.classes"] = str(task.classes)
        told[f"tasks.{name}.transform"] = task.transform
        told[f"tasks.{name}.metric"] = task.metric_name
    return {key: f"'{value}'" for key, value in told.items()}
