"""One run of the benchmark of precisions, for a process that has done nothing before."""

import json
import resource
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.experiment_file import load_experiment

WARM_UP = 2  # rounds whose times do not count: they encode rows, and compile


@dataclass(frozen=True)
class Trial:
    """What one run took, and what came of it.

    Attributes:
        round_s: median time of a round.
        peak_bytes: most memory that tensors had on the GPU; on a CPU what the process grew by.
        losses: task -> validation loss of the last trunk.
    """

    round_s: float
    peak_bytes: int
    losses: Mapping[str, float]

    @property
    def loss(self) -> float:
        """The mean loss over tasks."""
        return statistics.mean(self.losses.values())


def run_trial(experiment: str, settings: list[str], by_pixel: bool) -> Trial:
    """Train once, in a process that has done nothing else."""
    import torch

    import common.encoder
    from simulations.simulate import simulate

    if by_pixel:
        common.encoder.BY_PIXEL |= {"cuda"}
    before = _most_resident()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        simulate(load_experiment(experiment, settings), engine="loopback", out=out)
        lines = (out / "metrics.jsonl").read_text().splitlines()
        final = json.loads((out / "results.json").read_text())["final"]
    used_gpu = torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0
    peak = torch.cuda.max_memory_allocated() if used_gpu else _most_resident() - before
    times = [float(json.loads(line)["time_s"]) for line in lines[WARM_UP:]]
    losses = {task: own["loss"] for task, own in final["validation"]["tasks"].items()}
    return Trial(statistics.median(times), peak, losses)


def _most_resident() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
