"""The Flower server: reads the settings of `flwr run`, then runs the experiment."""

import logging

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.errors import FedMTLError
from common.experiment_file import load_experiment
from server.deployed import followed
from server.federation import federate
from server.opening import Request, folder_to_resume, new_folder, open_again, run_of
from server.patient_grid import PatientGrid
from server.sampling import refuse_delays
from server.snapshots import refuse_snapshots

app = ServerApp()


class OneLine(logging.Filter):
    """Tells an error of the user's input in one line where Flower would log its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Reword the record; it is always kept."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, FedMTLError):
            record.msg, record.args = "; ".join(str(error).splitlines()), ()
            record.exc_info = record.exc_text = None
        return True


ONE_LINE = OneLine()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what ``flwr run . -c 'experiment="..." set="..."'`` names, or go on with a run.

    ``resume="FOLDER"`` goes on with the run in that folder of ``FEDMTL_RUNS``; ``set`` may then
    change little. ``heads-from="RUN"`` lets clients start a new run with an earlier one's heads.
    """
    prepare_logs()
    request = Request.of(context.run_config)
    if request.resume:
        resume(grid, request)
    else:
        start(grid, request)


def start(grid: Grid, request: Request) -> None:
    """Run an experiment in a new folder."""
    experiment = load_experiment(request.experiment, request.overrides)
    refuse_delays(experiment, "in a deployment")
    refuse_snapshots(experiment, "in a deployment")
    heads_from = run_of(request.heads_from)
    folder = new_folder(experiment)
    with folder.locked():
        folder.create(experiment, "flower")
        with followed(folder, experiment, resumed=False) as watch:
            patient = PatientGrid(grid, watch.beat)
            federate(patient, experiment, folder, heads_from=heads_from, watch=watch)


def resume(grid: Grid, request: Request) -> None:
    """Go on with the run of an earlier ServerApp."""
    folder = folder_to_resume(request)
    with folder.locked():
        experiment, resumed = open_again(folder, request)
        with followed(folder, experiment, resumed) as watch:
            patient = PatientGrid(grid, watch.beat)
            federate(patient, experiment, folder, resume=resumed, watch=watch)


def prepare_logs() -> None:
    """Let our lines go where Flower's go, which `flwr run --stream` shows; once a process."""
    flower, ours = logging.getLogger("flwr"), logging.getLogger("fedmtl")
    flower.addFilter(ONE_LINE)  # the error itself marks the run as failed
    ours.setLevel(logging.INFO)
    if not ours.handlers:
        for handler in flower.handlers:
            ours.addHandler(handler)
        ours.propagate = not ours.handlers
