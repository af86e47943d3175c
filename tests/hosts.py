"""A federation on hosts of its own: SuperLink on one, a node with its data on each other.

TLS, node authentication and a database, as the guide has it. The harness of the tests
`test_deployment_*.py`; where no such hosts can be made, they are skipped.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from client.state import folder_name
from common.clients import open_clients
from common.experiment import Experiment
from common.experiment_file import load_experiment
from tests.namespaces import Host, Network, Process, send_signal, wait_until

ROOT = Path(__file__).parent.parent
PORT = 8000
CONNECTION = "fedmtl"  # of the operator's config.toml
START_BY = "fedmtl"  # how nodes are started, where a test does not say
CLIENTS = {"a": "school-001", "b": "school-003"}  # host -> client

SCHOOL = """
name = "hosts-school"

[data]
source = "folder"
path = "data"
validation = 0.1
test = 0.2

[inputs.student]
columns = ["x*"]
standardise = "client"

[tasks.score]
kind = "regression"
standardise = "client"

[tasks.upper]
kind = "binary"

[trunk]
widths = [16, 8]

[training]
device = "cpu"
lr = 0.02
epochs = 1
batch-size = 32

[federation]
rounds = 3
round-timeout-s = 120
"""

HEART = """
name = "hosts-heart"

[data]
source = "folder"
path = "data"
stratify = "disease"
unseen-classes = "keep"

[inputs.measured]
columns = ["age", "trestbps", "chol", "oldpeak"]
standardise = "federation"
missing = "mean"

[tasks.disease]
kind = "binary"

[tasks.severity]
kind = "multiclass"
classes = 5

[trunk]
widths = [16]

[training]
device = "cpu"
optimiser = "adam"
lr = 0.003
epochs = 1
batch-size = 16

[federation]
rounds = 3
round-timeout-s = 120
"""
KNOWN = {"school": SCHOOL, "heart_disease": HEART}  # public data set -> experiment on its files


def program(name: str) -> str:
    """A command of this Python environment."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        raise FileNotFoundError(f"{name} is not installed beside {sys.executable}")
    return found


def write_client(source: str, name: str, folder: Path) -> None:
    """Write one client of a public data set as a CSV file, as its owner would keep it."""
    (example,) = [load_experiment(key) for key in (source.replace("_", "-"),)]
    columns = open_clients(example).read(name).columns
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow(["" if _is_gap(cell) else cell for cell in row])


def _is_gap(cell: Any) -> bool:
    return cell is None or (isinstance(cell, (float, np.floating)) and bool(np.isnan(cell)))


def write_deployment(folder: Path, address: str, nodes: Sequence[str]) -> None:
    """Make certificates, keys and policies, as the guide has it."""
    command = [program("fedmtl"), "deploy", "init", str(folder), "--server", address]
    command += [word for node in nodes for word in ("--node", node)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)


