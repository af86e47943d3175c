"""What a finished run left: its trunk, and what each of its clients keeps at home."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from client.own_arrays import used_arrays
from common.agreement import Agreement, input_shapes
from common.encoder import InputShapes
from common.errors import CheckpointError
from common.experiment import Experiment
from common.wire import FloatArray
from server.run_folder import RunFolder
from simulations.client_log import ClientLog, Own, as_of
from simulations.run_record import experiment_of


@dataclass(frozen=True)
class KeptFederation:
    """A run's end.

    Attributes:
        run: its name.
        round: number of rounds that the trunk has seen.
        experiment: its settings.
        agreement: what its clients agreed on.
        trunk: what travelled, as the run ended with it.
        own: client -> what it keeps at home; empty where the run's folder does not have it.
    """

    run: str
    round: int
    experiment: Experiment
    agreement: Agreement
    trunk: Mapping[str, FloatArray]
    own: Mapping[str, Own]

    @property
    def shapes(self) -> InputShapes:
        """Shapes of one encoded row, by input."""
        return input_shapes(self.agreement)

    def arrays_of(self, client: str) -> dict[str, FloatArray]:
        """Get the parameters that a client uses."""
        return used_arrays(self.experiment, self.trunk, self.own[client].arrays)


def open_federation(folder: Path, data: str | None = None) -> KeptFederation:
    """Read a run folder.

    Args:
        folder: of a simulation; a deployment's has no client's own state.
        data: where raw data is, if not where the experiment says.

    Raises:
        CheckpointError: it is none, or has done no round.
    """
    return read_federation(folder, experiment_of(folder, data))


def read_federation(folder: Path, experiment: Experiment) -> KeptFederation:
    """Read the checkpoint of a run whose experiment is at hand; see `open_federation`."""
    checkpoints = RunFolder(folder).checkpoints()
    progress, trunk = checkpoints.load(experiment.fingerprint())
    if not progress.agreement or not progress.usable_rounds:
        raise CheckpointError(f"{folder} has done no round yet; resume the run first")
    own = ClientLog().restore(checkpoints.folder, progress.files)
    trunk, number = checkpoints.choose(progress, trunk)
    return KeptFederation(
        run=progress.run or folder.name,
        round=number,
        experiment=experiment,
        agreement=Agreement.from_json(progress.agreement),
        trunk=trunk,
        own={name: as_of(kept, number) for name, kept in own.items()},
    )
