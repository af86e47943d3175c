"""Algorithms and strategies side by side: ``python -m simulations.benchmarks.federated_methods``.

Every method trains the same experiments on the same splits and seeds; plain FedAvg with joint
training is the yardstick. A method with options is tried with each of those listed here, and the
one with the lowest validation loss, over all seeds, is the one whose test figures are shown. Called
again with the same ``--out`` after it was stopped, it goes on.
"""

import argparse
import json
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import FedMTLError
from common.experiment import Experiment
from common.experiment_file import load_experiment
from simulations.gains import TaskFigures, delta_m, spread, task_metrics
from simulations.jobs import run_jobs
from simulations.simulate import choose_engine, simulate

YARDSTICK = "joint"
SGD = "training.optimiser=sgd training.momentum=0"
PLAIN_DIGITS = f"digits {SGD} training.lr=0.05 federation.rounds=40"
DATA_SETS = {
    "School": "school",
    "Landmine": "landmine",
    "Parkinsons": "parkinsons",
    "digits, label skew": f"{PLAIN_DIGITS} partition.kind=dirichlet partition.by=digit "
    "partition.alpha=0.2 data.unseen-classes=keep",
    "digits, task skew": f"{PLAIN_DIGITS} partition.task-skew=rotate",
}


def options(algorithm: str, key: str, *values: float) -> list[str]:
    """List an algorithm with each value of an option."""
    base = f"federation.algorithm={algorithm} federation.algorithm-options.{key}"
    return [f"{base}={value:g}" for value in values]


def told(strategy: str, key: str, *values: object) -> list[str]:
    """List a strategy with each value of an option."""
    base = f"federation.strategy={strategy} federation.strategy-options.{key}"
    return [f"{base}={value}" for value in values]


METHODS: dict[str, list[str]] = {
    YARDSTICK: [""],
    "joint, weight-by uniform": ["federation.weight-by=uniform"],
    "heads per task": ["federation.heads=per-task"],
    "fedrep": options("fedrep", "head-epochs", 1, 5),
    "fedbabu": options("fedbabu", "fit-epochs", 5),
    "fedprox": options("fedprox", "mu", 0.01, 0.1),
    "ditto": options("ditto", "pull", 0.1, 1, 10),
    "mr-mtl": options("mr-mtl", "pull", 0.1, 1, 10),
    "scaffold": [f"federation.algorithm=scaffold {SGD}"],
    "apfl": options("apfl", "alpha", 0.25, 0.75),
    "fedala": options("fedala", "layers", 1),
    "local": ["federation.algorithm=local"],
    "whole-model": ["federation.algorithm=whole-model"],
    "fedavgm": ["federation.strategy=fedavgm"],
    "fedadam": told("fedadam", "eta", 0.003, 0.03),
    "fedyogi": told("fedyogi", "eta", 0.003, 0.01),
    "fedadagrad": told("fedadagrad", "eta", 0.03),
    "qfedavg": ["federation.strategy=qfedavg"],
    "median": ["federation.strategy=median"],
    "trimmed-mean": ["federation.strategy=trimmed-mean"],
    "conflict-averse": ["federation.strategy=conflict-averse"],
    "task-aware": told("task-aware", "across", "mean", "mgda"),
    "clustered": ["federation.strategy=clustered"],
}


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        data: a key of `DATA_SETS`.
        method: a key of `METHODS`.
        settings: one of the method's.
        seed: of the run.
        folder: where run folders go.
    """

    data: str
    method: str
    settings: str
    seed: int
    folder: Path

    @property
    def experiment(self) -> Experiment:
        """The experiment with the method's settings."""
        name, *base = DATA_SETS[self.data].split()
        return load_experiment(name, [*base, *self.settings.split(), f"seed={self.seed}"])


@dataclass(frozen=True)
class Figures:
    """What came of a run.

    Attributes:
        validation: loss at the round it is read at; infinite where the run failed.
        tasks: test figures.
        failed: why there are none.
    """

    validation: float
    tasks: TaskFigures
    failed: str = ""


def run_job(job: Job) -> Figures:
    """Train one variant under one seed and read it at its round of lowest validation loss."""
    logging.getLogger("fedmtl").setLevel(logging.ERROR)
    try:
        experiment = job.experiment
        place = "-".join((job.data, job.method, job.settings, str(job.seed)))
        out = job.folder / "".join(c if c.isalnum() else "_" for c in place)
        results = read_results(out)  # of a benchmark that was stopped
        if results is None:
            shutil.rmtree(out, ignore_errors=True)
            results = simulate(experiment, engine=choose_engine(experiment)[0], out=out)
    except FedMTLError as error:
        return Figures(math.inf, {}, str(error).splitlines()[0])
    read = results["best"] or results["final"]
    loss = (read["validation"] or {}).get("loss", math.nan)
    return Figures(loss, task_metrics(experiment, read["test"] or {}))


