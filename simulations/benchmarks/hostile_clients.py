"""``python -m simulations.benchmarks.hostile_clients``: which strategies hold what they learned?

Every strategy of the table that claims to bear hostile clients, and the mean beside them, trains
one experiment with nobody hostile and under each attack of `simulations.hostile`. A run is read at
its last trunk, on the test rows of the clients that are honest under attack, in the clean run as
well, so that both are means over the same rows.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer

from common.clients import open_clients
from common.errors import ConfigError, NothingLearnedError
from common.experiment import Experiment
from common.experiment_file import load_experiment
from common.strategies import STRATEGIES
from simulations.formats import LOWER_IS_BETTER
from simulations.hostile import ATTACKS, FACTOR, Hostile
from simulations.simulate import choose_engine, simulate
from simulations.terminal import told_in_lines

CLEAN = "none"
# The mean, and what claims to bear hostile clients; names that the table lacks are passed over.
STRATEGIES_TRIED = ("fedavg", "median", "trimmed-mean", "krum", "multikrum", "bulyan")
# Option of a strategy -> its value where so many of so many clients may be hostile.
OPTIONS: dict[str, Callable[[int, int], int | float]] = {
    "beta": lambda hostile, clients: hostile / clients,
    "num-malicious-nodes": lambda hostile, clients: hostile,
}
# Experiment -> settings under which the differences can be seen: clients enough for Bulyan, which
# needs 4 f + 3, local training that goes astray, and more test rows.
SETTINGS = {
    "digits": (
        "partition.clients=15",
        "training.epochs=4",
        "data.test=0.3",
        "data.validation=0.05",
    )
}
LEAST_DROP = 0.01  # a drop is told from the spread of clean runs from here on


@dataclass(frozen=True)
class Trial:
    """One run that is to be made.

    Attributes:
        experiment: settings and seed.
        attack: a key of `ATTACKS`, or `CLEAN`.
        hostile: who is hostile under attack.
    """

    experiment: Experiment
    attack: str
    hostile: Hostile

    def measure(self, task: str) -> float:
        """Train, and read the honest clients' metric; NaN where nothing could be learned."""
        engine, _ = choose_engine(self.experiment)
        attackers = None if self.attack == CLEAN else self.hostile
        with tempfile.TemporaryDirectory() as folder:
            try:
                results = simulate(
                    self.experiment, engine=engine, out=Path(folder) / "run", hostile=attackers
                )
            except NothingLearnedError:
                return float("nan")
        metric = self.experiment.tasks[task].metric_name
        return honest_mean(results["clients"], self.hostile.clients, task, metric)


def honest_mean(
    clients: Mapping[str, Any], hostile: frozenset[str], task: str, metric: str
) -> float:
    """Average a metric over the honest clients' test rows."""
    found = [
        figures["tasks"][task]["test"]
        for name, figures in clients.items()
        if name not in hostile and "test" in figures["tasks"].get(task, {})
    ]
    weighed = [(float(figures[metric]), int(figures["examples"])) for figures in found]
    return sum(value * rows for value, rows in weighed) / sum(rows for _, rows in weighed)


def trials(
    name: str, strategy: str, share: float, seed: int, factor: float, settings: Sequence[str]
) -> Iterator[Trial]:
    """Set up the runs of one strategy and one seed: clean, then under each attack."""
    plain = load_experiment(name, settings, seed=seed)
    names = open_clients(plain).names
    count = len(Hostile.draw("nan", share, names, seed).clients)
    options = fit_options(strategy, count, len(names))
    more = [f"federation.strategy-options.{key}={value}" for key, value in options.items()]
    chosen = [*settings, f"federation.strategy={strategy}", *more]
    experiment = load_experiment(name, chosen, seed=seed)
    for attack in (CLEAN, *ATTACKS):
        drawn = Hostile.draw(attack if attack in ATTACKS else "nan", share, names, seed, factor)
        yield Trial(experiment, attack, drawn)


