"""``python -m simulations.benchmarks.pretrained_trunks``: what does a trunk from before save?

Some clients train a trunk; others, with rows of their own and another task, then start from it: all
of it trains, a part, nothing but adapters, or nothing but heads. From the seed alone is the
yardstick. A table tells for each way the parameters and bytes that travel, the metric after a few
rounds and at the end, the rounds to the lowest validation loss that the yardstick ever has, and the
time of a round.
"""

import json
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Annotated, Any

import typer

from common.clients import open_clients
from common.errors import ConfigError
from common.experiment import Experiment
from common.experiment_file import dump_experiment, load_experiment
from simulations.simulate import choose_engine, simulate
from simulations.terminal import told_in_lines

SEED_ALONE, WHOLE = "from the seed", "all trains"
EARLY = 3  # rounds after which a metric is read, beside the last


@dataclass(frozen=True)
class Case:
    """A trunk's first task set and its second.

    Attributes:
        text: the experiment, as TOML, with the tasks of both.
        before: tasks that the trunk is trained on.
        after: the task that it is used for.
        first: clients that train the trunk, of those that there are.
        second: clients that use it.
        last: patterns of the last layer's parameters.
    """

    text: str
    before: tuple[str, ...]
    after: str
    first: slice
    second: slice
    last: str = "layers.*"


MNIST = """
name = "mnist-again"
[data]
source = "mnist"
unseen-classes = "keep"
[partition]
kind = "iid"
clients = 280
[inputs.pixels]
kind = "image"
columns = ["pixels"]
shape = [1, 28, 28]
scale = 255.0
[tasks.digit]
kind = "multiclass"
classes = 10
[tasks.parity]
kind = "binary"
[tasks.ink]
kind = "regression"
standardise = "client"
[trunk]
architecture = "cnn"
channels = [8, 16]
widths = [64]
[training]
optimiser = "adam"
lr = 0.004
batch-size = 32
device = "cpu"
[federation]
rounds = 8
heads = "per-task"
"""
CASES = {
    "mnist": Case(MNIST, ("parity", "ink"), "digit", slice(0, 20), slice(20, 30)),
    "digits": Case("digits", ("parity", "ink"), "digit", slice(0, 5), slice(5, 10), "layers.2.*"),
}
FROZEN = "trunk.trains='none'"
ADAPTED = "trunk.adapters.rank=4"
LOUD = "trunk.adapters.alpha=32"  # four times the default: adapters take longer steps


def ways(case: Case) -> dict[str, tuple[str, ...]]:
    """Name the ways to use a trunk from before, with their settings."""
    return {
        SEED_ALONE: (),
        WHOLE: (),
        "last layer trains": (f"trunk.trains=['{case.last}']",),
        "adapters, rank 4": (ADAPTED,),
        "adapters, rank 4, A frozen": (ADAPTED, "trunk.adapters.freeze-a=true"),
        "heads alone": (FROZEN,),
        "adapters, rank 4, alpha 32": (ADAPTED, LOUD),
        "adapters, rank 4, alpha 32, A frozen": (ADAPTED, LOUD, "trunk.adapters.freeze-a=true"),
    }


def plan(case: Case, tasks: Sequence[str], part: slice, seed: int, folder: Path) -> Path:
    """Write the experiment of some clients and tasks."""
    name = case.text
    if "\n" in name:
        name = str(folder / "case.toml")
        Path(name).write_text(case.text, encoding="utf-8")
    experiment = load_experiment(name, seed=seed)
    clients = open_clients(experiment).names[part]
    update: dict[str, Any] = {
        "tasks": {task: experiment.tasks[task] for task in tasks},
        "data": experiment.data.model_copy(update={"clients": clients}),
        "federation": experiment.federation.model_copy(update={"heads": "per-task"}),
    }
    file = folder / f"{'-'.join(tasks)}-{seed}.toml"
    file.write_text(dump_experiment(experiment.model_copy(update=update)), encoding="utf-8")
    return file


