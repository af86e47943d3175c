"""Federations like the attacked one, each trained on other rows by an attacker.

A shadow federation differs from the attacked run in its rows and in its seed: the attacker knows
how parameters are initialised and how noise is drawn, but not the draws of a run's noise.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from common.experiment import Experiment
from common.preparation import PreparedClient
from common.quieting import without_warnings
from common.seeding import derive_key
from server.run_folder import RunFolder
from simulations.attacks.other_rows import PreparedRows, run_on
from simulations.kept_federation import KeptFederation, read_federation


def shadow_experiment(experiment: Experiment, number: int) -> Experiment:
    """Give a shadow federation a seed of its own; it evaluates only where the run stops by that."""
    evaluation = experiment.evaluation
    if evaluation.patience is None and evaluation.keep == "last":
        never = experiment.federation.rounds + 1
        evaluation = evaluation.model_copy(update={"every": never})
    seed = derive_key(experiment.seed, "attack", "shadow", number) % 2**31
    federation = experiment.federation.model_copy(update={"snapshot_every": 0})
    changed = {"seed": seed, "evaluation": evaluation, "federation": federation}
    return experiment.model_copy(update=changed)


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
    with TemporaryDirectory() as place, without_warnings("fedmtl"):
        folder = RunFolder(Path(place))
        run_on(PreparedRows(settings, prepared), folder)
        return read_federation(folder.path, settings)
