"""What the settings of `flwr run` ask for: a new run in a new folder, or an earlier one again."""

import itertools
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import CheckpointError, ConfigError
from common.experiment import Experiment
from common.experiment_file import load_experiment, parse_set
from common.resuming import check_changes
from server.checkpoint import MANIFEST
from server.run_folder import RunFolder

logger = logging.getLogger("fedmtl.server")
DEFAULT_EXPERIMENT = "digits"  # as in pyproject.toml: Flower does not say what the user left out


@dataclass(frozen=True)
class Request:
    """What a run was started with.

    Attributes:
        experiment: a known experiment, or the path of a TOML file.
        overrides: ``key=value`` each.
        resume: name of the run folder to go on with; empty for a new run.
        heads_from: an earlier run, with whose heads clients start; empty for fresh heads.
    """

    experiment: str
    overrides: tuple[str, ...] = ()
    resume: str = ""
    heads_from: str = ""

    @classmethod
    def of(cls, settings: Mapping[str, object]) -> "Request":
        """Read Flower's settings."""
        return cls(
            experiment=str(settings["experiment"]),
            overrides=tuple(parse_set(str(settings["set"]))),
            resume=str(settings["resume"]).strip(),
            heads_from=str(settings["heads-from"]).strip(),
        )


def runs_folder() -> Path:
    """Say where run folders go: ``FEDMTL_RUNS``, or a folder in the home folder.

    The process of a ServerApp starts in a folder that Flower chooses.
    """
    return Path(os.environ.get("FEDMTL_RUNS") or Path.home() / ".fedmtl" / "runs")


def new_folder(experiment: Experiment) -> RunFolder:
    """Make a folder that no other run has.

    Raises:
        CheckpointError: it cannot be made.
    """
    name = f"{experiment.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count(1):
        path = runs_folder() / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
            return RunFolder(path, durable=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise CheckpointError(
                f"run folder {path} cannot be made: {error.strerror or error}; name another place "
                "in FEDMTL_RUNS where the SuperLink is started"
            ) from error
    raise AssertionError("numbers do not end")


def folder_to_resume(request: Request) -> RunFolder:
    """Find the folder of the run to go on with.

    Raises:
        ConfigError: what is asked for does not go with resuming.
        CheckpointError: there is no such run.
    """
    if request.heads_from:
        raise ConfigError("heads-from is for a new run; a resumed one keeps the heads it has")
    if request.experiment != DEFAULT_EXPERIMENT:
        raise ConfigError(
            "resume goes on with the run's own experiment, got experiment "
            f"'{request.experiment}' too; leave experiment out"
        )
    check_changes(request.overrides, "With resume, set")
    return RunFolder(known_run(request.resume), durable=True)


def known_run(name: str) -> Path:
    """Find a run folder by its name.

    Raises:
        CheckpointError: there is none of this name.
    """
    path, runs = runs_folder() / name, runs_folder()
    if Path(name).name == name and (path / "experiment.toml").is_file():
        return path
    known = sorted(p.parent.name for p in runs.glob("*/experiment.toml")) if runs.is_dir() else []
    raise CheckpointError(
        f"resume must be the name of a run folder in {runs}, got '{name}'; "
        + (f"the latest are {', '.join(known[-5:])}" if known else "there is none")
    )


def open_again(folder: RunFolder, request: Request) -> tuple[Experiment, bool]:
    """Read the run's experiment, and whether it has a checkpoint to go on from.

    A run that ended before its first checkpoint had asked no client to train: it starts again.

    Raises:
        FedMTLError: the experiment or the checkpoint cannot be used.
    """
    experiment = load_experiment(str(folder.path / "experiment.toml"), request.overrides)
    if (folder.path / "checkpoint" / MANIFEST).exists():
        folder.reopen(experiment)
        return experiment, True
    logger.warning("%s has no checkpoint yet: it starts from round 1", folder.path.name)
    folder.create(experiment, "flower")
    return experiment, False


def run_of(name: str) -> str:
    """Turn the name of a run folder into what its clients know the run by; a run's own id stays.

    Raises:
        CheckpointError: the folder says nothing of its run.
    """
    manifest = runs_folder() / name / "checkpoint" / MANIFEST
    if not name or Path(name).name != name or not manifest.is_file():
        return name
    try:
        return str(json.loads(manifest.read_text(encoding="utf-8"))["run"]) or name
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"heads-from: {manifest} cannot be read ({type(error).__name__}); restore it, or name "
            "the run as the nodes' state folders do"
        ) from error
