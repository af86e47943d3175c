"""Example-level privacy on School: ``python -m simulations.benchmarks.private_school``.

The protocol of Liu et al., "On privacy and personalization in cross-silo federated learning",
NeurIPS 2022: linear models, 70/30 split per school, features standardised per school, 200 rounds of
one epoch, batches of 32, and DP-SGD in every school with clipping at 1 and the noise that keeps
each school within eps = 6 at delta = 1e-3; the loss is half the squared error, and weights start
at 0, as in the authors' code. Their methods run with their settings; then all with settings that
are chosen here; and all without privacy.

Settings are chosen on seed 0 by the error on a tenth of the rows, taken from the training rows.
Then every method trains on all of the 70 % under every seed, and is read after the last round. What
a choice tells of the validation rows is in no budget.
"""

import argparse
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from common.experiment import Experiment
from common.experiment_file import load_experiment
from simulations.gains import spread
from simulations.jobs import run_jobs
from simulations.simulate import simulate

PROTOCOL = (
    "data.test=0.3 tasks.score.standardise=none training.epochs=1 training.batch-size=32 "
    "training.momentum=0 training.weight-decay=0 loss.weighting=manual tasks.score.weight=0.5 "
    'evaluation={by="message",every=200} federation.rounds=200 '
    "federation.checkpoint-interval-s=3600"
)
EXAMPLE = "privacy.example-level"
PRIVATE = f"{EXAMPLE}.epsilon=6 {EXAMPLE}.delta=0.001 {EXAMPLE}.max-norm=1"
TUNED, FINAL = "data.validation=0.1", "data.validation=0"
LINEAR = "trunk.widths=[] tasks.score.init=zero"
OPTIONS = "federation.algorithm-options"
Grid = Mapping[str, Sequence[str]]  # setting -> values to try
THEIRS, PRIVATELY, OPENLY = "eps = 6, their settings", "eps = 6", "without privacy"


@dataclass(frozen=True)
class Contender:
    """A method.

    Attributes:
        settings: of it.
        grids: regime -> what it tries.
        covers: what the noise covers.
        published: test MSE under privacy; None where there is none.
    """

    settings: str
    grids: Mapping[str, Grid]
    covers: str = "model"
    published: float | None = None


RATE = "training.lr"
HERE: Grid = {RATE: ("0.005", "0.01", "0.03")}
CONTENDERS = {
    "FedAvg": Contender(
        f"federation.algorithm=whole-model {LINEAR}",
        {THEIRS: {RATE: ("0.01",)}, PRIVATELY: HERE, OPENLY: HERE},
        published=0.02564,
    ),
    "local": Contender(
        f"federation.algorithm=local {LINEAR}",
        {THEIRS: {RATE: ("0.01",)}, PRIVATELY: HERE, OPENLY: HERE},
        published=0.02628,
    ),
    "MR-MTL": Contender(
        f"federation.algorithm=mr-mtl federation.heads=per-task {LINEAR}",
        {
            THEIRS: {RATE: ("0.01",), f"{OPTIONS}.pull": ("1",)},
            PRIVATELY: {RATE: ("0.01", "0.02"), f"{OPTIONS}.pull": ("0.5", "1", "2")},
            OPENLY: {RATE: ("0.01", "0.02"), f"{OPTIONS}.pull": ("0.1", "0.3", "1")},
        },
        published=0.02394,
    ),
    "trunk, local heads": Contender(
        f"federation.algorithm=fedbabu {OPTIONS}.fit-epochs=50 trunk.widths=[2]",
        {PRIVATELY: {RATE: ("0.01", "0.03", "0.1")}, OPENLY: {RATE: ("0.01", "0.03", "0.1")}},
        covers="trunk",
    ),
}
REGIMES = (THEIRS, PRIVATELY, OPENLY)


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        regime: one of `REGIMES`.
        method: a key of `CONTENDERS`.
        chosen: one point of its grid.
        seed: of the run.
        tunes: whether it is read on validation rows, for a choice.
        folder: where run folders go.
    """

    regime: str
    method: str
    chosen: str
    seed: int
    tunes: bool
    folder: Path

    @property
    def experiment(self) -> Experiment:
        """The experiment with all of the settings."""
        contender = CONTENDERS[self.method]
        private = f"{PRIVATE} {EXAMPLE}.covers={contender.covers}"
        privacy = "" if self.regime == OPENLY else private
        rows = TUNED if self.tunes else FINAL
        text = " ".join((PROTOCOL, rows, privacy, contender.settings, self.chosen))
        return load_experiment("school", [*text.split(), f"seed={self.seed}"])


def grid_points(grid: Grid) -> Iterator[str]:
    """List the points of a grid as settings.

    >>> list(grid_points({"a": ("1", "2"), "b": ("3",)}))
    ['a=1 b=3', 'a=2 b=3']
    """
    for values in product(*grid.values()):
        yield " ".join(f"{key}={value}" for key, value in zip(grid, values, strict=True))


def run_job(job: Job) -> float:
    """Train and return the MSE, all schools' rows together, after the last round."""
    logging.getLogger("fedmtl").setLevel(logging.ERROR)
    place = "-".join((job.regime, job.method, job.chosen, str(job.seed), str(job.tunes)))
    out = job.folder / "".join(c if c.isalnum() else "_" for c in place)
    shutil.rmtree(out, ignore_errors=True)
    results = simulate(job.experiment, engine="batched", out=out)
    figures = results["final"]["validation" if job.tunes else "test"]
    return float(figures["tasks"]["score"]["mse"])