def train(file: Path, settings: Sequence[str], out: Path) -> tuple[Experiment, Path]:
    """Run an experiment, unless its folder tells that it has been run."""
    experiment = load_experiment(str(file), settings)
    if not (out / "results.json").exists():
        simulate(experiment, engine=choose_engine(experiment)[0], out=out)
    return experiment, out


def read(experiment: Experiment, out: Path, task: str) -> dict[str, Any]:
    """Read what a run came to.

    Returns:
        "losses" and "metrics", of validation and test rows, after 0 rounds, 1, ...; "up" and
        "down", bytes a round and client; "time_s" of a round, the median.
    """
    lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    results = json.loads((out / "results.json").read_text())
    figures = [line["evaluation"] for line in lines] + [results["final"]]
    metric, clients = experiment.tasks[task].metric_name, lines[0]["clients"]["answered"]
    return {
        "losses": [each["validation"]["loss"] for each in figures],
        "metrics": [each["test"]["tasks"][task][metric] for each in figures],
        "up": lines[0]["traffic"]["received-bytes"] / clients,
        "down": lines[0]["traffic"]["sent-bytes"] / clients,
        "time_s": median(line["time_s"] for line in lines),
    }


def rounds_to(losses: Sequence[float], goal: float) -> float:
    """Count the rounds until a loss is as low as a goal; infinite where it never is.

    >>> rounds_to([2.0, 1.0, 0.5], 1.0), rounds_to([2.0], 1.0)
    (1, inf)
    """
    return next((place for place, loss in enumerate(losses) if loss <= goal), math.inf)


def compare(case: Case, seeds: int, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Make all runs of a case; way -> what it came to, seed by seed."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways(case)}
    for seed in range(seeds):
        before = plan(case, case.before, case.first, seed, folder)
        _, earlier = train(before, (), folder / f"before-{seed}")
        after = plan(case, (case.after,), case.second, seed, folder)
        for number, (way, settings) in enumerate(ways(case).items()):
            given = () if way == SEED_ALONE else (f"trunk.weights='{earlier}'",)
            ran = train(after, (*given, *settings), folder / f"after-{number}-{seed}")
            found[way].append(read(*ran, case.after))
        goals = min(found[SEED_ALONE][seed]["losses"])
        for way in found:
            found[way][seed]["rounds"] = rounds_to(found[way][seed]["losses"], goals)
    return found


def spread(values: Sequence[float], form: str = ".4f") -> str:
    """Write mean and deviation.

    >>> spread([0.5, 0.7], ".2f"), spread([3, math.inf], ".1f")
    ('0.60 ± 0.14', '3, never')
    """
    if not all(map(math.isfinite, values)):
        return ", ".join(f"{value:g}" if math.isfinite(value) else "never" for value in values)
    deviation = stdev(values) if len(values) > 1 else 0.0
    return f"{mean(values):{form}} ± {deviation:{form}}"


def to_markdown(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Write a row per way."""
    lines = [
        f"| the trunk | sent up, kB | sent down, kB | test metric after {EARLY} rounds "
        "| at the end | rounds to the yardstick's best | a round, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, runs in found.items():
        cells = [
            way,
            *(f"{runs[0][key] / 1000:.1f}" for key in ("up", "down")),
            *(spread([run["metrics"][place] for run in runs]) for place in (EARLY, -1)),
            spread([run["rounds"] for run in runs], ".1f"),
            f"{1000 * mean(run['time_s'] for run in runs):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    case: Annotated[str, typer.Argument(help=f"One of {', '.join(CASES)}.")] = "mnist",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each way.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Keep runs here, and go on there.")] = None,
) -> None:
    """Compare the ways to use a trunk from before."""
    with told_in_lines():
        if case not in CASES:
            raise ConfigError(f"the case must be one of {', '.join(CASES)}, got '{case}'")
        logging.getLogger("fedmtl").setLevel(logging.ERROR)
        with tempfile.TemporaryDirectory() as scratch:
            folder = out or Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            print(to_markdown(compare(CASES[case], seeds, folder)))


if __name__ == "__main__":
    typer.run(main)
