"""Weights & Biases, offline: files in the run folder, which ``wandb sync`` sends once it is asked.

Nothing is sent from here, whatever the environment says: the run is opened offline, without an
account, without error reports, and without what the library would tell of machine and code.
"""

import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The library starts a reporter of its own errors where it is imported; traces may tell of rows.
os.environ["WANDB_ERROR_REPORTING"] = "false"

import wandb

from common.experiment import Experiment
from server.checkpoint import replace_text
from simulations.tracking import Point, settings_of

FOLDER = "wandb"
MEMORY = "wandb-run"  # in the run folder: which of Weights & Biases' runs it is
STEP = "round"  # what figures are drawn over
NOT_TOLD = "not told"  # in the place of the machine's name


class WeightsAndBiases:
    """Writes one run's files.

    Args:
        folder: the run folder; what an earlier sitting wrote, whose rounds come anew, is removed.
        experiment: its name is the project, its settings are the config.
        name: of the run.
        group: that it belongs to; "" for none.
    """

    def __init__(self, folder: Path, experiment: Experiment, name: str, group: str) -> None:
        folder = folder.resolve()
        memory, files = folder / MEMORY, folder / FOLDER
        known = memory.read_text(encoding="utf-8").strip() if memory.is_file() else ""
        number = known or secrets.token_hex(4)
        for old in files.glob(f"offline-run-*-{number}"):
            shutil.rmtree(old)
        replace_text(memory, number)
        files.mkdir(exist_ok=True)  # else the library takes a folder for temporary files
        os.environ["WANDB_CACHE_DIR"] = str(files)  # a log of its own, once a process
        self.run = wandb.init(
            dir=str(folder),
            id=number,
            name=name,
            group=group or None,
            project=experiment.name,
            config=settings_of(experiment),
            settings=silent_settings(),
        )
        self.run.define_metric("*", step_metric=STEP)

    def log(self, points: Sequence[Point]) -> None:
        """Add a line for each step that the figures belong to."""
        for step in dict.fromkeys(point.step for point in points):
            self.run.log({STEP: step, **{p.tag: p.value for p in points if p.step == step}})

    def close(self, *, is_whole: bool) -> None:
        """End the run; one that did not end by itself is shown as crashed."""
        self.run.finish(exit_code=0 if is_whole else 1)


def silent_settings() -> "wandb.Settings":
    """Choose what keeps the library to the files of the run folder, and to figures and settings."""
    told: dict[str, Any] = {
        "mode": "offline",
        "silent": True,
        "console": "off",  # what is printed stays where it is
        "host": NOT_TOLD,
        "reinit": "create_new",  # several runs in a process do not end each other
        "disable_git": True,
        "disable_code": True,
        "save_code": False,
        "disable_job_creation": True,
        "x_save_requirements": False,
        "x_disable_meta": True,
        "x_disable_stats": True,
        "x_disable_machine_info": True,
    }
    return wandb.Settings(**told)


def open_tracker(folder: Path, experiment: Experiment, name: str, group: str) -> WeightsAndBiases:
    """Track a run in its own folder."""
    return WeightsAndBiases(folder, experiment, name, group)
