"""The flower engine: the same apps on Flower's Simulation Runtime, with Ray's worker processes.

Worth its start-up of about half a minute where one client keeps a core or a GPU busy for long:
several GPUs, many cores, a Ray cluster. Clients live in other processes here, so what they keep at
home is mirrored into the run folder, which makes the run resumable.
"""

import logging
import os
import warnings
from collections.abc import Iterable
from threading import Event
from typing import Any

from flwr.app import ConfigRecordValues, Context, Message
from flwr.serverapp import Grid, ServerApp

from client.place import SIMULATION
from common.clients import open_clients
from common.errors import FedMTLError
from common.experiment import Experiment
from server.federation import federate
from server.patient_grid import PatientGrid
from server.run_folder import RunFolder
from server.watch import Listener, Watch
from simulations.wire_record import start_record

PATIENCE_S = 10.0  # how long Ctrl-C waits for a round to be left in order


class StoppedError(Exception):
    """The run was interrupted; raised in the server's thread to end it."""


def run_flower(
    experiment: Experiment,
    folder: RunFolder,
    resume: bool,
    listener: Listener | None,
    record: bool = False,
) -> dict[str, Any]:
    """Run on Ray, one client per core; with a GPU, the clients at work share it.

    Args:
        experiment: the resolved experiment.
        folder: the run's folder.
        resume: go on from its checkpoint.
        listener: called with each round's line of metrics.jsonl.
        record: write what travels; see `simulations.wire_record`.

    Raises:
        FedMTLError: what the server side found wrong, or the runtime stopped without a result.
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ["FEDMTL_STATE"] = str((folder.path / "clients").resolve())
    os.environ[SIMULATION] = "1"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's own future default
    logging.getLogger("flwr").setLevel(logging.WARNING)
    import ray
    from flwr.simulation import run_simulation

    from client.app import app as client_app

    outcome: dict[str, Any] = {}
    done = None
    if resume:
        done = folder.checkpoints().load(experiment.fingerprint())[0].round
    count = len(open_clients(experiment).names)  # the runtime's nodes start one after another
    stopped, ended = Event(), Event()
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            stop_at_pull(grid, stopped)
            patient = PatientGrid(grid)  # it need not wait for everybody
            if record:
                start_record(patient, folder, experiment, done)
            outcome["results"] = federate(
                patient,
                experiment,
                folder,
                resume=resume,
                strict=True,
                nodes=count,
                watch=Watch(listener),
            )
        except BaseException as error:  # the runtime runs this in a thread and would only log it
            outcome["error"] = error
        finally:
            ended.set()

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            run_simulation(
                server_app,
                client_app,
                num_supernodes=count,
                backend_config=backend_config(experiment),
            )
    except KeyboardInterrupt:
        # The clients' workers may be gone: the runtime's threads would wait for them, the server's
        # for their replies until the round times out, and the process for all these threads.
        stopped.set()
        ended.wait(PATIENCE_S)
        ray.shutdown()
        raise
    if "error" in outcome:
        raise outcome["error"]
    if "results" not in outcome:
        raise FedMTLError("Flower's Simulation Runtime stopped without a result; see its log above")
    results: dict[str, Any] = outcome["results"]
    return results


def stop_at_pull(grid: Grid, stopped: Event) -> None:
    """Let a grid raise `StoppedError` when it looks for replies after the event; it often does."""
    pull = grid.pull_messages

    def pull_unless_stopped(message_ids: Iterable[str]) -> Iterable[Message]:
        if stopped.is_set():
            raise StoppedError
        return pull(message_ids)

    grid.pull_messages = pull_unless_stopped  # type: ignore[method-assign]


def backend_config(experiment: Experiment) -> dict[str, dict[str, ConfigRecordValues]]:
    """Ask Ray for one core per thread of a client, and share the GPUs among the cores' clients."""
    import torch

    threads, device = experiment.training.threads, experiment.training.device
    workers = max(1, (os.cpu_count() or 1) // threads)
    gpus = torch.cuda.device_count() if device == "auto" or "cuda" in device else 0
    return {
        "client_resources": {"num_cpus": threads, "num_gpus": min(1.0, gpus / workers)},
        "init_args": {"logging_level": "ERROR", "log_to_driver": False},
    }
