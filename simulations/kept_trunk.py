"""The trunk of a run, and what its clients agreed on, read back for a client that took no part."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from client.personalise import SHARED
from common.agreement import Agreement
from common.clients import open_clients
from common.errors import CheckpointError
from common.experiment import Experiment
from common.wire import FloatArray
from simulations.kept_federation import KeptFederation, open_federation

FOLLOWERS = "heads."  # what a trunk's file may hold for a newcomer beside the trunk itself


@dataclass(frozen=True)
class KeptTrunk:
    """What a newcomer gets from a run.

    Attributes:
        run: its name.
        round: number of rounds that the trunk has seen.
        experiment: settings of the run; its `data.clients` names those that took part, or nobody.
        agreement: what all rows are encoded by.
        arrays: parameter name -> value: the trunk, and heads where the run shared them; of a run
            that ended with groups of clients the mean of their trunks, as it sends to newcomers.
        clients: names of those that took part, as far as the folder tells; None where it does not.
        groups: of clients, each with a trunk of its own.
    """

    run: str
    round: int
    experiment: Experiment
    agreement: Agreement
    arrays: Mapping[str, FloatArray]
    clients: frozenset[str] | None
    groups: int = 1


def open_trunk(folder: Path, data: str | None = None) -> KeptTrunk:
    """Read a run folder, of a simulation or of a deployment.

    Args:
        folder: the run folder.
        data: where raw data is, if not where the experiment says.

    Raises:
        CheckpointError: it is none, has done no round, or shares no trunk.
    """
    kept = open_federation(folder, data)
    experiment = kept.experiment
    shared = {n: a for n, a in kept.trunk.items() if n.startswith((SHARED, FOLLOWERS))}
    if not any(name.startswith(SHARED) for name in shared):
        raise CheckpointError(
            f"{folder} has no trunk for a newcomer: its clients share none (federation.algorithm "
            f"'{experiment.federation.algorithm}', trunk.widths "
            f"{list(experiment.trunk.widths)}); choose a run that shares one"
        )
    return KeptTrunk(
        run=kept.run,
        round=kept.round,
        experiment=experiment,
        agreement=kept.agreement,
        arrays=shared,
        clients=_took_part(folder, kept),
        groups=kept.group_count,
    )


def _took_part(folder: Path, kept: KeptFederation) -> frozenset[str] | None:
    """Name the clients of a run: by what it kept of them, by its figures, or by its data."""
    experiment = kept.experiment
    names = {*kept.own, *experiment.data.clients}
    with suppress(OSError, ValueError, KeyError, TypeError):  # the run did not end
        names |= set(json.loads((folder / "results.json").read_text(encoding="utf-8"))["clients"])
    if names:
        return frozenset(names)
    if experiment.partition is not None:  # a simulation, of all clients that were dealt rows
        return frozenset(open_clients(experiment).names)
    return None
