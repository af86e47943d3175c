"""What privacy will cost, before anything is trained: noise for a budget, or a budget for noise."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.errors import ConfigError
from common.experiment import Experiment
from common.privacy.accounting import Event, epsilon_of, find_noise_multiplier
from common.privacy.client_level import client_events, client_noise, expected_clients, update_noise
from common.privacy.client_level import count_noise as noise_of_count
from common.privacy.example_level import example_events
from common.privacy.ledger import Unit
from common.privacy.settings import Accountant
from simulations.formats import NOTHING, format_figure

ROUNDS = 20  # as federation.rounds


@dataclass(frozen=True)
class Plan:
    """One unit's plan.

    Attributes:
        unit: "client" or "example".
        whose: whom it is about, in words.
        epsilon: what all releases cost.
        delta: that goes with it.
        budget: the most that they may cost; None for no limit.
        noise_multiplier: z, of each release.
        sampling: q, the probability with which a release has the unit in it.
        releases: how many there are.
        max_norm: C.
        divisor: what the noisy sum is divided by: clients of a round, or rows of a batch.
        draws: how often the noise is in the sum: once for each client where each adds all of it.
        parameters: P, of the trunk; None where unknown.
    """

    unit: Unit
    whose: str
    epsilon: float
    delta: float
    budget: float | None
    noise_multiplier: float
    sampling: float
    releases: int
    max_norm: float
    divisor: float
    draws: int = 1
    parameters: int | None = None

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise on a coordinate of the mean: ``z C sqrt(draws) / m``."""
        return self.noise_multiplier * self.max_norm * math.sqrt(self.draws) / self.divisor

    @property
    def noise_norm(self) -> float | None:
        """Expected L2 norm of the noise on the mean, nearly: ``z C sqrt(draws P) / m``."""
        return None if self.parameters is None else self.deviation * math.sqrt(self.parameters)

    def to_json(self) -> dict[str, Any]:
        """Collect it for machines."""
        told = {key.replace("_", "-"): value for key, value in asdict(self).items()}
        return {**told, "noise-per-coordinate": self.deviation, "noise-norm": self.noise_norm}


@dataclass(frozen=True)
class Target:
    """What flags ask for; None where they do not.

    Attributes:
        unit: "client" or "example".
        epsilon: the budget.
        noise_multiplier: z.
        delta: of the budget.
        rounds: of the run.
        clients: of the federation.
        clients_per_round: drawn in a round.
        amplification: whether a round is a Poisson sample of clients, and a secret one.
        local_noise: whether each client adds all of the noise.
        rows: of a client.
        batch_size: B.
        epochs: per round.
        max_norm: C.
        parameters: P.
        accountant: "rdp" or "pld".
    """

    unit: Unit
    epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float = 1e-5
    rounds: int = ROUNDS
    clients: int | None = None
    clients_per_round: int | None = None
    amplification: bool = False
    local_noise: bool = False
    rows: int | None = None
    batch_size: int = 32
    epochs: int = 1
    max_norm: float = 1.0
    parameters: int | None = None
    accountant: Accountant = "rdp"


def plan_target(target: Target) -> Plan:
    """Work out what flags leave open: the noise for an epsilon, or the epsilon of a noise.

    Raises:
        ConfigError: a flag is missing or contradicts another, or no noise keeps the budget.
    """
    if target.epsilon is None and target.noise_multiplier is None:
        raise ConfigError(
            "privacy plan needs --epsilon or --noise-multiplier to work out the other, got "
            "neither; give one of them"
        )
    shape = _clients(target) if target.unit == "client" else _rows(target)
    event = Event(1.0, shape.sampling, shape.releases)
    noise = target.noise_multiplier
    if noise is None:
        noise = find_noise_multiplier(
            target.epsilon or 0.0, target.delta, [event], accountant=target.accountant
        )
    epsilon = epsilon_of([replace(event, noise_multiplier=noise)], target.delta, target.accountant)
    return replace(shape, noise_multiplier=noise, epsilon=epsilon)


def _clients(target: Target) -> Plan:
    """Lay out a plan of rounds, without its noise."""
    if target.clients is None:
        raise ConfigError("privacy plan --unit client needs --clients, got none; give it")
    asked = min(target.clients_per_round or target.clients, target.clients)
    if target.delta * target.clients > 1:
        raise ConfigError(
            f"--delta must be at most 1/{target.clients}, for with {target.clients} clients one of "
            f"them may be told as it is above that, got {target.delta:g}; lower it"
        )
    if target.amplification and target.local_noise:
        raise ConfigError(
            "--amplification must be left out with --local-noise: the server, from whom that "
            "protects, knows whom it asked; remove one of them"
        )
    rate = asked / target.clients if target.amplification else 1.0
    whose = f"{target.clients} clients, {asked} a round"
    return replace(
        _blank(target, whose),
        sampling=rate,
        releases=target.rounds,
        divisor=asked,
        draws=asked if target.local_noise else 1,
    )


