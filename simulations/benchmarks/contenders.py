"""The contenders by name, and what one of them is told to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from simulations.benchmarks.workloads import make_experiment

if TYPE_CHECKING:
    from common.experiment import Experiment


@dataclass(frozen=True)
class Contender:
    """One line of the table of contenders.

    Attributes:
        summary: one line for people.
        module: of this package, with a function ``run(job, turns)``.
        engine: for our own.
        workers: for our own.
        is_peer: it runs in an environment of its own, which the user names.
    """

    summary: str
    module: str
    engine: str = ""
    workers: int = 1
    is_peer: bool = False


PLAIN = "plain"
CONTENDERS: dict[str, Contender] = {
    PLAIN: Contender("a plain PyTorch loop, the 1.00", "plain"),
    "loopback-1": Contender("ours, one process", "ours", "loopback"),
    "loopback-2": Contender("ours, two worker processes", "ours", "loopback", workers=2),
    "batched": Contender("ours, a round's clients as one stacked model", "ours", "batched"),
    "auto": Contender("ours, on the engine that it chooses itself", "ours", "auto"),
    "flower": Contender("ours, on Flower's Simulation Runtime", "ours", "flower"),
    "pfl": Contender("pfl-research", "peer_pfl", is_peer=True),
    "fedjax": Contender("FedJAX", "peer_fedjax", is_peer=True),
}
USUAL = [name for name in CONTENDERS if name not in ("auto", "flower")]


@dataclass(frozen=True)
class Job:
    """What a contender is to do.

    Attributes:
        contender: a key of `CONTENDERS`.
        work: a key of `WORKLOADS`.
        rows: file with its rows.
        scratch: folder of this contender alone; it exists.
        threads: CPU threads of a process that trains.
        device: "cpu", "cuda" or "cuda:N".
    """

    contender: str
    work: str
    rows: str
    scratch: str
    threads: int = 1
    device: str = "cpu"

    @property
    def engine(self) -> str:
        """The engine of one of ours."""
        return CONTENDERS[self.contender].engine

    @property
    def workers(self) -> int:
        """The worker processes of one of ours."""
        return CONTENDERS[self.contender].workers

    def make_experiment(self) -> "Experiment":
        """Describe the workload as an experiment."""
        rows = Path(self.rows)
        return make_experiment(self.work, rows, threads=self.threads, device=self.device)
