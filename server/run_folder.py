"""The run folder: the record of one run, readable without this project.

``experiment.toml`` the resolved experiment; ``environment.json`` versions, seed, machine;
``metrics.jsonl`` a line per round; ``results.json`` the final figures; ``checkpoint/`` the state;
``snapshots/`` that of earlier rounds, as far as the experiment keeps any;
of a simulation with privacy ``ledgers.jsonl``, a line per client and reply.
A figure that does not exist is null. A deployed run adds ``log.jsonl``, ``status.json``,
``metrics.prom``, and a ``lock`` that its ServerApp holds; a recorded simulation ``wire/``.
"""

import json
import os
import platform
import shlex
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common.errors import CheckpointError, ConfigError
from common.experiment import Experiment
from common.experiment_file import dump_experiment
from common.json_gaps import without_gaps
from common.locking import take
from common.privacy.ledger import Entry
from common.sections.federation import Federation
from server.checkpoint import (
    Checkpoints,
    KeepClients,
    replace_text,
    resume_command,
    told_where,
    write_through,
)
from server.snapshots import Snapshots

PACKAGES = ("fedmtl", "flwr", "torch", "numpy", "safetensors", "pydantic")
# What a run leaves that could not start.
NOTHING_DONE = {
    "experiment.toml", "environment.json", "log.jsonl", "status.json", "metrics.prom", "lock",
    "hostile.json", "wire",
}  # fmt: skip


class RunFolder:
    """Paths and writers of one run's folder.

    Args:
        path: the folder.
        durable: what a round leaves is on the disk itself before the next one starts.
    """

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        self.path, self.durable = path, durable
        self.metrics = path / "metrics.jsonl"
        self.results = path / "results.json"
        self.ledgers = path / "ledgers.jsonl"
        self.keeps_ledgers = False  # of the clients, who in a deployment keep their own
        self._log: int | None = None  # metrics.jsonl, opened once: opening costs more than a line

    def checkpoints(self, keep_clients: KeepClients | None = None) -> Checkpoints:
        """Open the run's checkpoints."""
        return Checkpoints(self.path / "checkpoint", keep_clients, self.durable)

    def snapshots(
        self, federation: Federation | None = None, keep_clients: KeepClients | None = None
    ) -> Snapshots:
        """Open the run's snapshots; to read them alone nothing more is needed."""
        every, most = (
            (0, 1) if federation is None else (federation.snapshot_every, federation.snapshots)
        )
        return Snapshots(self.path / "snapshots", every, most, keep_clients)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other servers from this run while the block runs.

        Raises:
            CheckpointError: another one is at work on it.
        """
        path = self.path / "lock"
        with told_where(path):
            handle = take(path)
        if handle is None:
            raise CheckpointError(
                f"run folder {self.path.name} is in use: another ServerApp is at work on it; let "
                "it end, or stop it with flwr stop, and wait until its process is gone"
            )
        try:
            yield
        finally:
            os.close(handle)

    def reopen(self, experiment: Experiment) -> None:
        """Make ready to go on from the checkpoint.

        Raises:
            CheckpointError: there is none, or it is another experiment's.
            ConfigError: it has done more rounds than are asked for.
        """
        progress, _ = self.checkpoints().load(experiment.fingerprint())
        if progress.round > experiment.federation.rounds:
            raise ConfigError(
                f"federation.rounds must be at least {progress.round}, the rounds that {self.path} "
                f"has done, got {experiment.federation.rounds}"
            )
        with told_where(self.path / "experiment.toml"):
            self.write_experiment(experiment)

    def create(self, experiment: Experiment, engine: str) -> None:
        """Start a new folder, or one whose run did not get as far as a round.

        Raises:
            CheckpointError: it exists already, or cannot be written.
        """
        try:
            found = {p.name for p in self.path.iterdir()} if self.path.exists() else set()
            if not found <= NOTHING_DONE:
                has_state = (self.path / "checkpoint").exists()
                way_out = f", or go on with it: fedmtl simulate --resume {self.path}"
                if self.durable:
                    way_out = f", or go on with it: {resume_command(self.path)}"
                raise CheckpointError(
                    f"run folder {self.path} exists and is not empty; choose another --out"
                    + (way_out if has_state else "")
                )
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_experiment(experiment)
            environment = describe_environment(experiment, engine)
            replace_text(self.path / "environment.json", json.dumps(environment, indent=1))
            if self.durable:
                write_through(self.path)
                write_through(self.path.parent)
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
                if self.durable:
                    write_through(self.path)
            while text:  # a disk that is nearly full takes a part of it
                text = text[os.write(self._log, text) :]
            if self.durable:
                os.fsync(self._log)

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
        replace_text(self.metrics, "".join(kept), durable=self.durable)

    def append_ledgers(self, entries: Sequence[Entry]) -> None:
        """Add what clients released.

        Raises:
            CheckpointError: it cannot be written.
        """
        with told_where(self.ledgers), open(self.ledgers, "a", encoding="utf-8") as file:
            file.writelines(f"{entry.to_json()}\n" for entry in entries)

    def rewind_ledgers(self, lines: int) -> None:
        """Keep the first lines, which a checkpoint knows of; the rest is released again, alike.

        Raises:
            CheckpointError: there are fewer, or they cannot be read or written.
        """
        if not lines and not self.ledgers.exists():
            return
        with told_where(self.ledgers):
            kept = self.ledgers.read_text(encoding="utf-8").splitlines(keepends=True)[:lines]
            replace_text(self.ledgers, "".join(kept))
        if len(kept) < lines:
            raise CheckpointError(
                f"{self.ledgers} has {len(kept)} lines, and the checkpoint knows of {lines}; "
                "restore it, or start the run anew with another --out"
            )

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
