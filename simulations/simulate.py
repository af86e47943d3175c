"""One simulated run: an experiment, an engine, a run folder."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.agreement import require_clients
from common.algorithms import ALGORITHMS
from common.availability import require_known
from common.clients import open_clients
from common.errors import ConfigError
from common.experiment import Experiment
from server.federation import federate
from server.run_folder import RunFolder
from server.sampling import refuse_delays
from server.snapshots import refuse_snapshots
from server.watch import Listener, Watch
from simulations.run_lock import at_work

if TYPE_CHECKING:
    from simulations.hostile import Hostile
    from simulations.loopback import LoopbackGrid

BATCHED_FROM = 2  # clients a round from which the batched engine pays
IN_PROCESS = ("loopback", "batched")  # engines whose clients are at home in this process


@dataclass(frozen=True)
class Run:
    """What an engine is given.

    Attributes:
        experiment: the resolved experiment.
        folder: the run's folder.
        resume: go on from its checkpoint.
        workers: processes that train; engines with workers of their own pass it over.
        listener: called with each round's line of metrics.jsonl.
        hostile: clients that send trunks they made up; engines in this process alone know it.
        record: write what travels into the folder ``wire``; see `simulations.wire_record`.
    """

    experiment: Experiment
    folder: RunFolder
    resume: bool = False
    workers: int = 1
    listener: Listener | None = None
    hostile: "Hostile | None" = None
    record: bool = False


def simulate(
    experiment: Experiment,
    *,
    engine: str,
    out: Path,
    resume: bool = False,
    workers: int = 1,
    profile: bool = False,
    listener: Listener | None = None,
    hostile: "Hostile | None" = None,
    record: bool = False,
) -> dict[str, Any]:
    """Run a whole federation on this machine.

    Args:
        experiment: the resolved experiment.
        engine: a key of `ENGINES`, or "auto"; see `choose_engine`.
        out: the run folder; must not exist unless resumed.
        resume: go on from its checkpoint.
        workers: processes of the loopback engine.
        profile: measure where the rounds' time goes, and write profile.json.
        listener: called with each round's line of metrics.jsonl.
        hostile: clients that send trunks they made up; a resumed run has those it had.
        record: write what travels into the folder ``wire``; a resumed run does if it did.

    Returns:
        What results.json holds.

    Raises:
        FedMTLError: the settings, the data or the run folder cannot be used.
    """
    from simulations.hostile import Hostile

    if engine == "auto":
        engine, _ = choose_engine(experiment, workers)
    if hostile is not None:
        check_hostile(experiment, engine)
    check_options(experiment, engine, workers=workers, profile=profile)
    check_budget(experiment)
    folder = RunFolder(out)
    with ExitStack() as stack:
        if resume:
            stack.enter_context(at_work(out))
            folder.reopen(experiment)
            hostile, record = Hostile.load(out), (out / "wire").is_dir()
        else:
            # Bad data paths, too few clients, a trace of others: told before a folder is made.
            names = open_clients(experiment).names
            require_clients(len(names), experiment)
            require_known(experiment.federation.availability, names)
            folder.create(experiment, engine)
            stack.enter_context(at_work(out))
            if hostile is not None:
                hostile.save(out)
        run = Run(experiment, folder, resume, workers, listener, hostile, record)
        return run_profiled(engine, run) if profile else ENGINES[engine](run)


def check_hostile(experiment: Experiment, engine: str) -> None:
    """Refuse hostile clients where none can be simulated, or where they could do no harm.

    Raises:
        ConfigError: names the option and a way out.
    """
    if engine not in IN_PROCESS:
        raise ConfigError(
            f"--hostile is for the engines {' and '.join(IN_PROCESS)}, got '{engine}'; choose one "
            "of them, or remove it"
        )
    if experiment.privacy.secure_aggregation is not None:
        raise ConfigError(
            "--hostile must be left out under [privacy.secure-aggregation], where a trunk that was "
            "made up would be masked like any other; remove one of the two"
        )
    algorithm = experiment.federation.algorithm
    if ALGORITHMS[algorithm].shares == "nothing":
        raise ConfigError(
            f"--hostile is for a federation.algorithm that sends a trunk, got '{algorithm}', which "
            "sends none; choose another, or remove the option"
        )


def check_budget(experiment: Experiment) -> None:
    """Refuse a budget of rows that nobody would keep: a simulated client has no ledger.

    Raises:
        ConfigError: names the settings and a way out.
    """
    level, counts = experiment.privacy.example_level, experiment.privacy.counts
    if counts == "withheld" and level and level.epsilon and level.noise_multiplier:
        raise ConfigError(
            "privacy.example-level.epsilon must be left out of a simulation with privacy.counts "
            f"'withheld' and a noise-multiplier, got {level.epsilon:g}: its server does not know "
            "what rows cost, and its clients keep no ledgers; remove it, or noise-multiplier"
        )


def check_options(experiment: Experiment, engine: str, *, workers: int, profile: bool) -> None:
    """Refuse what an engine cannot do, or not with these options, before a folder is made.

    Raises:
        ConfigError: names the setting and a way out.
    """
    from client.precision import require_precision
    from client.stacked_model import find_batched_obstacle  # imports PyTorch
    from client.training import choose_device
    from common.threads import why_not_fork

    if workers > 1 and engine != "loopback":
        raise ConfigError(f"--workers is for --engine loopback, got engine '{engine}'; remove it")
    if workers > 1 and (reason := why_not_fork()):
        raise ConfigError(f"--workers must be 1 in this process, got {workers}: {reason}")
    if profile:
        check_profiled(experiment, engine, workers)
    if engine == "batched" and (obstacle := find_batched_obstacle(experiment)):
        raise ConfigError(
            f"engine 'batched' cannot train this model: {obstacle}; use --engine loopback"
        )
    if engine == "flower":
        refuse_delays(experiment, "on engine 'flower'")
        refuse_snapshots(experiment, "on engine 'flower'")
    device = choose_device(experiment.training.device)  # else every client would refuse each round
    require_precision(experiment.training.precision, device)


def check_profiled(experiment: Experiment, engine: str, workers: int) -> None:
    """Refuse to profile a run that the profile would not be about."""
    if engine not in IN_PROCESS:
        raise ConfigError(
            f"--profile measures one process: the engine must be one of {', '.join(IN_PROCESS)}, "
            f"got '{engine}'; choose one of them, or remove --profile"
        )
    if workers > 1:
        raise ConfigError(
            f"--profile measures one process: --workers must be 1, got {workers}; remove one of "
            "the two options"
        )
    if experiment.training.compile:
        raise ConfigError(
            "--profile measures the parts of a step, which training.compile makes one: it must be "
            "false, got true; remove one of the two"
        )


def choose_engine(experiment: Experiment, workers: int = 1) -> tuple[str, str]:
    """Pick the engine that is fastest for an experiment on this machine, and say why.

    Whoever asks for worker processes gets the engine that has them.

    >>> from common.experiment_file import load_experiment
    >>> choose_engine(load_experiment("digits"))[0]
    'batched'
    """
    from client.stacked_model import find_batched_obstacle  # imports PyTorch

    if workers > 1:
        return "loopback", f"--workers {workers} are for it"
    if obstacle := find_batched_obstacle(experiment):
        return "loopback", obstacle
    wanted = experiment.federation.clients_per_round
    count = len(open_clients(experiment).names) if wanted == "all" else wanted
    if count < BATCHED_FROM:
        return "loopback", f"{count} clients a round are too few to stack"
    return "batched", f"{count} clients a round train as one stacked model"


def run_loopback(run: Run) -> dict[str, Any]:
    """Run client after client, in this process or on workers; see `simulations.loopback`."""
    from client.app import app
    from simulations.circumstances import Circumstances
    from simulations.loopback import LoopbackGrid
    from simulations.workers import WorkerGrid

    names = open_clients(run.experiment).names
    meet = Circumstances.of(run.experiment, run.hostile)
    if run.workers > 1:
        return _run(run, WorkerGrid(app, names, run.workers, meet))
    return _run(run, LoopbackGrid(app, names, meet))


def run_batched(run: Run) -> dict[str, Any]:
    """Run a round's clients as one stacked model; see `simulations.batched`."""
    from client.app import app
    from simulations.batched import BatchedGrid
    from simulations.circumstances import Circumstances

    meet = Circumstances.of(run.experiment, run.hostile)
    return _run(run, BatchedGrid(app, open_clients(run.experiment).names, meet))


