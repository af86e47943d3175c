"""One measurement: prepare the rows, start the contenders, collect figures and circumstances."""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path

from simulations.benchmarks.arena import Arena, Settings, Tell
from simulations.benchmarks.contenders import CONTENDERS, Job
from simulations.benchmarks.figures import Figures, others_load, summarise
from simulations.benchmarks.live import ContenderError, Live
from simulations.benchmarks.workloads import write_rows

ROOT = Path(__file__).parents[2]  # contenders import the project from here


def measure(
    work: str,
    contenders: Sequence[str],
    settings: Settings,
    *,
    rows_folder: Path,
    peers_python: str = "",
    threads: int = 1,
    device: str = "cpu",
    tell: Tell = lambda line: None,
) -> Figures:
    """Measure contenders on one workload.

    Args:
        work: a key of `WORKLOADS`.
        contenders: keys of `CONTENDERS`; the plain loop first.
        settings: how long to measure.
        rows_folder: where the rows of workloads are kept.
        peers_python: the Python of the environment that peers are installed in.
        threads: CPU threads of every process that trains.
        device: where all of them train.
        tell: takes a line on what is being done.

    Returns:
        What ``--json`` prints.
    """
    tell(f"preparing the rows of {work}")
    rows = write_rows(work, rows_folder.absolute())
    with tempfile.TemporaryDirectory(prefix="fedmtl-benchmark-") as scratch:
        starts = {}
        for name in contenders:
            python = peers_python if CONTENDERS[name].is_peer else sys.executable
            job = Job(name, work, str(rows), str(Path(scratch) / name), threads, device)
            starts[name] = partial(start, python, job)
        records = Arena(settings, Path(scratch), tell).run(starts)
    return {
        "work": work,
        "date": date.today().isoformat(),
        "machine": describe_machine(),
        "versions": {name: version(name) for name in ("flwr", "torch", "numpy")},
        "threads": threads,
        "device": device,
        "others-load-cores": others_load(records),
        "contenders": summarise(records),
    }


def start(python: str, job: Job, folder: Path) -> Live:
    """Start one contender.

    Raises:
        ContenderError: it is a peer, and there is no environment for peers.
    """
    if not python:
        raise ContenderError("needs --peers, the Python of an environment that has it")
    command = [python, "-m", "simulations.benchmarks.run_contender", json.dumps(asdict(job))]
    return Live(command, environment(job.threads), folder / "log")


def environment(threads: int) -> dict[str, str]:
    """Set what every contender runs under: so many threads, and idle ones that do not spin."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}",
        "PYTHONPATH": str(ROOT),
        "FLWR_TELEMETRY_ENABLED": "0",
    }


def time_import(threads: int) -> float:
    """Time a process that only imports PyTorch, in seconds: the floor of every first round."""
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", "import torch"],
        env={**os.environ, **environment(threads)},
        check=True,
    )
    return time.monotonic() - started


def describe_machine() -> Figures:
    """Say what kind of machine this is."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "system": platform.system(),
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
    }
