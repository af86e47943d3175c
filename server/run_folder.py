"""The run folder: the record of one run, readable without this project.

``experiment.toml`` the resolved experiment; ``environment.json`` versions, seed, machine;
``metrics.jsonl`` a line per round; ``results.json`` the final figures; ``checkpoint/`` the state.
A figure that does not exist is null.
"""

import json
import os
import platform
import shlex
import sys
import weakref
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common.errors import CheckpointError
from common.experiment import Experiment
from common.experiment_file import dump_experiment
from common.json_gaps import without_gaps
from server.checkpoint import Checkpoints, KeepClients, replace_text, told_where

PACKAGES = ("fedmtl", "flwr", "torch", "numpy", "safetensors", "pydantic")
NOTHING_DONE = {"experiment.toml", "environment.json"}  # what a run leaves that could not start


class RunFolder:
    """Paths and writers of one run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.results = path / "results.json"
        self._log: int | None = None  # metrics.jsonl, opened once: opening costs more than a line

    def checkpoints(self, keep_clients: KeepClients | None = None) -> Checkpoints:
        """Open the run's checkpoints."""
        return Checkpoints(self.path / "checkpoint", keep_clients)

    def create(self, experiment: Experiment, engine: str) -> None:
        """Start a new folder, or one whose run did not get as far as a round.

        Raises:
            CheckpointError: it exists already, or cannot be written.
        """
        try:
            found = {p.name for p in self.path.iterdir()} if self.path.exists() else set()
            if found and found != NOTHING_DONE:
                has_state = (self.path / "checkpoint").exists()
                way_out = f", or go on with it: fedmtl simulate --resume {self.path}"
                raise CheckpointError(
                    f"run folder {self.path} exists and is not empty; choose another --out"
                    + (way_out if has_state else "")
                )
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_experiment(experiment)
            environment = describe_environment(experiment, engine)
            replace_text(self.path / "environment.json", json.dumps(environment, indent=1))
        except OSError as error:
            raise CheckpointError(f"run folder {self.path}: {error.strerror or error}") from error

    def write_experiment(self, experiment: Experiment) -> None:
        """Write the resolved experiment, which alone repeats the run."""
        replace_text(self.path / "experiment.toml", dump_experiment(experiment))

    def append(self, line: dict[str, Any]) -> None:
        """Add one round's line to metrics.jsonl.

        Raises:
            CheckpointError: it cannot be written.
        """
        text = (json.dumps(without_gaps(line), allow_nan=False) + "\n").encode()
        with told_where(self.metrics):
            if self._log is None:
                self._log = os.open(self.metrics, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                weakref.finalize(self, os.close, self._log)
            while text:  # a disk that is nearly full takes a part of it
                text = text[os.write(self._log, text) :]

    def rewind(self, rounds: int) -> None:
        """Drop the lines of rounds after a checkpoint, which will be done again."""
        if not self.metrics.exists():
            return
        kept = []
        for text in self.metrics.read_text().splitlines():
            try:
                if json.loads(text)["round"] <= rounds:
                    kept.append(text + "\n")
            except (ValueError, KeyError):
                continue  # a line torn by the crash
        replace_text(self.metrics, "".join(kept))

    def finish(self, results: dict[str, Any]) -> None:
        """Write results.json.

        Raises:
            CheckpointError: it cannot be written.
        """
        with told_where(self.results):
            text = json.dumps(without_gaps(results), indent=1, allow_nan=False)
            replace_text(self.results, text)


def describe_environment(experiment: Experiment, engine: str) -> dict[str, Any]:
    """Collect what a result may depend on beside the experiment."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "engine": engine,
        "seed": experiment.seed,
        "fingerprint": experiment.fingerprint(),
        "versions": versions,
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
        },
        "command": command_line(),
    }


def command_line() -> str:
    """Write the command of this process so that a shell reads it back."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