def read_results(out: Path) -> dict[str, Any] | None:
    """Read what a finished run came to; None where there is none."""
    file = out / "results.json"
    read: dict[str, Any] | None = json.loads(file.read_text()) if file.exists() else None
    return read


def summarise(
    found: dict[Job, Figures], data_sets: Sequence[str], seeds: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Choose every method's settings by validation: data set -> method -> what it came to."""
    table: dict[str, dict[str, Any]] = {}
    for data in data_sets:
        rows: dict[str, dict[str, list[Figures]]] = {}
        for job, figures in found.items():
            if job.data == data:
                rows.setdefault(job.method, {}).setdefault(job.settings, []).append(figures)
        experiment = Job(data, YARDSTICK, "", 0, Path()).experiment
        base = [figures.tasks for figures in rows[YARDSTICK][""]]
        table[data] = {}
        for method, variants in rows.items():
            losses = {s: sum(f.validation for f in each) for s, each in variants.items()}
            chosen = min(losses, key=losses.__getitem__)
            runs = variants[chosen]
            if any(f.failed for f in runs):
                table[data][method] = {"failed": next(f.failed for f in runs if f.failed)}
                continue
            pairs = zip(runs, base, strict=True)
            table[data][method] = {
                "settings": chosen if len(variants) > 1 else "",
                "gain": spread([delta_m(experiment, f.tasks, b) for f, b in pairs]),
                "tasks": {t: spread([f.tasks[t] for f in runs]) for t in experiment.tasks},
            }
    return table


def to_markdown(table: dict[str, dict[str, Any]]) -> str:
    """Write the gains over the yardstick, and what was measured."""
    data_sets, methods = list(table), list(next(iter(table.values())))
    lines = [f"| method | {' | '.join(data_sets)} |", "|---|" + "---|" * len(data_sets)]
    lines += [
        f"| {m} | {' | '.join(gain_cell(table[d].get(m, {}), m) for d in data_sets)} |"
        for m in methods
    ]
    for data, rows in table.items():
        tasks = list(rows[YARDSTICK]["tasks"])
        lines += ["", f"**{data}**", "", f"| method | {' | '.join(tasks)} | chosen |"]
        lines.append("|---|" + "---|" * (len(tasks) + 1))
        for method, row in rows.items():
            if "failed" in row:
                continue
            cells = [figure_cell(row["tasks"][task]) for task in tasks]
            chosen = " ".join(s.rpartition("options.")[2] for s in row["settings"].split()[1:])
            lines.append(f"| {method} | {' | '.join(cells)} | {chosen} |")
    return "\n".join(lines)


def gain_cell(row: dict[str, Any], method: str) -> str:
    """Write a gain over the yardstick in percent; bold where it is twice its spread."""
    if method == YARDSTICK:
        return "0"
    if "gain" not in row:
        return "n/a"
    mean, deviation = row["gain"]["mean"], row["gain"]["deviation"]
    text = f"{mean:+.1f} ± {deviation:.1f}"
    return f"**{text}**" if mean > 2 * deviation and mean >= 0.5 else text


def figure_cell(values: dict[str, Any]) -> str:
    """Write mean and deviation with four significant digits."""
    return f"{values['mean']:.4g} ± {values['deviation']:.2g}"


def main() -> None:
    """Run all methods on all data sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--data", nargs="*", default=list(DATA_SETS), choices=list(DATA_SETS))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and figures")
    asked = parser.parse_args()
    methods = dict.fromkeys([YARDSTICK, *asked.methods])
    jobs = [
        Job(data, method, settings, seed, asked.out / "runs")
        for data in asked.data
        for method in methods
        for settings in METHODS[method]
        for seed in range(asked.seeds)
    ]
    found: dict[Job, Figures] = {}

    def note(job: Job, figures: Figures) -> None:
        found[job] = figures
        told_of = figures.failed or {t: round(v, 4) for t, v in figures.tasks.items()}
        print(f"[{len(found)}/{len(jobs)}]", job.data, job.method, job.settings, job.seed, told_of)

    run_jobs(run_job, jobs, asked.jobs, note)
    ordered = {job: found[job] for job in jobs}
    table = summarise(ordered, asked.data, range(asked.seeds))
    (asked.out / "methods.json").write_text(json.dumps(table, indent=1), encoding="utf-8")
    text = to_markdown(table)
    (asked.out / "methods.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
