"""The run folder: the record of one run, readable without this project.

``experiment.toml`` the resolved experiment; ``environment.json`` versions, seed, machine;
``metrics.jsonl`` a line per round; ``results.json`` the final figures; ``checkpoint/`` the state.
"""

import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common.errors import CheckpointError
from common.experiment import Experiment
from common.experiment_file import dump_experiment
from server.checkpoint import Checkpoints, KeepClients, replace_text

PACKAGES = ("fedmtl", "flwr", "torch", "numpy", "safetensors", "pydantic")


class RunFolder:
    """Paths and writers of one run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.results = path / "results.json"

    def checkpoints(self, keep_clients: KeepClients | None = None) -> Checkpoints:
        """Open the run's checkpoints."""
        return Checkpoints(self.path / "checkpoint", keep_clients)

    def create(self, experiment: Experiment, engine: str) -> None:
        """Start a new folder.

        Raises:
            CheckpointError: it exists already, or cannot be written.
        """
        try:
            if self.path.exists() and any(self.path.iterdir()):
                raise CheckpointError(
                    f"run folder {self.path} exists; choose another --out, or go on with it: "
                    f"fedmtl simulate --resume {self.path}"
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
        """Add one round's line to metrics.jsonl."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(line, allow_nan=True) + "\n")

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
        """Write results.json."""
        replace_text(self.results, json.dumps(results, indent=1, allow_nan=True))


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
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
