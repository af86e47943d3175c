"""What client-level differential privacy costs in one run: its events, and the noise it needs.

A client that takes part in a round adds at most max-norm to the sum of updates, and the sum, or the
client's own update under local noise, is released once. Without amplification a client therefore
pays for the rounds that it takes part in. With it a round is a Poisson sample, and every round
costs every client the same, whether it was drawn or not.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from common.errors import ConfigError
from common.privacy.accounting import Event, find_noise_multiplier
from common.privacy.settings import Accountant, ClientLevel

if TYPE_CHECKING:
    from common.experiment import Experiment

COUNT_NOISE = 20  # clients of a round per unit of noise on the count of unclipped updates


def client_events(
    experiment: "Experiment", clients: int, rounds_taken: int, replies: int | None = None
) -> list[Event]:
    """List what rounds cost one client.

    Args:
        experiment: with a client level.
        clients: of the federation, of whom each round asks some; fewer cost more.
        rounds_taken: rounds that the client took part in; with amplification, rounds that were
            done, since each may have drawn it.
        replies: of training and of evaluation that it sent, which cost where sums are noised; left
            out, those of a run of so many rounds.

    Returns:
        Events of updates, and of sums where they are 'noised': one per reply, of training and of
        evaluation alike. Adaptive clipping costs nothing beside (see `update_noise`).

    Raises:
        ConfigError: there is no noise that keeps the budget.
    """
    if replies is None:
        replies = planned_replies(experiment, rounds_taken)
    noise = client_noise(experiment, clients)
    update = _update_event(experiment, clients, noise, rounds_taken)
    return [update, *_sums_events(experiment, replies)]


def client_noise(experiment: "Experiment", clients: int) -> float:
    """Say which noise multiplier one round costs: as set, or from epsilon for all rounds.

    Args:
        experiment: with a client level.
        clients: of the federation.

    Returns:
        z, standard deviation of the noise over max-norm. Under adaptive clipping the noise on
        updates is `update_noise` of it.

    Raises:
        ConfigError: no noise keeps the budget.
    """
    level = client_level(experiment)
    if level.noise_multiplier is not None:
        return level.noise_multiplier
    if level.epsilon is None:
        raise ConfigError(
            "privacy.client-level must have a noise-multiplier or an epsilon to work it out from"
        )
    rounds = experiment.federation.rounds
    return _found_noise(
        level.epsilon,
        level.delta,
        (_update_event(experiment, clients, 1.0, rounds),),
        tuple(_sums_events(experiment, planned_replies(experiment, rounds))),
        experiment.privacy.accountant,
    )


def _update_event(experiment: "Experiment", clients: int, noise: float, rounds: int) -> Event:
    """Say what so many rounds of updates cost; see `common.privacy.shares` for noise in shares."""
    level = client_level(experiment)
    is_skellam = level.noise == "shares" and level.distribution == "skellam"
    return Event(noise, client_rate(experiment, clients), rounds, whole_orders=is_skellam)


def client_rate(experiment: "Experiment", clients: int) -> float:
    """Say with which probability a round draws a client, as far as its cost may know: q."""
    wanted = experiment.federation.clients_per_round
    if not client_level(experiment).amplification or wanted == "all":
        return 1.0
    return min(1.0, wanted / clients)


def expected_clients(experiment: "Experiment", clients: int) -> int:
    """Say how many clients a round expects: m, by which the sum of updates is divided."""
    wanted = experiment.federation.clients_per_round
    return clients if wanted == "all" else min(wanted, clients)


def count_noise(experiment: "Experiment", clients: int) -> float:
    """Say the noise on the count of unclipped updates, sigma_b: as set, or a twentieth of m."""
    level = client_level(experiment)
    if level.quantile_noise is not None:
        return level.quantile_noise
    return expected_clients(experiment, clients) / COUNT_NOISE


def update_noise(noise_multiplier: float, count_noise: float) -> float:
    """Say which noise updates need so that they and the count cost one event together.

    Andrew et al. 2021, "Differentially private learning with adaptive clipping", theorem 1:
    ``z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2)``. The count is of bits less 1/2, to each of which a
    client adds 1/2 at most, so that its own noise multiplier is 2 sigma_b.

    Args:
        noise_multiplier: z, of the event.
        count_noise: sigma_b, standard deviation of the noise on the count.

    Returns:
        z_delta, above z.

    Raises:
        ConfigError: the count alone costs more than the event.

    >>> round(update_noise(1.0, 5.0), 4)
    1.005
    """
    if 2 * count_noise <= noise_multiplier:
        raise ConfigError(
            f"privacy.client-level.quantile-noise must be above {noise_multiplier / 2:g}, half the "
            f"noise multiplier, got {count_noise:g}: the count alone would cost more than the "
            "round may; raise it, or ask more clients per round"
        )
    return 1.0 / math.sqrt(noise_multiplier**-2 - (2 * count_noise) ** -2)


def planned_replies(experiment: "Experiment", rounds: int) -> int:
    """Count the replies of a client that takes part in every round of a run, the last one too.

    One per round of training, one per message to evaluate; none for no round.
    """
    evaluation = experiment.evaluation
    between = rounds // evaluation.every if evaluation.by == "message" else 0
    return rounds + between + 1 if rounds else 0


def client_level(experiment: "Experiment") -> ClientLevel:
    """Get the client level, which must be there."""
    level = experiment.privacy.client_level
    if level is None:
        raise ConfigError("privacy.client-level must be given to have a cost, got none")
    return level


def _sums_events(experiment: "Experiment", replies: int) -> list[Event]:
    """List what noised sums cost: each reply is its sender's own, so that no sample hides it."""
    privacy = experiment.privacy
    if privacy.sums_regime != "noised" or privacy.sums_noise_multiplier is None or not replies:
        return []
    return [Event(privacy.sums_noise_multiplier, 1.0, replies)]


@lru_cache(maxsize=64)
def _found_noise(
    epsilon: float,
    delta: float,
    events: Sequence[Event],
    beside: Sequence[Event],
    accountant: Accountant,
) -> float:
    return find_noise_multiplier(epsilon, delta, events, beside=beside, accountant=accountant)
