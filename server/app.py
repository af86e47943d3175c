"""The Flower server: reads the two settings of `flwr run`, then runs the experiment."""

import logging
import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.errors import FedMTLError
from common.experiment_file import load_experiment, parse_set
from server.federation import federate
from server.run_folder import RunFolder

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
    """Run the experiment that ``flwr run . -c 'experiment="..." set="..."'`` names.

    The run folder is ``runs/<experiment>-<time>`` under ``FEDMTL_RUNS``, or under the home folder
    where that is unset: the process of a ServerApp starts in a folder that Flower chooses.
    """
    import os

    logging.getLogger("flwr").addFilter(ONE_LINE)  # the error itself marks the run as failed
    settings = context.run_config
    experiment = load_experiment(str(settings["experiment"]), parse_set(str(settings["set"])))
    runs = Path(os.environ.get("FEDMTL_RUNS") or Path.home() / ".fedmtl" / "runs")
    folder = RunFolder(runs / f"{experiment.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    folder.create(experiment, "flower")
    federate(grid, experiment, folder)