def _rows(target: Target) -> Plan:
    """Lay out a plan of steps, without its noise."""
    if target.rows is None:
        raise ConfigError("privacy plan --unit example needs --rows of a client, got none; give it")
    if target.delta * target.rows >= 1:
        raise ConfigError(
            f"--delta must be below 1/{target.rows}, for with {target.rows} rows one of them may "
            f"be told as it is from there on, got {target.delta:g}; lower it"
        )
    batch = min(target.batch_size, target.rows)
    steps = target.rounds * target.epochs * -(-target.rows // target.batch_size)
    return replace(
        _blank(target, f"a client with {target.rows} rows"),
        sampling=batch / target.rows,
        releases=steps,
        divisor=batch,
    )


def _blank(target: Target, whose: str) -> Plan:
    return Plan(
        unit=target.unit,
        whose=whose,
        epsilon=math.nan,
        delta=target.delta,
        budget=target.epsilon,
        noise_multiplier=1.0,
        sampling=1.0,
        releases=0,
        max_norm=target.max_norm,
        divisor=1.0,
        parameters=target.parameters,
    )


def plan_experiment(
    experiment: Experiment, rows: Mapping[str, int], parameters: int | None
) -> list[Plan]:
    """Work out what an experiment's whole run will cost, for every unit that it protects.

    Args:
        experiment: the resolved experiment.
        rows: client -> training rows.
        parameters: P, numbers of an update.

    Returns:
        A plan for clients, and for examples those of the clients with fewest and with most rows.

    Raises:
        ConfigError: nothing is protected, or no noise keeps a budget.
    """
    plans = [*_plan_clients(experiment, len(rows), parameters)]
    level = experiment.privacy.example_level
    if level is not None:
        ordered = sorted(rows, key=lambda name: (rows[name], name))
        for name in dict.fromkeys((ordered[0], ordered[-1])):
            (event,) = example_events(experiment, rows[name], experiment.federation.rounds)
            cost = epsilon_of([event], level.delta, experiment.privacy.accountant)
            plans.append(
                Plan(
                    unit="example",
                    whose=f"{name}, {rows[name]} rows",
                    epsilon=cost,
                    delta=level.delta,
                    budget=level.epsilon,
                    noise_multiplier=event.noise_multiplier,
                    sampling=event.sampling,
                    releases=event.count,
                    max_norm=level.max_norm,
                    divisor=min(experiment.training.batch_size, rows[name]),
                    parameters=parameters,
                )
            )
    if not plans:
        raise ConfigError(
            f"experiment '{experiment.name}' has no budget: neither [privacy.client-level] nor "
            "[privacy.example-level]; add one, or set it: "
            "--set privacy.client-level.epsilon=8"
        )
    return plans


def _plan_clients(experiment: Experiment, clients: int, parameters: int | None) -> list[Plan]:
    level = experiment.privacy.client_level
    if level is None:
        return []
    rounds, expected = experiment.federation.rounds, expected_clients(experiment, clients)
    events = client_events(experiment, clients, rounds)
    noise = client_noise(experiment, clients)
    if level.quantile is not None:  # a part of it is on the count
        noise = update_noise(noise, noise_of_count(experiment, clients))
    return [
        Plan(
            unit="client",
            whose=f"{clients} clients, {expected} a round",
            epsilon=epsilon_of(events, level.delta, experiment.privacy.accountant),
            delta=level.delta,
            budget=level.epsilon,
            noise_multiplier=noise,
            sampling=events[0].sampling,
            releases=rounds,
            max_norm=level.max_norm,
            divisor=expected,
            draws=expected if level.noise == "client" else 1,
            parameters=parameters,
        )
    ]


def print_plans(plans: list[Plan], console: Console) -> None:
    """Print plans side by side."""
    table = Table(title="privacy plan")
    table.add_column("")
    for plan in plans:
        table.add_column(Text(f"{plan.unit} level\n{plan.whose}"), justify="right")
    for name, cells in _rows_of(plans):
        table.add_row(name, *map(Text, cells))
    console.print(table)
    for plan in plans:
        if plan.budget is not None and plan.epsilon > plan.budget * (1 + 1e-6):
            console.print(
                Text(
                    f"{plan.unit} level: the whole run would cost more than its budget of "
                    f"{plan.budget:g}; it would stop before that"
                )
            )


def _rows_of(plans: list[Plan]) -> list[tuple[str, list[str]]]:
    """List what is told of plans, a line each."""
    lines = {
        "epsilon": [format_figure(plan.epsilon) for plan in plans],
        "delta": [f"{plan.delta:g}" for plan in plans],
        "budget": [NOTHING if plan.budget is None else f"{plan.budget:g}" for plan in plans],
        "noise multiplier z": [format_figure(plan.noise_multiplier) for plan in plans],
        "releases": [
            f"{plan.releases:,} {'rounds' if plan.unit == 'client' else 'steps'}" for plan in plans
        ],
        "sampling rate q": [format_figure(plan.sampling) for plan in plans],
        "max-norm C": [f"{plan.max_norm:g}" for plan in plans],
        "noise of one release, per coordinate": [format_figure(plan.deviation) for plan in plans],
        "noise of one release, L2 norm": [format_figure(plan.noise_norm) for plan in plans],
        "the same in units of C": [
            format_figure(None if plan.noise_norm is None else plan.noise_norm / plan.max_norm)
            for plan in plans
        ],
    }
    return list(lines.items())
