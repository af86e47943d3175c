"""The project itself as a contender, through the call that `fedmtl simulate` makes.

Its rounds are whole ones: a line of figures is written after each, and a checkpoint as often as
`federation.checkpoint-interval-s` says, by default at most four times a second.
"""

import logging
import time
from pathlib import Path
from typing import Any

from server.run_folder import RunFolder
from simulations.benchmarks.contenders import Job
from simulations.benchmarks.turns import Turns
from simulations.benchmarks.workloads import WORKLOADS
from simulations.simulate import simulate


def run(job: Job, turns: Turns) -> None:
    """Train in the arena."""
    logging.getLogger("fedmtl").setLevel(logging.WARNING)
    experiment, out = job.make_experiment(), Path(job.scratch) / "run"
    checkpoints = RunFolder(out).checkpoints()
    checked_round = WORKLOADS[job.work].checked_round

    def end_round(line: dict[str, Any]) -> None:
        if line["round"] == checked_round - 1:
            # The trunk is read from the checkpoint: let one be due after the next round.
            time.sleep(experiment.federation.checkpoint_interval_s)
        turns.end_round(lambda: checkpoints.load(experiment.fingerprint())[1])

    simulate(experiment, engine=job.engine, workers=job.workers, out=out, listener=end_round)