def run_profiled(engine: str, run: Run) -> dict[str, Any]:
    """Run on an engine and measure where the rounds' time goes; see `simulations.profile`."""
    from simulations.profile import take_profile, write_profile

    with take_profile(run.listener) as profile:
        results = ENGINES[engine](replace(run, listener=profile.on_round))
    write_profile(run.folder.path, {"engine": engine, **profile.describe()})
    return results


def _run(run: Run, grid: "LoopbackGrid") -> dict[str, Any]:
    """Run on a grid that lives in this process."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    from client.session import close_sessions
    from simulations.wire_record import start_record

    progress = None
    try:
        if run.resume:
            checkpoints = run.folder.checkpoints()
            progress, _ = checkpoints.load(run.experiment.fingerprint())
            grid.restore_clients(checkpoints.folder, progress.files)
        if run.record:
            start_record(grid, run.folder, run.experiment, progress.round if progress else None)
        return federate(
            grid,
            run.experiment,
            run.folder,
            resume=run.resume,
            strict=True,
            keep_clients=grid.keep_clients,
            watch=Watch(run.listener),
        )
    finally:
        grid.close()
        close_sessions()


def run_flower(run: Run) -> dict[str, Any]:
    """Run on Flower's Simulation Runtime; see `simulations.flower_engine`."""
    from simulations.flower_engine import run_flower as run_on_ray

    return run_on_ray(run.experiment, run.folder, run.resume, run.listener, run.record)


ENGINES: dict[str, Callable[[Run], dict[str, Any]]] = {
    "loopback": run_loopback,
    "batched": run_batched,
    "flower": run_flower,
}
