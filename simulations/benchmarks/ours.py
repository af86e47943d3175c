"""The project itself as a contender, through the call that `fedmtl simulate` makes.

Its rounds are whole ones: a checkpoint and a line of figures are written after each.
"""

import logging
from pathlib import Path

from server.run_folder import RunFolder
from simulations.benchmarks.contenders import Job
from simulations.benchmarks.turns import Turns
from simulations.simulate import simulate


def run(job: Job, turns: Turns) -> None:
    """Train in the arena."""
    logging.getLogger("fedmtl").setLevel(logging.WARNING)
    experiment, out = job.make_experiment(), Path(job.scratch) / "run"
    checkpoints = RunFolder(out).checkpoints()
    simulate(
        experiment,
        engine=job.engine,
        workers=job.workers,
        out=out,
        listener=lambda line: turns.end_round(
            lambda: checkpoints.load(experiment.fingerprint())[1]
        ),
    )
