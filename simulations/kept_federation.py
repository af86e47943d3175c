"""What a run left: its trunk, or its groups' trunks, and what each of its clients keeps at home."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from client.kept_model import KeptModel
from client.own_arrays import used_arrays
from common.agreement import Agreement, input_shapes
from common.encoder import InputShapes
from common.errors import CheckpointError
from common.experiment import Experiment
from common.fitted import Fitted
from common.methods import make_options
from common.strategies import STRATEGIES
from common.wire import FloatArray, pack_arrays
from server.checkpoint import Checkpoints
from server.federation import initial_trunk
from server.flat_trunk import FlatTrunk
from server.run_folder import RunFolder
from simulations.client_log import ClientLog, Own, as_of
from simulations.run_record import experiment_of

Trunk = Mapping[str, FloatArray]


@dataclass(frozen=True)
class KeptFederation:
    """A run's end, or one of its snapshots.

    Attributes:
        run: its name.
        round: number of rounds that the trunk has seen.
        experiment: its settings.
        agreement: what its clients agreed on.
        trunk: what travelled, as the run ended with it, or as it stood then; of several groups
            their mean, as for newcomers.
        own: client -> what it keeps at home; empty where the run's folder does not have it.
        groups: client -> the trunk of its group; empty where all had the same.
    """

    run: str
    round: int
    experiment: Experiment
    agreement: Agreement
    trunk: Trunk
    own: Mapping[str, Own]
    groups: Mapping[str, Trunk] = field(default_factory=dict)

    @property
    def shapes(self) -> InputShapes:
        """Shapes of one encoded row, by input."""
        return input_shapes(self.agreement)

    @property
    def group_count(self) -> int:
        """Number of trunks."""
        return len({id(trunk) for trunk in self.groups.values()}) or 1

    def trunk_of(self, client: str) -> Trunk:
        """Get the trunk that the server would send a client."""
        return self.groups.get(client, self.trunk)

    def arrays_of(self, client: str) -> dict[str, FloatArray]:
        """Get the parameters that a client uses."""
        return used_arrays(self.experiment, self.trunk_of(client), self.own[client].arrays)

    def model_of(self, client: str, fitted: Fitted) -> KeptModel:
        """Make the model of a client that keeps something."""
        return KeptModel(
            run=self.run,
            client=client,
            round=self.round,
            experiment=self.experiment,
            agreement=self.agreement,
            fitted=fitted,
            arrays=self.arrays_of(client),
        )


def open_federation(folder: Path, data: str | None = None) -> KeptFederation:
    """Read a run folder.

    Args:
        folder: of a simulation; a deployment's has no client's own state.
        data: where raw data is, if not where the experiment says.

    Raises:
        CheckpointError: it is none, or has done no round.
    """
    return read_federation(folder, experiment_of(folder, data))


def open_snapshots(folder: Path, data: str | None = None) -> list[KeptFederation]:
    """Read a run's snapshots, the oldest first, and its end, which is the last of them.

    Args:
        folder: of a simulation.
        data: where raw data is, if not where the experiment says.

    Raises:
        CheckpointError: it is none, has done no round, or kept no snapshot beside its end.
    """
    last = open_federation(folder, data)
    snapshots = RunFolder(folder).snapshots()
    others = [number for number in snapshots.rounds() if number != last.round]
    if not others:
        every = last.experiment.federation.snapshot_every
        raise CheckpointError(
            f"{folder} has no snapshot of another round than that it ended with, {last.round} "
            f"(federation.snapshot-every {every}); train it anew with --set "
            "federation.snapshot-every=N, or choose another run"
        )
    kept = [_read(snapshots.at(number), last.experiment, folder) for number in others]
    return [*kept, last]


def read_federation(folder: Path, experiment: Experiment) -> KeptFederation:
    """Read the checkpoint of a run whose experiment is at hand; see `open_federation`."""
    return _read(RunFolder(folder).checkpoints(), experiment, folder)


def _read(checkpoints: Checkpoints, experiment: Experiment, folder: Path) -> KeptFederation:
    progress, trunk = checkpoints.load(experiment.fingerprint())
    if not progress.agreement or not progress.usable_rounds:
        raise CheckpointError(f"{folder} has done no round yet; resume the run first")
    agreement = Agreement.from_json(progress.agreement)
    trunk, number = checkpoints.choose(progress, trunk)
    everything = ClientLog().restore(checkpoints.folder, progress.files)
    own = {name: as_of(kept, number) for name, kept in everything.items()}
    # Strategies with groups end with their last trunks: evaluation.keep 'best' refuses them.
    state = checkpoints.load_strategy(progress)
    return KeptFederation(
        run=progress.run or folder.name,
        round=number,
        experiment=experiment,
        agreement=agreement,
        trunk=trunk,
        own=own,
        groups=group_trunks(experiment, agreement, trunk, state, tuple(own)),
    )


def group_trunks(
    experiment: Experiment,
    agreement: Agreement,
    trunk: Trunk,
    state: Mapping[str, NDArray[Any]],
    clients: tuple[str, ...],
) -> dict[str, Trunk]:
    """Ask a run's strategy which trunk of its own it would send each client.

    Args:
        experiment: names the strategy.
        agreement: what the clients agreed on.
        trunk: what a client is sent that the strategy has no trunk for.
        state: what the strategy remembers; see `server.strategy.TrunkStrategy.state`.
        clients: those that are asked for, beside those that the strategy names in results.json.

    Returns:
        Client -> trunk, one object for each group; {} where all are sent the same.

    Raises:
        CheckpointError: the strategy cannot read what it remembers.
    """
    own = {n.removeprefix("rule."): array for n, array in state.items() if n.startswith("rule.")}
    if not own:
        return {}
    name, options = experiment.federation.strategy, experiment.federation.strategy_options
    rule = STRATEGIES[name].load()(make_options(STRATEGIES, name, options), experiment)
    try:
        rule.restore(own)
        names = dict.fromkeys([*clients, *rule.figures().get("groups", {})])
        rows = {client: row for client in names if (row := rule.trunk_of(client)) is not None}
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint's strategy file holds {sorted(own)}, which strategy '{name}' cannot "
            f"read ({type(error).__name__}); it may be of another version of fedmtl"
        ) from error
    if len({row.ctypes.data for row in rows.values()}) < 2:
        return {}  # one group, whose mean is the trunk
    # A file keeps no order; a flat trunk has that of the model.
    order = initial_trunk(experiment, agreement)
    form = FlatTrunk(pack_arrays({parameter: trunk[parameter] for parameter in order}))
    cut = {row.ctypes.data: {**trunk, **form.cut(row)} for row in rows.values()}
    return {client: cut[row.ctypes.data] for client, row in rows.items()}
