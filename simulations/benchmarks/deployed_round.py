"""``python -m simulations.benchmarks.deployed_round``: how long a round of deployed nodes takes.

A SuperLink and some nodes on this machine, twice: a plain Flower quickstart app on plain
SuperNodes, and ours on ``fedmtl node run``. They take turns, so that a machine whose load changes
slows both; what is compared is the median time from the end of a round to the end of the next.
"""

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from common.errors import FedMTLError
from simulations.terminal import print_json, told_in_lines

QUICKSTART = Path(__file__).parent / "quickstart"
PROJECT = Path(__file__).parent.parent.parent
app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})


class Federation:
    """A SuperLink with its nodes, and the folder that all of them write into.

    Args:
        folder: theirs alone.
        nodes: how many.
        ours: whether nodes run behind ``fedmtl node run``.
    """

    def __init__(self, folder: Path, nodes: int, ours: bool) -> None:
        self.folder, self.nodes, self.ours = folder, nodes, ours
        self._processes: list[subprocess.Popen[bytes]] = []
        self._environment = {
            **os.environ,
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FEDMTL_RUNS": str(folder / "runs"),
        }
        self.address = f"127.0.0.1:{free_port()}"

    def start(self) -> None:
        """Start everything and wait until all nodes are connected."""
        home = self.folder / "flwr"
        home.mkdir(parents=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{self.address}"\n'
            "insecure = true\n"
        )
        port = self.address.split(":")[1]
        self._spawn("superlink", ["flower-superlink", "--insecure", "--port", port])
        wait_for(lambda: can_connect(self.address), "the SuperLink does not start", 60)
        for number in range(self.nodes):
            config = f'client="client-{number:03d}" state="{self.folder}/node-{number}"'
            flags = ["--insecure", "--superlink", self.address]
            if self.ours:
                command = ["fedmtl", "node", "run", "--", *flags, "--node-config", config]
            else:
                command = ["flower-supernode", *flags, "--port", str(free_port())]
            self._spawn(f"node-{number}", command)
        logs = [self.folder / f"node-{number}.log" for number in range(self.nodes)]
        wait_for(
            lambda: all("SuperNode ID" in log.read_text() for log in logs),
            f"nodes do not connect; see {self.folder}",
            120,
        )

    def run(self, rounds: int, turn: int) -> list[float]:
        """Run an app; returns the seconds of each round but the first."""
        if self.ours:
            return self._run_ours(rounds)
        times = self.folder / f"times-{turn}"
        self._submit(QUICKSTART, f'rounds={rounds} times="{times}"')
        ends = [float(line) for line in times.read_text().split()]
        return [after - before for before, after in pairwise(ends)]

    def stop(self) -> None:
        """End everything."""
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()

    def _run_ours(self, rounds: int) -> list[float]:
        clients = ",".join(f"'client-{number:03d}'" for number in range(self.nodes))
        settings = [
            f"federation.rounds={rounds}",
            f"federation.min-clients={self.nodes}",
            f"federation.clients-per-round={self.nodes}",
            f"data.clients=[{clients}]",
        ]
        before = set((self.folder / "runs").glob("*"))
        self._submit(PROJECT, f'experiment="digits" set="{" ".join(settings)}"')
        (run,) = set((self.folder / "runs").glob("*")) - before
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return [float(json.loads(line)["time_s"]) for line in lines[1:]]

    def _submit(self, project: Path, config: str) -> None:
        command = ["flwr", "run", str(project), "here", "--stream", "-c", config]
        done = subprocess.run(
            [beside(command[0]), *command[1:]],
            env=self._environment, capture_output=True, text=True, timeout=1800, check=False,
        )  # fmt: skip
        if done.returncode:
            raise FedMTLError(f"flwr run failed: {(done.stdout + done.stderr)[-800:]}")

    def _spawn(self, name: str, command: list[str]) -> None:
        log = (self.folder / f"{name}.log").open("wb")
        self._processes.append(
            subprocess.Popen(
                [beside(command[0]), *command[1:]],
                env=self._environment, stdout=log, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
        log.close()


@app.command()
def main(
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of each federation.")] = 3,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds a turn; the first is left out.")] = 5,
    turns: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Measure a round of ours against one of a plain Flower app, on this machine."""
    with told_in_lines(), tempfile.TemporaryDirectory(prefix="fedmtl-deployed-") as folder:
        seconds: dict[str, list[float]] = {"quickstart": [], "fedmtl": []}
        for turn in range(turns):
            for name in seconds:
                place = Path(folder) / f"{name}-{turn}"
                with running(place, nodes, name == "fedmtl") as federation:
                    seconds[name] += federation.run(rounds, turn)
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        ratio = medians["fedmtl"] / medians["quickstart"]
        if as_json:
            print_json({"seconds": seconds, "medians": medians, "ratio": ratio})
            return
        for name, times in seconds.items():
            spread = f"{min(times):.2f} to {max(times):.2f}"
            typer.echo(f"{name}: median {medians[name]:.2f} s ({spread}), {len(times)} rounds")
        typer.echo(f"ratio: {ratio:.2f}")


@contextmanager
def running(folder: Path, nodes: int, ours: bool) -> Iterator[Federation]:
    """Keep a federation up for a while."""
    folder.mkdir()
    federation = Federation(folder, nodes, ours)
    try:
        federation.start()
        yield federation
    finally:
        federation.stop()


def wait_for(done: Callable[[], bool], otherwise: str, most_s: float) -> None:
    """Wait until something is so.

    Raises:
        FedMTLError: it is not, within the time.
    """
    end = time.monotonic() + most_s
    while not done():
        if time.monotonic() > end:
            raise FedMTLError(otherwise)
        time.sleep(0.2)


def can_connect(address: str) -> bool:
    """Tell whether somebody listens there."""
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """Find a port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def beside(program: str) -> str:
    """Find a program of the environment this process runs in."""
    return str(Path(sys.executable).parent / program)


if __name__ == "__main__":
    app()