def fit_options(strategy: str, hostile: int, clients: int) -> dict[str, int | float]:
    """Choose a strategy's options for a number of hostile clients."""
    fields = STRATEGIES[strategy].load().Options.model_fields.values()
    known = {field.alias for field in fields}
    return {key: value(hostile, clients) for key, value in OPTIONS.items() if key in known}


def cell(figures: list[float], clean: list[float], *, lower_is_better: bool = False) -> str:
    """Write mean and spread; in bold where more is lost than the spread of clean runs explains.

    >>> cell([0.50, 0.52], [0.95, 0.97]), cell([0.95, 0.96], [0.95, 0.97])
    ('**0.5100 ± 0.0141**', '0.9550 ± 0.0071')
    """
    if any(map(isnan, figures)):
        return "**nothing learned**"
    spread = stdev(figures) if len(figures) > 1 else 0.0
    text = f"{mean(figures):.4f} ± {spread:.4f}"
    noise = max(2 * stdev(clean), LEAST_DROP) if len(clean) > 1 else LEAST_DROP
    lost = mean(figures) - mean(clean) if lower_is_better else mean(clean) - mean(figures)
    return text if lost <= noise else f"**{text}**"


def main(
    experiment: Annotated[str, typer.Option(help="A known experiment, or a TOML file.")] = "digits",
    task: Annotated[str, typer.Option(help="Whose metric is read; default: the first.")] = "",
    share: Annotated[float, typer.Option(help="Share of the clients that are hostile.")] = 0.2,
    factor: Annotated[float, typer.Option(help="Of the attack 'scaled'.")] = FACTOR,
    seeds: Annotated[int, typer.Option(min=1, help="Repeat with seeds 0 to N-1.")] = 3,
    strategies: Annotated[
        str, typer.Option(help="Comma-separated; default: the mean and all that claim robustness.")
    ] = "",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the table to this file, too.")] = None,
) -> None:
    """Train under every strategy and attack, and print a table."""
    logging.getLogger("fedmtl").setLevel(logging.ERROR)
    chosen = strategies.split(",") if strategies else [*filter(STRATEGIES.get, STRATEGIES_TRIED)]
    settings = [*SETTINGS.get(experiment, ()), *(overrides or [])]
    with told_in_lines():
        lines: list[str] = []
        for line in rows(experiment, task, chosen, share, seeds, factor, settings):
            typer.echo(line)
            lines.append(line)
        if out is not None:
            out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def rows(
    name: str,
    task: str,
    strategies: Sequence[str],
    share: float,
    seeds: int,
    factor: float,
    settings: Sequence[str],
) -> Iterator[str]:
    """Write the table, in Markdown, line by line as its runs end.

    Raises:
        ConfigError: experiment, task or a setting is wrong.
    """
    tasks = load_experiment(name, settings).tasks
    task = task or next(iter(tasks))
    if task not in tasks:
        raise ConfigError(f"--task must be one of {', '.join(tasks)}, got '{task}'.")
    if unknown := [strategy for strategy in strategies if strategy not in STRATEGIES]:
        known = ", ".join(STRATEGIES)
        raise ConfigError(f"--strategies must be some of {known}, got '{unknown[0]}'.")
    lower = tasks[task].metric_name in LOWER_IS_BETTER
    attacks = (CLEAN, *ATTACKS)
    yield f"| strategy | {' | '.join(attacks)} |"
    yield f"|---{'|---:' * len(attacks)}|"
    for strategy in strategies:
        figures: dict[str, list[float]] = {attack: [] for attack in attacks}
        for seed in range(seeds):
            for trial in trials(name, strategy, share, seed, factor, settings):
                figures[trial.attack].append(trial.measure(task))
        clean = figures[CLEAN]
        cells = [cell(figures[attack], clean, lower_is_better=lower) for attack in attacks]
        yield f"| `{strategy}` | {' | '.join(cells)} |"


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_show_locals=False)
    app.command()(main)
    app()
