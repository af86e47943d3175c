"""MLflow: a run in an SQLite file beside the run folder, or on the server of MLFLOW_TRACKING_URI.

``mlflow ui --backend-store-uri sqlite:///runs/mlflow.db`` shows the file.
"""

import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# A run on private data calls nobody; MLflow reads this where it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from common.experiment import Experiment
from server.checkpoint import replace_text
from simulations.tracking import Point, settings_of

DATABASE = "mlflow.db"
MEMORY = "mlflow-run"  # in the run folder: which of MLflow's runs it is
MOST_METRICS, MOST_PARAMS = 1000, 100  # that MLflow takes at once
LONGEST_PARAM = 500
GROUP = "group"  # tag of a run that is one of a comparison or a search


class MLflow:
    """Writes one of MLflow's runs.

    Args:
        folder: the run folder; an MLflow run of an earlier sitting, whose rounds come anew, is
            deleted.
        experiment: its name is MLflow's experiment, its settings are the parameters.
        name: of the run: its folder, or its place in that of its group.
        group: a tag; "" for none.
    """

    def __init__(self, folder: Path, experiment: Experiment, name: str, group: str) -> None:
        self.client = open_client(folder.resolve().parents[len(Path(name).parts) - 1])
        memory = folder / MEMORY
        if memory.is_file():
            with suppress(MlflowException):  # it was deleted by hand, or is in another database
                self.client.delete_run(memory.read_text(encoding="utf-8").strip())
        known = self.client.get_experiment_by_name(experiment.name)
        number = known.experiment_id if known else self.client.create_experiment(experiment.name)
        tags = {GROUP: group} if group else {}
        self.run: str = self.client.create_run(number, tags=tags, run_name=name).info.run_id
        replace_text(memory, self.run)
        settings = settings_of(experiment)
        params = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in settings.items()]
        for start in range(0, len(params), MOST_PARAMS):
            self.client.log_batch(self.run, params=params[start : start + MOST_PARAMS])

    def log(self, points: Sequence[Point]) -> None:
        """Add a metric for each figure."""
        now_ms = int(time.time() * 1000)
        metrics = [Metric(tag, value, now_ms, step) for tag, value, step in points]
        for start in range(0, len(metrics), MOST_METRICS):
            self.client.log_batch(self.run, metrics=metrics[start : start + MOST_METRICS])

    def close(self, *, is_whole: bool) -> None:
        """End MLflow's run, which else would be shown as running for ever."""
        self.client.set_terminated(self.run, "FINISHED" if is_whole else "KILLED")


def open_client(folder: Path) -> MlflowClient:
    """Open the SQLite file in a folder, or what the environment says."""
    for name in ("mlflow", "alembic"):  # they tell of every table that they make
        logging.getLogger(name).setLevel(logging.WARNING)
    beside = f"sqlite:///{folder / DATABASE}"
    return MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or beside)


def prepare(group: Path) -> None:
    """Make the tables of the file beside a group's folder, which processes cannot make together."""
    group.resolve().parent.mkdir(parents=True, exist_ok=True)
    open_client(group.resolve().parent).search_experiments(max_results=1)


def open_tracker(folder: Path, experiment: Experiment, name: str, group: str) -> MLflow:
    """Track a run beside its folder, beside its group's, or where the environment says."""
    return MLflow(folder, experiment, name, group)
