"""Train on a file of several times the memory that the process may have.

    python -m simulations.benchmarks.larger_than_memory --gigabytes 4 --ceiling-gb 1

The rows of one client are written to a Parquet file, piece by piece. Then the run is made in
processes of its own under a ceiling on memory (``RLIMIT_DATA``: heap and other private memory of
the process; pages of files that are mapped for reading are not in it, since the system takes them
back whenever it needs the room), with `data.memory` "disk" and "ram". Linux only.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = 100
GROUP = 100_000  # rows of a row group
MARK = "figures: "


def write_rows(path: Path, rows: int, columns: int = COLUMNS, group: int = GROUP) -> None:
    """Write random rows with a target that can be learned, a row group at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    slope = rng.normal(size=columns).astype(np.float32)
    writer = None
    for start in range(0, rows, group):
        count = min(group, rows - start)
        x = rng.normal(size=(count, columns)).astype(np.float32)
        table: dict[str, Any] = {f"x{i}": x[:, i] for i in range(columns)}
        table |= {"y": x @ slope, "c": rng.integers(0, 3, count)}
        piece = pa.table(table)
        if writer is None:
            writer = pq.ParquetWriter(path, piece.schema, compression="none", use_dictionary=False)
        writer.write_table(piece)
    if writer is not None:
        writer.close()


def plan(rows: Path, memory: str, rounds: int) -> dict[str, Any]:
    """Make the experiment: a linear trunk's worth of work, so that reading rows shows."""
    return {
        "name": "larger-than-memory",
        "data": {"source": "table", "path": str(rows), "memory": memory},
        "inputs": {"x": {"columns": ["x*"], "standardise": "client"}},
        "tasks": {
            "y": {"kind": "regression", "standardise": "client"},
            "c": {"kind": "multiclass", "classes": 3},
        },
        "trunk": {"widths": [64]},
        "training": {"batch-size": 256, "lr": 0.05, "device": "cpu"},
        "federation": {"rounds": rounds},
    }


def run_under(ceiling: int | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Run in a process of its own that may have so many bytes; None for no ceiling."""
    job = json.dumps({"ceiling": ceiling, "settings": settings})
    command = [sys.executable, "-m", "simulations.benchmarks.larger_than_memory", "--job", job]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
    figures = json.loads(found[-1].removeprefix(MARK)) if found else {"failed": last[0]}
    return {"seconds": time.monotonic() - start, **figures}


class Peak(threading.Thread):
    """Watches the process's memory that is no file's, in MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.anonymous = 0.0

    def run(self) -> None:
        """Look ten times a second."""
        while True:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    self.anonymous = max(self.anonymous, int(line.split()[1]) / 1024)
            time.sleep(0.1)


def do_job(job: dict[str, Any]) -> None:
    """Be the process under the ceiling."""
    if job["ceiling"]:
        resource.setrlimit(resource.RLIMIT_DATA, (job["ceiling"], job["ceiling"]))
    from common.experiment import Experiment
    from simulations.simulate import simulate

    peak, losses = Peak(), []
    times, spent = [time.monotonic()], [time.process_time()]

    def note(line: dict[str, Any]) -> None:
        times.append(time.monotonic())
        spent.append(time.process_time())
        losses.append(line["train"]["loss"])

    peak.start()
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment.model_validate(job["settings"])
        simulate(experiment, out=Path(folder) / "run", engine="loopback", listener=note)
    figures = {
        "anonymous_mb": round(peak.anonymous),
        "loss": losses[-1],
        "round_s": [round(b - a, 2) for a, b in itertools.pairwise(times)],
        "round_cpu_s": [round(b - a, 2) for a, b in itertools.pairwise(spent)],
    }
    print(MARK + json.dumps(figures))


def main() -> None:
    """Make the file, run both ways, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of the Parquet file")
    parser.add_argument("--ceiling-gb", type=float, default=1.0, help="of memory; 0 for none")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ways", default="disk,ram")
    parser.add_argument("--folder", type=Path, help="for the rows; default: the temporary folder")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        do_job(json.loads(given.job))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder) / "rows.parquet"
        rows = int(given.gigabytes * 1e9 / (4 * (COLUMNS + 1) + 8))
        write_rows(path, rows)
        print(f"{rows} rows of {COLUMNS} columns, {path.stat().st_size / 1e9:.2f} GB")
        for memory in given.ways.split(","):
            found = run_under(int(given.ceiling_gb * 1e9), plan(path, memory, given.rounds))
            print(memory, json.dumps(found))


if __name__ == "__main__":
    main()
