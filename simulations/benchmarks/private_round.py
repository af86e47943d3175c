"""``python -m simulations.benchmarks.private_round``: what each privacy mechanism costs a round.

The same federation trains under every mechanism, one short run after another, in turns; a figure is
the median time of a round over all of a mechanism's rounds but the first, as a ratio to the round
without any.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from common.experiment_file import load_experiment
from simulations.simulate import simulate
from simulations.terminal import told_in_lines

UNIFORM = "federation.weight-by=uniform"
CLIENT = "privacy.client-level.noise-multiplier=0.5"
SECURE = "privacy.secure-aggregation.threshold=0.66"
MECHANISMS: dict[str, list[str]] = {
    "none": [UNIFORM],
    "central": [UNIFORM, CLIENT],
    "central, adaptive": [UNIFORM, CLIENT, "privacy.client-level.quantile=0.5"],
    "local": [UNIFORM, CLIENT, "privacy.client-level.noise=client"],
    "example level": [UNIFORM, "privacy.example-level.noise-multiplier=1"],
    "secure aggregation": [UNIFORM, "privacy.secure-aggregation.max-norm=10"],
    "distributed": [UNIFORM, CLIENT, SECURE, "privacy.client-level.noise=shares"],
}


def round_times(settings: list[str], experiment: str, engine: str, rounds: int) -> list[float]:
    """Run once; returns the seconds of every round but the first."""
    wanted = [*settings, f"federation.rounds={rounds}", "evaluation.every=1000"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        simulate(load_experiment(experiment, wanted), engine=engine, out=out)
        lines = (out / "metrics.jsonl").read_text().splitlines()
    return [float(json.loads(line)["time_s"]) for line in lines[1:]]


def measure(
    experiment: str, engine: str, overrides: list[str], rounds: int, cycles: int
) -> dict[str, float]:
    """Run every mechanism in turns; mechanism -> median seconds of a round."""
    times: dict[str, list[float]] = {name: [] for name in MECHANISMS}
    for cycle in range(cycles):
        names = list(MECHANISMS)
        for name in names if cycle % 2 == 0 else reversed(names):
            settings = [*MECHANISMS[name], *overrides]
            times[name] += round_times(settings, experiment, engine, rounds)
    return {name: statistics.median(found) for name, found in times.items()}


def main(
    experiment: Annotated[str, typer.Argument(help="A known experiment, or a file.")] = "digits",
    engine: Annotated[str, typer.Option(help="loopback or batched.")] = "batched",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Of each run.")] = 12,
    cycles: Annotated[int, typer.Option(min=1, help="Runs of each mechanism.")] = 3,
) -> None:
    """Time a round under every mechanism, as ratios to a round without any."""
    with told_in_lines():
        medians = measure(experiment, engine, overrides or [], rounds, cycles)
    plain = medians["none"]
    typer.echo(f"{'mechanism':22s} {'ms a round':>10s} {'ratio':>7s}")
    for name, seconds in medians.items():
        typer.echo(f"{name:22s} {1000 * seconds:10.2f} {seconds / plain:7.2f}")


if __name__ == "__main__":
    typer.run(main)
