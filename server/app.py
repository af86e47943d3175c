"""The Flower server: reads the two settings of `flwr run`, then runs the experiment."""

import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.experiment_file import load_experiment, parse_set
from server.federation import federate
from server.run_folder import RunFolder

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that ``flwr run . -c 'experiment="..." set="..."'`` names.

    The run folder is ``runs/<experiment>-<time>`` under ``FEDMTL_RUNS``, or under the home folder
    where that is unset: the process of a ServerApp starts in a folder that Flower chooses.
    """
    import os

    settings = context.run_config
    experiment = load_experiment(str(settings["experiment"]), parse_set(str(settings["set"])))
    runs = Path(os.environ.get("FEDMTL_RUNS") or Path.home() / ".fedmtl" / "runs")
    folder = RunFolder(runs / f"{experiment.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    folder.create(experiment, "flower")
    federate(grid, experiment, folder)
