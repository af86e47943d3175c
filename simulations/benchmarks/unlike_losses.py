"""``python -m simulations.benchmarks.unlike_losses``: what balances losses of unlike scales?

Ten clients, each without one of four tasks: three regressions whose targets measure 1, 10 and 100,
so that their losses lie a factor of 10,000 apart, and a classification. Every weighting trains
them for some rounds; a table says how far the tasks' gradients and shares of the objective then
lie apart.
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from common.experiment_file import load_experiment
from common.weighting.scaling import SCALINGS
from common.weighting.table import WEIGHTINGS
from simulations.simulate import simulate

TASKS = ("one", "ten", "hundred", "sort")
EXPERIMENT = """
name = "unlike"
[data]
source = "folder"
path = "rows"
validation = 0.1
test = 0.1
[inputs.x]
columns = ["x*"]
[tasks.one]
kind = "regression"
[tasks.ten]
kind = "regression"
[tasks.hundred]
kind = "regression"
[tasks.sort]
kind = "binary"
[trunk]
widths = [8]
[training]
optimiser = "adam"
lr = 0.01
batch-size = 16
device = "cpu"
[federation]
rounds = 4
[loss]
record = "gradients"
"""
SETTINGS = [
    # GradDrop keeps single entries: no weights say how hard a task pulls.
    *(f"loss.weighting={name}" for name in WEIGHTINGS if name not in ("manual", "graddrop")),
    *(f"loss.scaling={name}" for name in SCALINGS if name != "none"),
    "loss.weighting=uncertainty loss.scaling=initial",
    "loss.weighting=imtl-l loss.scaling=initial",
    "loss.weighting=gradnorm loss.options.alpha=0",
]


def write_clients(folder: Path, rows: int = 20) -> Path:
    """Write the clients' rows and the experiment; returns the experiment's file."""
    (folder / "rows").mkdir(parents=True)
    draw = np.random.default_rng(0)
    mix = draw.normal(size=(4, 4))
    for client in range(10):
        inputs = draw.normal(size=(rows, 4))
        hidden = np.tanh(inputs @ mix)
        columns = {f"x{i}": inputs[:, i] for i in range(4)}
        truths = [*(hidden * [1, 10, 100, 1]).T[:3], (hidden[:, 3] > 0).astype(int)]
        columns |= {task: truths[i] for i, task in enumerate(TASKS) if (client + i) % 4}
        values = zip(*columns.values(), strict=True)
        lines = [",".join(f"{value:.6g}" for value in row) for row in values]
        text = "\n".join([",".join(columns), *lines])
        (folder / "rows" / f"c{client}.csv").write_text(text, encoding="utf-8")
    file = folder / "unlike.toml"
    file.write_text(EXPERIMENT, encoding="utf-8")
    return file


def last_round(file: Path, out: Path, *settings: str) -> dict[str, dict[str, float]]:
    """Train, and read each task's loss, weight, gradient norm and pull in the last round."""
    simulate(load_experiment(str(file), settings), engine="loopback", out=out)
    line: dict[str, Any] = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return {task: line["train"]["tasks"][task] for task in TASKS}


def spread(tasks: dict[str, dict[str, float]], *names: str) -> float:
    """Divide the largest by the smallest of the tasks' products of these figures."""
    products = [float(np.prod([figures[name] for name in names])) for figures in tasks.values()]
    return max(products) / max(min(products), 1e-12)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each run.")] = 20,
    epochs: Annotated[int, typer.Option(min=1, help="Local epochs of each round.")] = 5,
) -> None:
    """Train the ten clients under every weighting and scaling, and print a table."""
    print("| loss | largest pull / smallest | largest share / smallest |")
    print("|---|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        file = write_clients(Path(folder))
        for number, settings in enumerate(SETTINGS):
            more = [f"federation.rounds={rounds}", f"training.epochs={epochs}"]
            tasks = last_round(file, Path(folder) / str(number), *settings.split(), *more)
            shares = spread(tasks, "weight", "loss")
            print(f"| `{settings}` | {spread(tasks, 'pull'):,.1f} | {shares:,.1f} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
