"""What example-level privacy costs a client: its noisy steps as events, and the noise for a budget.

DP-SGD (Abadi et al., "Deep learning with differential privacy", CCS 2016, Algorithm 1) at a client
with n training rows: every step takes each row with probability ``q = min(B, n) / n``, B the batch
size, and an epoch has ``ceil(n / B)`` steps. The cost is the client's own, of its rows alone.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

from common.algorithms import ALGORITHMS
from common.errors import ConfigError
from common.methods import make_options
from common.privacy.accounting import Event, find_noise_multiplier
from common.privacy.settings import Accountant, ExampleLevel

if TYPE_CHECKING:
    from common.experiment import Experiment


def sampling_rate(rows: int, batch_size: int) -> float:
    """Work out the probability with which a step takes a row.

    >>> sampling_rate(128, 32), sampling_rate(20, 32)
    (0.25, 1.0)
    """
    return min(batch_size, rows) / rows


def steps_per_round(experiment: "Experiment", rows: int) -> int:
    """Count a client's noisy steps in a round, those of all phases of its algorithm."""
    federation = experiment.federation
    method = ALGORITHMS[federation.algorithm]
    options = make_options(ALGORITHMS, federation.algorithm, federation.algorithm_options)
    passes: int = method.load()(options, experiment).passes
    return passes * -(-rows // experiment.training.batch_size)


def example_events(experiment: "Experiment", rows: int, rounds: int) -> list[Event]:
    """List what a client has released about its rows after a number of rounds it took part in.

    Args:
        experiment: one with ``[privacy.example-level]``; without, nothing counts as released.
        rows: n, the client's training rows.
        rounds: in which it trained.

    Raises:
        ConfigError: the budget does not fit so few rows, or no noise is enough for it.
    """
    if experiment.privacy.example_level is None or not rounds:
        return []
    return [_event(experiment, rows, rounds, example_noise(experiment, rows))]


def example_noise(experiment: "Experiment", rows: int) -> float:
    """Get the noise multiplier of a client: as set, or found for its rows and all of the rounds.

    Args:
        experiment: one with ``[privacy.example-level]``.
        rows: n, the client's training rows.

    Raises:
        ConfigError: delta is not below 1/n, or no noise is enough for the budget.
    """
    level = _level(experiment)
    check_delta(experiment, rows)
    if level.noise_multiplier is not None:
        return level.noise_multiplier
    if level.epsilon is None:
        raise RuntimeError("a budget without noise or epsilon passed the schema")
    event = _event(experiment, rows, experiment.federation.rounds, 1.0)
    return _find_noise(level.epsilon, level.delta, event, experiment.privacy.accountant)


def check_delta(experiment: "Experiment", rows: int, client: str = "") -> None:
    """Refuse a delta at which one of a client's rows may be told as it is.

    Args:
        experiment: with or without ``[privacy.example-level]``.
        rows: n, the client's training rows.
        client: names it.

    Raises:
        ConfigError: delta is not below 1/n.
    """
    level = experiment.privacy.example_level
    if level is not None and level.delta * rows >= 1:
        who = f"client '{client}': " if client else ""
        # A client's refusal leaves it.
        told = f"1/{rows}, " if experiment.privacy.counts == "sent" else ""
        raise ConfigError(
            f"{who}privacy.example-level.delta must be below {told}one over the client's "
            f"training rows, got {level.delta:g}, at which some row may be told as it is; lower it"
        )


def require_new_heads(experiment: "Experiment", heads_from: str) -> None:
    """Refuse to start from an earlier run's heads: what rows did to them is not in this budget.

    Args:
        experiment: with or without ``[privacy.example-level]``.
        heads_from: the earlier run; empty for new heads.

    Raises:
        ConfigError: there is an earlier run.
    """
    if heads_from and experiment.privacy.example_level is not None:
        raise ConfigError(
            f"heads-from must be left out under [privacy.example-level], got '{heads_from}': its "
            "heads follow every row, and each row's gradient follows them, outside this run's "
            "budget; leave it out"
        )


def _event(experiment: "Experiment", rows: int, rounds: int, noise: float) -> Event:
    rate = sampling_rate(rows, experiment.training.batch_size)
    return Event(noise, rate, rounds * steps_per_round(experiment, rows))


@lru_cache(maxsize=1024)  # as many clients' as there are sizes
def _find_noise(epsilon: float, delta: float, event: Event, accountant: Accountant) -> float:
    return find_noise_multiplier(epsilon, delta, [event], accountant=accountant)


def _level(experiment: "Experiment") -> ExampleLevel:
    level = experiment.privacy.example_level
    if level is None:
        raise RuntimeError("no example-level privacy was asked for")
    return level