def run_all(jobs: Sequence[Job], workers: int) -> dict[Job, float]:
    """Run jobs and say how each went."""
    found: dict[Job, float] = {}

    def note(job: Job, mse: float) -> None:
        found[job] = mse
        which = "validation" if job.tunes else "test"
        where = (f"[{len(found)}/{len(jobs)}]", job.regime, job.method, job.chosen, job.seed)
        print(*where, which, f"{mse:.5f}", flush=True)

    run_jobs(run_job, jobs, workers, note)
    return found


def choose(folder: Path, workers: int) -> dict[tuple[str, str], str]:
    """Choose each method's settings in its regimes, on seed 0: (regime, method) -> settings."""
    points = {
        (regime, method): list(grid_points(grid))
        for method, contender in CONTENDERS.items()
        for regime, grid in contender.grids.items()
    }
    jobs = [
        Job(*place, point, 0, True, folder)
        for place, own in points.items()
        for point in own
        if len(own) > 1
    ]
    found = run_all(jobs, workers)
    chosen = {place: own[0] for place, own in points.items()}
    for job in sorted(found, key=found.__getitem__, reverse=True):
        chosen[job.regime, job.method] = job.chosen  # the best comes last
    return chosen


def to_markdown(table: Mapping[str, Mapping[str, Mapping[str, float | str]]]) -> str:
    """Write the regimes side by side, a method a line."""
    heads = [f"{regime} | chosen" for regime in REGIMES]
    lines = [f"| test MSE ↓ | {' | '.join(heads)} | published, eps = 6 |"]
    lines.append("|---|" + "---:|---|" * len(REGIMES) + "---:|")
    for method, contender in CONTENDERS.items():
        cells = []
        for regime in REGIMES:
            row = table[regime].get(method)
            if row is None:
                cells.append(" | ")
                continue
            chosen = ", ".join(_short(setting) for setting in str(row["chosen"]).split())
            cells.append(f"{row['mean']:.5f} ± {row['deviation']:.5f} | {chosen}")
        published = "" if contender.published is None else f"{contender.published:.5f}"
        lines.append(f"| {method} | {' | '.join(cells)} | {published} |")
    return "\n".join(lines)


def _short(setting: str) -> str:
    """Shorten a setting: ``training.lr=0.1`` to ``lr 0.1``."""
    key, _, value = setting.partition("=")
    return f"{key.rpartition('.')[2]} {value}"


def main() -> None:
    """Choose settings, run every method under every seed, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and figures")
    asked = parser.parse_args()
    chosen = choose(asked.out / "runs", asked.jobs)
    jobs = [
        Job(regime, method, point, seed, False, asked.out / "runs")
        for (regime, method), point in chosen.items()
        for seed in range(asked.seeds)
    ]
    found = run_all(jobs, asked.jobs)
    table: dict[str, dict[str, dict[str, float | str]]] = {}
    for (regime, method), point in chosen.items():
        own = [found[j] for j in jobs if (j.regime, j.method) == (regime, method)]
        table.setdefault(regime, {})[method] = {**spread(own), "chosen": point}
    (asked.out / "school.json").write_text(json.dumps(table, indent=1), encoding="utf-8")
    print(to_markdown(table))


if __name__ == "__main__":
    main()