class Node:
    """A node on its host: key, data folder, state folder."""

    def __init__(self, federation: "Federation", host: Host, client: str) -> None:
        self.federation, self.host, self.client = federation, host, client
        self.data, self.state = host.folder / "data", host.folder / "state"
        self.process: Process | None = None
        self.ca, self.key = host.folder / "ca.crt", host.folder / host.name
        self.policy = host.folder / "policy.toml"
        made = federation.deployment  # what its README.md says goes to a node
        shutil.copy(made / "certificates" / "ca.crt", self.ca)
        shutil.copy(made / "nodes" / host.name / "policy.toml", self.policy)
        for name in (host.name, f"{host.name}.pub"):
            shutil.copy(made / "keys" / name, host.folder)

    def flags(self) -> list[str]:
        """The flags of flower-supernode, the same however the node is started."""
        config = f'data="{self.data}" state="{self.state}" device="cpu" client="{self.client}"'
        return [
            *("--root-certificates", str(self.ca)),
            *("--auth-supernode-private-key", str(self.key)),
            *("--superlink", self.federation.address),
            *("--node-config", config),
        ]

    def start(
        self,
        flags: Sequence[str] | None = None,
        before: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        by: str = "",
    ) -> Process:
        """Start the node, by the federation's way of starting nodes or another.

        Args:
            flags: of flower-supernode; by default the node's own.
            before: words before the command, such as faketime's.
            environment: more variables.
            by: "plain" or "fedmtl".
        """
        command = [program("flower-supernode")]
        if (by or self.federation.start_by) == "fedmtl":
            command = [program("fedmtl"), "node", "run", "--policy", str(self.policy), "--"]
        flags = self.flags() if flags is None else flags
        self.process = self.host.start([*before, *command, *flags], "node.log", environment)
        return self.process

    def said(self) -> str:
        return self.process.said() if self.process else ""

    def stop(self) -> None:
        """End the node in order, as systemd does: it tells the SuperLink that it leaves."""
        if self.process is not None and self.process.is_alive():
            send_signal([self.process.pid], signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        self.kill()

    def kill(self) -> None:
        """Kill the node and all that it started, as a power cut does."""
        self.host.kill()

    def kept(self, run: Path) -> dict[int, Path]:
        """Round -> file of what the node kept at home after it, in a run on the server."""
        name = json.loads((run / "checkpoint" / "checkpoint.json").read_text())["run"]
        files = (self.state / "runs" / name / folder_name(self.client)).glob("own-*.safetensors")
        return {int(path.stem.removeprefix("own-")): path for path in sorted(files)}

    def heads(self, run: Path, round_number: int) -> dict[str, np.ndarray]:
        """What the node kept at home after a round."""
        return load_file(self.kept(run)[round_number])


def make_key(path: Path, *options: str) -> None:
    """Make a key pair of somebody whom the deployment does not know."""
    command = ["ssh-keygen", "-q", *options, "-N", "", "-f", str(path)]
    subprocess.run(command, check=True, capture_output=True)


class Federation:
    """A SuperLink on the host "server" and a node on each other host; a context manager.

    Args:
        folder: everybody's disks.
        source: public data set whose clients the nodes hold.
        clients: host -> client.
        start_by: "plain" for flower-supernode, "fedmtl" for fedmtl node run.
        disk_bytes: size of the disks of run folders and of nodes' state; 0 for no limit.
    """

    def __init__(
        self,
        folder: Path,
        source: str = "school",
        clients: dict[str, str] | None = None,
        start_by: str = START_BY,
        disk_bytes: int = 0,
    ) -> None:
        self.folder, self.source, self.start_by = folder, source, start_by
        self.clients = CLIENTS if clients is None else clients
        self.network = Network(["server", *self.clients], folder, self._environment())
        for host in self.network.hosts.values():
            host.environment["FLWR_HOME"] = str(host.folder / "flower-home")
            (host.folder / "flower-home").mkdir()
        self.server = self.network.hosts["server"]
        self.address = f"{self.server.address}:{PORT}"
        self.runs = self.server.folder / "runs"
        self.superlink: Process | None = None
        self.experiment_file = self.server.folder / "experiment.toml"
        self.experiment_file.write_text(KNOWN[source])
        self.deployment = self.server.folder / "deployment"
        write_deployment(self.deployment, self.address, list(self.clients))
        shutil.copy(
            self.deployment / "operator" / "config.toml", self.server.folder / "flower-home"
        )
        self.nodes = {
            host: Node(self, self.network.hosts[host], client)
            for host, client in self.clients.items()
        }
        for node in self.nodes.values():
            write_client(source, node.client, node.data)
        if disk_bytes:  # before any process starts: it would not see a later mount
            for disk in (self.runs, *(node.state for node in self.nodes.values())):
                self.network.small_disk(disk, disk_bytes)

    def _environment(self) -> dict[str, str]:
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        return {
            **kept,
            "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        }

    def __enter__(self) -> "Federation":
        try:
            self.start_superlink()
            self.register(self.nodes.values())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.network.close()

    def start_superlink(self, program_of: Sequence[str] = ()) -> Process:
        """Start the SuperLink on its database and wait until it serves.

        Args:
            program_of: another program than flower-superlink.
        """
        tls = self.deployment / "certificates"
        command = [*(program_of or [program("flower-superlink")])]
        command += ["--host", "0.0.0.0", "--port", str(PORT)]
        command += ["--ssl-ca-certfile", str(tls / "ca.crt")]
        command += ["--ssl-certfile", str(tls / "server.crt")]
        command += ["--ssl-keyfile", str(tls / "server.key")]
        command += ["--enable-supernode-auth"]
        command += ["--database", str(self.server.folder / "state.db")]
        before = 0
        if (log := self.server.folder / "superlink.log").exists():
            before = len(log.read_text(errors="replace"))
        runs = {"FEDMTL_RUNS": str(self.runs)}
        self.superlink = self.server.start(command, "superlink.log", runs)
        self.superlink.wait_for("Application startup complete", after=before)
        return self.superlink

    def register(self, nodes: Any) -> None:
        """Register the nodes' keys with the SuperLink."""
        for node in nodes:
            self.flwr("supernode", "register", str(node.key.with_suffix(".pub")), CONNECTION)

    def start_nodes(self) -> None:
        """Start all nodes and wait until they are connected."""
        before = {host: len(node.said()) for host, node in self.nodes.items()}
        for node in self.nodes.values():
            node.start()
        for host, node in self.nodes.items():
            assert node.process is not None
            node.process.wait_for("SuperNode ID", after=before[host])

    def flwr(self, *arguments: str, timeout_s: float = 60) -> str:
        """Run flwr on the server host."""
        return self.server.run([program("flwr"), *arguments], timeout_s)

    def tend(self) -> None:
        """Start again what has ended, as systemd does with Restart=always."""
        if self.superlink is not None and not self.superlink.is_alive():
            self.start_superlink()
        for node in self.nodes.values():
            if node.process is not None and not node.process.is_alive():
                node.start()

    def listed_nodes(self) -> list[dict[str, Any]]:
        """What the SuperLink knows of its nodes."""
        said = self.flwr("supernode", "ls", CONNECTION, "--format", "json")
        listed: list[dict[str, Any]] = json.loads(said[said.index("{") :])["nodes"]
        return listed

    def listed_runs(self) -> list[dict[str, Any]]:
        """What the SuperLink knows of its runs."""
        said = self.flwr("ls", CONNECTION, "--format", "json")
        told = json.loads(said[said.index("{") :])
        if "runs" not in told:
            raise OSError(f"flwr ls: {said.strip()[-300:]}")
        listed: list[dict[str, Any]] = told["runs"]
        return listed

    def submit(self, *overrides: str, project: Path = ROOT, resume: str = "") -> Process:
        """Start a run, or go on with one, and follow it; the process ends when the run does.

        Args:
            overrides: of the experiment's settings.
            project: what the bundle is made of.
            resume: folder of the run to go on with, by its own settings.
        """
        pairs = {"experiment": str(self.experiment_file), "set": " ".join(overrides)}
        pairs = {"resume": resume} if resume else pairs
        settings = " ".join(f'{key}="{value}"' for key, value in pairs.items())
        command = [program("flwr"), "run", str(project), CONNECTION, "--stream", "-c", settings]
        return self.server.start(command, f"run-{time.monotonic_ns()}.log")

    def run_folders(self) -> list[Path]:
        """The run folders on the server, the oldest first."""
        if not self.runs.exists():
            return []
        return sorted(
            (p for p in self.runs.iterdir() if p.is_dir()), key=lambda p: p.stat().st_ctime
        )

    def wait_for_round(self, number: int, timeout_s: float = 240) -> Path:
        """Wait until a round of the newest run is recorded; returns the run's folder."""
        wait_until(
            lambda: self.run_folders() and number in rounds_of(self.run_folders()[-1]),
            timeout_s,
            f"round {number}",
        )
        return self.run_folders()[-1]

    def experiment(self, *overrides: str) -> Experiment:
        """The experiment of a run, on all nodes' files in one folder of this machine."""
        pooled = self.folder / "pooled"
        for node in self.nodes.values():
            pooled.mkdir(exist_ok=True)
            shutil.copy(node.data / f"{node.client}.csv", pooled)
        return load_experiment(str(self.experiment_file), [f"data.path={pooled}", *overrides])


def rounds_of(run: Path) -> list[int]:
    """The rounds that metrics.jsonl tells of, in its order."""
    return [line["round"] for line in lines_of(run)]


def lines_of(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    if not (run / "metrics.jsonl").exists():
        return []
    text = (run / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def trunk_of(run: Path) -> dict[str, np.ndarray]:
    """The trunk of a run's checkpoint."""
    manifest = json.loads((run / "checkpoint" / "checkpoint.json").read_text())
    return load_file(run / "checkpoint" / manifest["files"]["trunk"])
