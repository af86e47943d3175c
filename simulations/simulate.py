"""One simulated run: an experiment, an engine, a run folder."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.agreement import require_clients
from common.clients import open_clients
from common.errors import ConfigError
from common.experiment import Experiment
from server.federation import federate
from server.loop import Listener
from server.run_folder import RunFolder


def simulate(
    experiment: Experiment,
    *,
    engine: str,
    out: Path,
    resume: bool = False,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Run a whole federation on this machine.

    Args:
        experiment: the resolved experiment.
        engine: a key of `ENGINES`.
        out: the run folder; must not exist unless resumed.
        resume: go on from its checkpoint.
        listener: called with each round's line of metrics.jsonl.

    Returns:
        What results.json holds.

    Raises:
        FedMTLError: the settings, the data or the run folder cannot be used.
    """
    from client.training import choose_device  # imports PyTorch

    choose_device(experiment.training.device)  # else every client would refuse every round
    folder = RunFolder(out)
    if resume:
        progress, _ = folder.checkpoints().load(experiment.fingerprint())
        if progress.round > experiment.federation.rounds:
            raise ConfigError(
                f"federation.rounds must be at least {progress.round}, the rounds that {out} has "
                f"done, got {experiment.federation.rounds}"
            )
        folder.write_experiment(experiment)
    else:
        # Bad data paths, and too few clients to wait for, are told before a folder is made.
        require_clients(len(open_clients(experiment).names), experiment)
        folder.create(experiment, engine)
    return ENGINES[engine](experiment, folder, resume, listener)


def run_loopback(
    experiment: Experiment, folder: RunFolder, resume: bool, listener: Listener | None
) -> dict[str, Any]:
    """Run in this process; see `simulations.loopback`."""
    from client.app import app
    from simulations.loopback import LoopbackGrid

    logging.getLogger("flwr").setLevel(logging.WARNING)
    grid = LoopbackGrid(app, open_clients(experiment).names)
    if resume:
        checkpoints = folder.checkpoints()
        progress, _ = checkpoints.load(experiment.fingerprint())
        grid.restore_clients(checkpoints.folder / progress.files["clients"])
    return federate(
        grid,
        experiment,
        folder,
        resume=resume,
        strict=True,
        keep_clients=grid.keep_clients,
        listener=listener,
    )


def run_flower(
    experiment: Experiment, folder: RunFolder, resume: bool, listener: Listener | None
) -> dict[str, Any]:
    """Run on Flower's Simulation Runtime; see `simulations.flower_engine`."""
    from simulations.flower_engine import run_flower as run

    return run(experiment, folder, resume, listener)


Engine = Callable[[Experiment, RunFolder, bool, Listener | None], dict[str, Any]]
ENGINES: dict[str, Engine] = {"loopback": run_loopback, "flower": run_flower}
